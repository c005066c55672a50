"""Scenes drawn as latents, many at a time, on whatever device trains on them.

B scenes, K items a scene, a veil the last of them; (c, c) cells a picture, whose mean colours are what the encoder
makes of them. Colours are in [-1, 1], lengths are fractions of the picture's side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812

from demo_checkpoint.language import PLAIN, SHAPES, TEXTURES
from demo_checkpoint.pictures import Colour, Item, Placement, Scene, shape_coverage

MOST_ITEMS = 2  # of a scene, besides its veil
POINTS_A_CELL = 8  # a side, of a core's cells of 32 px
_TEMPLATE_SIDE = 128
_TEMPLATE_RADIUS = 0.4  # of a template's side: what grid_sample takes for 1 is this
_ABSENT = -1
_TEXTURES = (PLAIN, *TEXTURES)


@dataclass(frozen=True)
class SceneBatch:
    """The numbers of B scenes."""

    grounds: torch.Tensor  # (B, 2, 3) float: colour and the texture's tone
    textures: torch.Tensor  # (B) int: of PLAIN and TEXTURES
    waves: torch.Tensor  # (B, 4) float: period, angle, phase
    shapes: torch.Tensor  # (B, K + 1) int: of SHAPES, _ABSENT for none
    places: torch.Tensor  # (B, K + 1, 5) float: centre, radii, tilt
    colours: torch.Tensor  # (B, K + 1, 3) float

    @classmethod
    def of(cls, scenes: Sequence[Scene]) -> Self:
        """Scenes as numbers, on the CPU."""
        items = [[*scene.items, *[None] * (MOST_ITEMS - len(scene.items)), scene.veil] for scene in scenes]
        return cls(
            grounds=_colours([(scene.ground, scene.waves.tone if scene.waves else scene.ground) for scene in scenes]),
            textures=torch.tensor([_TEXTURES.index(s.waves.texture if s.waves else PLAIN) for s in scenes]),
            waves=torch.tensor([_wave_numbers(scene) for scene in scenes]),
            shapes=torch.tensor([[SHAPES.index(i.shape) if i else _ABSENT for i in each] for each in items]),
            places=torch.tensor([[_place_numbers(item) for item in each] for each in items]),
            colours=_colours([[item.colour if item else (0, 0, 0) for item in each] for each in items]),
        )

    def to(self, device: torch.device) -> Self:
        """The same numbers on a device."""
        return type(self)(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    def pin_memory(self) -> Self:
        """The same numbers where a GPU can fetch them by itself: torch's DataLoader asks for it by this name."""
        return type(self)(*(getattr(self, field.name).pin_memory() for field in fields(self)))

    @property
    def veiled(self) -> torch.Tensor:
        """Which scenes have a veil: (B) bool."""
        return self.shapes[:, -1] != _ABSENT


def draw_latents(batch: SceneBatch, cells: int, points: int = POINTS_A_CELL) -> tuple[torch.Tensor, torch.Tensor]:
    """What scenes are and what they show with their veils: unscaled latents, (B, 4, c, c) each.

    points: samples of a cell, a side.
    """
    axis = (torch.arange(cells * points, device=batch.places.device) + 0.5) / (cells * points)
    y, x = (each[None] for each in torch.meshgrid(axis, axis, indexing="ij"))  # (1, N, N)
    ground, tone = batch.grounds[:, :, :, None, None].unbind(1)  # (B, 3, 1, 1)
    drawn = torch.lerp(ground, tone, _texture(batch, x, y)[:, None])
    for item in range(MOST_ITEMS):
        drawn = _lay(batch, item, drawn, x, y)
    shown = _lay(batch, MOST_ITEMS, drawn, x, y)
    return _cell_means(drawn, points), _cell_means(shown, points)


def _lay(batch: SceneBatch, item: int, drawn: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Pictures (B, 3, N, N) with each one's item of that number on top."""
    centre_x, centre_y, radius_x, radius_y, tilt = batch.places[:, item, :, None, None].unbind(1)  # (B, 1, 1)
    dx, dy, cos, sin = x - centre_x, y - centre_y, tilt.cos(), tilt.sin()
    grid = torch.stack([(dx * cos + dy * sin) / radius_x, (dy * cos - dx * sin) / radius_y], dim=-1)
    shapes = batch.shapes[:, item]
    templates = _templates(drawn.device)[shapes.clamp(min=0)]
    coverage = F.grid_sample(templates, grid * (2 * _TEMPLATE_RADIUS), align_corners=False)  # (B, 1, N, N)
    coverage = coverage * (shapes != _ABSENT)[:, None, None, None]
    return torch.lerp(drawn, batch.colours[:, item, :, None, None], coverage)


def _texture(batch: SceneBatch, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Where a texture's second tone is: (B, N, N), 0 or 1. The formulas are `pictures.texture_coverage`'s."""
    period, angle, *phase = batch.waves[:, :, None, None].unbind(1)
    cos, sin = angle.cos(), angle.sin()
    waves_u = (2 * torch.pi * ((x * cos + y * sin) / period + phase[0])).cos()
    waves_v = (2 * torch.pi * ((y * cos - x * sin) / period + phase[1])).cos()
    fields = {PLAIN: -waves_u.abs(), "stripes": waves_u, "dots": (waves_u + waves_v) / 2 - 0.35}
    field = fields[PLAIN]
    for number, texture in enumerate(_TEXTURES):
        value = waves_u * waves_v if texture == "checks" else fields[texture]
        field = torch.where(batch.textures[:, None, None] == number, value, field)
    return (field > 0).float()


def _cell_means(pictures: torch.Tensor, points: int) -> torch.Tensor:
    return F.pad(F.avg_pool2d(pictures, points), (0, 0, 0, 0, 0, 1))


@cache
def _templates(device: torch.device) -> torch.Tensor:
    """Every shape's coverage: (SHAPES, 1, side, side)."""
    place = Placement((0.5, 0.5), (_TEMPLATE_RADIUS, _TEMPLATE_RADIUS))
    forms = [torch.from_numpy(shape_coverage(shape, place, _TEMPLATE_SIDE)) for shape in SHAPES]
    return torch.stack(forms)[:, None].to(device)


def _colours(values: Sequence[Sequence[Colour]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32) / 127.5 - 1


def _wave_numbers(scene: Scene) -> tuple[float, ...]:
    waves = scene.waves
    return (waves.period, waves.angle, *waves.phase) if waves else (1.0, 0.0, 0.0, 0.0)


def _place_numbers(item: Item | None) -> tuple[float, ...]:
    place = item.placement if item else Placement((0.5, 0.5), (1.0, 1.0))
    return (*place.centre, *place.radii, place.tilt)
