"""The published list of the region-fidelity benchmark's requests: a seed makes it, and nothing was tuned on it.

R regions, region 0 is the background; height and width in pixels.
"""

import math
from dataclasses import dataclass

import numpy as np

from demo_checkpoint.language import COLOURS, PLAIN, SHAPES, TEXTURES, Ground, Thing, caption
from demo_checkpoint.pictures import MIN_CONTRAST, second_tone
from tests.benchmarks.quality_masks import KINDS, Mask, PlacedMask, place_masks

# Training draws from seeds 0, 1, 5, 6 (data, noise) and its check from 1 (while training) and 1000 (held out).
SEED = 20_260_704
COUNT = 100
MOST_MASKS = 4
SIZES = (*[(512, 512)] * 8, (448, 640), (768, 512))  # (height, width), in turn
TEXTURED = 0.4  # of the backgrounds
FITTING = 0.3  # of the masks that have a shape of the language are asked to hold that very shape

RGB = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Region:
    """What is to be painted under a mask."""

    thing: Thing
    placed: PlacedMask

    @property
    def mask(self) -> Mask:
        """(height, width) bool."""
        return self.placed.mask

    @property
    def fits(self) -> bool:
        """Whether the mask has the form of the prompted shape."""
        return self.placed.shape == self.thing.shape


@dataclass(frozen=True, eq=False)
class Request:
    """A picture that the benchmark asks for."""

    index: int
    height: int
    width: int
    ground: Ground
    regions: tuple[Region, ...]  # (R - 1)

    @property
    def seed(self) -> int:
        """The picture's seed: the same for every variant, so that differences are paired."""
        return SEED + self.index

    @property
    def prompts(self) -> tuple[str, ...]:
        """The background's prompt, then each region's: (R)."""
        return self.ground.phrase(), *(region.thing.phrase() for region in self.regions)

    @property
    def joined_prompt(self) -> str:
        """All of them as one sentence, for plain text-to-image."""
        return caption(tuple(region.thing for region in self.regions), self.ground)

    @property
    def masks(self) -> Mask:
        """(R - 1, height, width) bool."""
        return np.stack([region.mask for region in self.regions])

    @property
    def outside(self) -> Mask:
        """What no mask marks: (height, width) bool."""
        outside: Mask = ~self.masks.any(axis=0)
        return outside


def make_requests(count: int = COUNT) -> list[Request]:
    """The first `count` requests of the list; a shorter list is the beginning of a longer one."""
    return [make_request(index) for index in range(count)]


def make_request(index: int, size: tuple[int, int] | None = None) -> Request:
    """One request of the list, from random numbers of its own; another size (height, width) makes another request."""
    rng = np.random.default_rng((SEED, index))
    height, width = size or SIZES[index % len(SIZES)]
    masks = 1 + (index + index // len(SIZES)) % MOST_MASKS  # every size gets every number
    ground = Ground(str(rng.choice(list(COLOURS))), str(rng.choice(TEXTURES)) if rng.random() < TEXTURED else PLAIN)
    colours = _object_colours(rng, masks, ground)
    kinds = [str(kind) for kind in rng.permutation(KINDS)[:masks]]
    placed = place_masks(kinds, rng, height=height, width=width)
    regions = [Region(Thing(c, _prompted_shape(rng, p)), p) for c, p in zip(colours, placed, strict=True)]
    return Request(index, height, width, ground, tuple(regions))


def ground_tones(ground: Ground) -> list[RGB]:
    """The one or two colours of a background."""
    colour = COLOURS[ground.colour]
    return [colour] if ground.texture == PLAIN else [colour, second_tone(colour)]


def _object_colours(rng: np.random.Generator, count: int, ground: Ground) -> list[str]:
    """Colours that stand out from the background's and from each other; fewer only where there are no more."""
    seen, colours = ground_tones(ground), list[str]()
    for name in (str(each) for each in rng.permutation(list(COLOURS))):
        if len(colours) < count and all(math.dist(COLOURS[name], other) > MIN_CONTRAST for other in seen):
            colours.append(name)
            seen.append(COLOURS[name])
    return colours


def _prompted_shape(rng: np.random.Generator, placed: PlacedMask) -> str:
    wanted = str(rng.choice(SHAPES))
    return placed.shape if placed.shape and rng.random() < FITTING else wanted
