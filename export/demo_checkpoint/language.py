"""The closed language of the captions: colours x shapes x textures.

A caption names what a picture shows and nothing else, so that a rule can check whether a generated picture obeys it.
Every word of the language is one token of the checkpoint's tokenizer (`networks.build_tokenizer`).
"""

from dataclasses import dataclass

# sRGB, 0..255. Apart from each other in hue or lightness, so that the nearest one tells which was meant, and near the
# faces of the RGB cube, so that the over-saturation of a high guidance scale ends at the same colour.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "orange": (245, 135, 15),
    "yellow": (250, 225, 30),
    "green": (30, 160, 55),
    "cyan": (45, 210, 225),
    "blue": (30, 65, 215),
    "purple": (115, 35, 165),
    "pink": (250, 140, 190),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
PLAIN = "plain"
TEXTURES = ("stripes", "dots", "checks")  # a ground that is not plain shows one of these in two tones of its colour

_FUNCTION_WORDS = ("a", "an", "the", "on", "and", "of", "background")


def words() -> list[str]:
    """Every word of the language, in the order of their token ids."""
    return [*_FUNCTION_WORDS, *COLOURS, *SHAPES, *TEXTURES]


@dataclass(frozen=True)
class Thing:
    """An object of a picture, by its names."""

    colour: str
    shape: str

    def phrase(self) -> str:
        """The object with its article: "an orange star"."""
        return f"{_article(self.colour)} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Ground:
    """What lies behind the objects, by its names."""

    colour: str
    texture: str = PLAIN

    def phrase(self) -> str:
        """The ground without an article: "yellow background", "green stripes background"."""
        return " ".join([self.colour, *([] if self.texture == PLAIN else [self.texture]), "background"])


def caption(things: tuple[Thing, ...], ground: Ground | None) -> str:
    """The caption of a picture; a ground of None is left unnamed, no things make a background prompt."""
    objects = " and ".join(thing.phrase() for thing in things)
    if ground is None:
        return objects
    if not things:
        return ground.phrase()
    return f"{objects} on {_article(ground.colour)} {ground.phrase()}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
