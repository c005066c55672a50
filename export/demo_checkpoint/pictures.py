"""Synthetic pictures with captions: the training data, drawn by code.

A picture is (side, side, 3) uint8; lengths here are fractions of the picture's side, so 1/8 is 64 px of 512.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from demo_checkpoint.language import COLOURS, PLAIN, SHAPES, TEXTURES, Ground, Thing, caption

Pixels = npt.NDArray[np.uint8]
Coverage = npt.NDArray[np.float32]  # (side, side), the share of each pixel that is covered
Colour = tuple[int, int, int]

SIDE = 512
SMALLEST, LARGEST = 0.12, 0.94  # an object's diameter: a small mask of 64 px up to nearly the whole picture
TILT = math.radians(12)  # a larger tilt would make a square a diamond, a name the language lacks
STRETCH = 1.25  # masks are seldom square: width and height may differ by this factor
DARKER = 0.6  # the second tone of a texture keeps the hue
TONE_OF_BLACK = (85, 85, 85)
# The power of a uniform number that a size's logarithm follows: 1 favours none. Small objects matter, but large ones
# show the shape, and teach more of the words a picture.
SIZE_BIAS = 0.7
CENTRED = 0.3  # share of the single objects that are large and near the middle, as a prompt without a mask is answered
COLOUR_JITTER = 6.0  # standard deviation in 1/255: a colour is a small region, not a point
MIN_CONTRAST = 110.0  # Euclidean, in 1/255: an object is told from its ground
COLOUR_NAMES = tuple(COLOURS)
_OVERSAMPLING = 4


@dataclass(frozen=True)
class Placement:
    """Where an object is: centre (x, y), half its width and height, tilt in radians."""

    centre: tuple[float, float]
    radii: tuple[float, float]
    tilt: float = 0.0


@dataclass(frozen=True)
class Item:
    """Something of one colour: an object, or a veil over one."""

    shape: str
    placement: Placement
    colour: Colour


@dataclass(frozen=True)
class Waves:
    """A texture's second tone and how it lies; period in fractions of the picture's side, angle in radians."""

    texture: str
    tone: Colour
    period: float
    angle: float
    phase: tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """All that a picture shows, and its caption.

    A veil hides the one object of a scene under a form of one tone that fits closely around it. That is what the first
    steps of MultiDiffusion show a region's prompt: its mask, in which there is nothing yet, in a plain surrounding.
    """

    ground: Colour
    waves: Waves | None
    items: tuple[Item, ...]  # the last on top
    caption: str
    veil: Item | None = None


@dataclass(frozen=True)
class Picture:
    """A drawn picture and its caption."""

    pixels: Pixels
    caption: str


def outline(shape: str) -> npt.NDArray[np.float64]:
    """The shape's corners (N, 2) as (x, y), y downwards, filling [-1, 1] in both directions."""
    points = _OUTLINES[shape]
    low, high = points.min(axis=0), points.max(axis=0)
    corners: npt.NDArray[np.float64] = 2 * (points - low) / (high - low) - 1
    return corners


def shape_coverage(shape: str, placement: Placement, side: int = SIDE) -> Coverage:
    """The anti-aliased coverage (side, side) of a shape in a picture."""
    cos, sin = math.cos(placement.tilt), math.sin(placement.tilt)
    corners = outline(shape) * placement.radii @ np.array([[cos, sin], [-sin, cos]]) + placement.centre
    fine = side * _OVERSAMPLING
    canvas = Image.new("L", (fine, fine))
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in corners * fine], fill=255)
    return np.asarray(canvas.reduce(_OVERSAMPLING), np.float32) / 255


def texture_coverage(texture: str, period: float, angle: float, phase: tuple[float, float], side: int) -> Coverage:
    """The coverage (side, side) of a texture's second tone; period in fractions of the side, angle in radians."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    u = (x * math.cos(angle) + y * math.sin(angle)) / period + phase[0]
    v = (y * math.cos(angle) - x * math.sin(angle)) / period + phase[1]
    # One cosine a direction; the level set at zero is the edge, softened over a pixel.
    waves_u, waves_v = np.cos(2 * math.pi * u), np.cos(2 * math.pi * v)
    field = {"stripes": waves_u, "dots": (waves_u + waves_v) / 2 - 0.35, "checks": waves_u * waves_v}[texture]
    softness = 2 * math.pi / (period * side)
    tones: npt.NDArray[np.float32] = np.clip(field / softness + 0.5, 0, 1).astype(np.float32)
    return tones


def draw(ground: npt.NDArray[np.float32], objects: list[tuple[Coverage, Colour]]) -> Pixels:
    """Lay objects over a ground (side, side, 3), the last on top."""
    pixels = ground
    for coverage, colour in objects:
        pixels = pixels + coverage[..., None] * (np.array(colour, np.float32) - pixels)
    return np.rint(pixels).clip(0, 255).astype(np.uint8)


def flat_ground(colour: Colour, side: int = SIDE) -> npt.NDArray[np.float32]:
    """A ground (side, side, 3) of one colour."""
    return np.broadcast_to(np.array(colour, np.float32), (side, side, 3))


def random_picture(rng: np.random.Generator, side: int = SIDE, *, easy: float = 0.0) -> Picture:
    """A picture of the training distribution; easy is the share of those in which only the words matter."""
    scene = random_scene(rng, easy=easy)
    return Picture(draw_scene(scene, side), scene.caption)


def draw_scene(scene: Scene, side: int = SIDE) -> Pixels:
    """What a scene shows under its veil, if it has one: (side, side, 3)."""
    ground = flat_ground(scene.ground, side)
    if scene.waves:
        waves = scene.waves
        tones = texture_coverage(waves.texture, waves.period, waves.angle, waves.phase, side)
        ground = draw(ground, [(tones, waves.tone)]).astype(np.float32)
    return draw(ground, [(shape_coverage(item.shape, item.placement, side), item.colour) for item in scene.items])


def random_scene(rng: np.random.Generator, *, easy: float = 0.0, veiled: float = 0.0) -> Scene:
    """A scene of the training distribution; easy and veiled are the shares of those."""
    kind = rng.random()
    if kind < easy:
        return _easy_scene(rng)
    if kind < easy + veiled:
        return _veiled_scene(rng)
    drawn = rng.random()
    count = 0 if drawn < 0.12 else 1 if drawn < 0.95 else 2
    ground, colour, waves = _random_ground(rng, named=count == 0 or rng.random() < 0.45)
    things = _random_things(rng, count, [colour, *([waves.tone] if waves else [])])
    return Scene(colour, waves, _items(rng, things, random_placements(rng, count)), caption(things, ground))


def random_placements(rng: np.random.Generator, count: int) -> list[Placement]:
    """Places for up to two objects: anywhere, of any size, now and then cropped by the picture's edge."""
    if count == 0:
        return []
    if count == 1:
        centred = rng.random() < CENTRED
        return [_centred_placement(rng) if centred else _random_placement(rng, (0.0, 1.0), (0.0, 1.0))]
    cut = rng.uniform(0.35, 0.65)
    halves = [((0.0, cut), (0.0, 1.0)), ((cut, 1.0), (0.0, 1.0))]
    if rng.random() < 0.5:  # one above the other
        halves = [(y, x) for x, y in halves]
    rng.shuffle(halves)
    return [_random_placement(rng, x, y, may_crop=False) for x, y in halves]


def jittered(colour: Colour, rng: np.random.Generator) -> Colour:
    """A colour near the given one."""
    r, g, b = (min(255, max(0, round(value))) for value in (colour + rng.normal(0, COLOUR_JITTER, 3)).tolist())
    return r, g, b


def second_tone(colour: Colour) -> Colour:
    """The other tone of a texture in this colour: darker, or lighter for what is nearly black."""
    if max(colour) < 60:
        return TONE_OF_BLACK
    r, g, b = (round(DARKER * channel) for channel in colour)
    return r, g, b


def _centred_placement(rng: np.random.Generator) -> Placement:
    """A large object near the middle: its corners show early in the sampling, so the word for its shape is learned."""
    radius = rng.uniform(0.27, 0.45)
    x, y = 0.5 + rng.uniform(-0.05, 0.05, 2)
    return Placement((float(x), float(y)), (radius, radius))


def _random_placement(
    rng: np.random.Generator,
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    may_crop: bool = True,
    bias: float = SIZE_BIAS,
) -> Placement:
    """A place inside the box x by y; bias: see SIZE_BIAS."""
    room = min(x[1] - x[0], y[1] - y[0])
    largest = max(LARGEST * room, SMALLEST)
    diameter = SMALLEST * (largest / SMALLEST) ** (rng.random() ** bias)
    stretch = STRETCH ** rng.uniform(-0.5, 0.5) if rng.random() < 0.5 else 1.0
    radii = (diameter / 2 * stretch, diameter / 2 / stretch)
    margin = 0.3 if may_crop and rng.random() < 0.1 else 1.0  # the share of the radius that stays inside
    centre = tuple(
        _between(rng, low + margin * r, high - margin * r) for (low, high), r in zip((x, y), radii, strict=True)
    )
    return Placement((centre[0], centre[1]), radii, rng.uniform(-TILT, TILT) if rng.random() < 0.5 else 0.0)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high)) if low < high else (low + high) / 2


def _easy_scene(rng: np.random.Generator) -> Scene:
    """One large object in the middle of a plain ground: all that differs is what the caption says.

    Where place and size are open too, the first steps of a sampling cannot tell which cells a shape's corners are in,
    and the words for shapes teach next to nothing until colours and places are known.
    """
    named = rng.random() < 0.45
    name = one_of(rng, COLOUR_NAMES)
    ground = jittered(COLOURS[name], rng) if named else _any_colour(rng)
    things = _random_things(rng, 1, [ground])
    radius = rng.uniform(0.33, 0.39)
    x, y = 0.5 + rng.uniform(-0.02, 0.02, 2)
    place = Placement((float(x), float(y)), (radius, radius))
    return Scene(ground, None, _items(rng, things, [place]), caption(things, Ground(name) if named else None))


def _veiled_scene(rng: np.random.Generator) -> Scene:
    """An object of any size anywhere on a plain ground, under a veil."""
    ground = _any_colour(rng)
    things = _random_things(rng, 1, [ground])
    place = _random_placement(rng, (0.0, 1.0), (0.0, 1.0), bias=1.0)
    (item,) = _items(rng, things, [place])
    # What is guessed of a hidden object: its colour, more or less of it, over the surrounding's or a grey.
    under = np.array(ground if rng.random() < 0.5 else (127.5,) * 3) + rng.normal(0, 20, 3)
    guess = under + rng.uniform(0, 1.4) * (np.array(item.colour) - under)
    r, g, b = np.rint(guess).clip(0, 255).astype(int).tolist()
    return Scene(ground, None, (item,), caption(things, None), veil=_random_veil(rng, item, (r, g, b)))


def _random_veil(rng: np.random.Generator, item: Item, tone: Colour) -> Item:
    """A form around an object: its own, a box, an ellipse, or a strip that is longer than the object."""
    form = rng.random()
    rx, ry = item.placement.radii
    tilt = item.placement.tilt
    if form < 0.25:
        shape, scale = item.shape, rng.uniform(1.0, 1.15)
    elif form < 0.55:
        shape, scale = "square", rng.uniform(1.0, 1.15)
    elif form < 0.85:
        # An ellipse through the corners of a box around it would be sqrt(2) as large.
        shape, scale = "circle", rng.uniform(1.0, 1.15) if item.shape in ("circle", "star") else rng.uniform(1.1, 1.4)
    else:
        shape, scale, tilt = "square", rng.uniform(1.0, 1.2), rng.uniform(0, math.pi)
        rx *= rng.uniform(1.5, 4.0)
    return Item(shape, Placement(item.placement.centre, (rx * scale, ry * scale), tilt), tone)


def _items(rng: np.random.Generator, things: tuple[Thing, ...], places: list[Placement]) -> tuple[Item, ...]:
    return tuple(
        Item(thing.shape, place, jittered(COLOURS[thing.colour], rng))
        for thing, place in zip(things, places, strict=True)
    )


def _random_ground(rng: np.random.Generator, *, named: bool) -> tuple[Ground | None, Colour, Waves | None]:
    """A ground, its colour and texture; a ground without a name is mostly one flat colour of any kind."""
    if not named and rng.random() < 0.85:
        return None, _any_colour(rng), None
    texture = PLAIN if rng.random() < 0.65 else one_of(rng, TEXTURES)
    ground = Ground(one_of(rng, COLOUR_NAMES), texture)
    colour = jittered(COLOURS[ground.colour], rng)
    waves = None if texture == PLAIN else random_waves(rng, texture, second_tone(colour))
    return (ground if named else None), colour, waves


def random_waves(rng: np.random.Generator, texture: str, tone: Colour) -> Waves:
    """How a texture lies."""
    # 10 to 20 latent cells: an even tone is several cells wide; checks alternate twice as often as their period says.
    period = rng.uniform(0.16, 0.32) * (1.4 if texture == "checks" else 1.0)
    angle = int(rng.integers(4)) / 4 * math.pi if texture == "stripes" else 0.0
    return Waves(texture, tone, period, angle, (rng.random(), rng.random()))


def _any_colour(rng: np.random.Generator) -> Colour:
    r, g, b = rng.integers(0, 256, 3).tolist()
    return r, g, b


def one_of(rng: np.random.Generator, names: Sequence[str]) -> str:
    """Any of the names."""
    return names[int(rng.integers(len(names)))]


def _random_things(rng: np.random.Generator, count: int, avoid: list[Colour]) -> tuple[Thing, ...]:
    """Objects whose colours stand out from the ground's, and from each other by name."""
    visible = [
        name for name, colour in COLOURS.items() if all(_distance(colour, other) > MIN_CONTRAST for other in avoid)
    ]
    colours = [visible[i] for i in rng.permutation(len(visible))[:count]]
    return tuple(Thing(colour, one_of(rng, SHAPES)) for colour in colours)


def _distance(a: Colour, b: Colour) -> float:
    return math.dist(a, b)


def _round_outline() -> npt.NDArray[np.float64]:
    angles = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star_outline() -> npt.NDArray[np.float64]:
    angles = -math.pi / 2 + np.arange(10) * math.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _heart_outline() -> npt.NDArray[np.float64]:
    t = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], axis=1)


def _cross_outline() -> npt.NDArray[np.float64]:
    arm = 0.36  # half an arm's width
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    corners = [(x, y) for sx, sy in ((1, 1), (1, -1), (-1, -1), (-1, 1)) for x, y in _mirrored(quarter, sx, sy)]
    return np.array(corners)


def _mirrored(corners: list[tuple[float, float]], sx: int, sy: int) -> list[tuple[float, float]]:
    turned = [(sx * x, sy * y) for x, y in corners]
    return turned if sx == sy else turned[::-1]  # a mirrored quarter runs the other way round


_OUTLINES: dict[str, npt.NDArray[np.float64]] = {
    "circle": _round_outline(),
    "square": np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]),
    "triangle": np.array([(0.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]),
    "star": _star_outline(),
    "heart": _heart_outline(),
    "cross": _cross_outline(),
}
