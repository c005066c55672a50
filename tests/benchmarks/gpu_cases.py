"""What `make bench-gpu` measures: checkpoints of random weights, and the requests that each is asked."""

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import torch

from multsd_export.rehearsal.configs import PUBLISHED
from multsd_export.rehearsal.random_checkpoint import write_random_checkpoint
from tests.benchmarks.request_cases import Case
from tests.small_checkpoints import STRUCTURES, write_small_checkpoint

CELL = 8  # pixels per latent cell
CPU = torch.device("cpu")


class Size(StrEnum):
    """How large the networks are."""

    TINY = "tiny"  # the same structures with few channels, for a machine without a GPU
    TRUE = "true"  # Stable Diffusion 2 and XL as they are published


@dataclass(frozen=True)
class Subject:
    """One checkpoint and its requests."""

    family: str  # of `rehearsal.configs` and `small_checkpoints`
    size: Size
    window: int  # latent cells

    @property
    def name(self) -> str:
        """For tables and folders."""
        return f"{self.family}-{self.size}"

    def write_checkpoint(self, folder: Path, device: torch.device = CPU) -> None:
        """Random weights, the same in every run on a device, which draws those of true size."""
        if self.size is Size.TINY:
            write_small_checkpoint(folder, self.family)
            return
        published = PUBLISHED[self.family]
        if self.family == "sd2":  # the base model, of 512 pixels
            scheduler = {**published.scheduler, "prediction_type": "epsilon"}
            unet = {**published.unet, "sample_size": self.window, "upcast_attention": False}
            published = replace(published, title="Stable Diffusion 2 base", unet=unet, scheduler=scheduler)
        folder.mkdir(parents=True)
        write_random_checkpoint(published, folder, device=device)

    def cases(self) -> tuple[Case, ...]:
        """The requests; of tiny networks smaller in the same proportion, and with a tenth of the steps."""
        side = self.window * CELL
        cases = sdxl_cases(side) if self.family == "sdxl" else sd2_cases(side)
        if self.size is Size.TINY:
            tenths = ((case, case.steps // 10, case.bootstrapping // 10) for case in cases)
            return tuple(replace(case, steps=steps, bootstrapping=first) for case, steps, first in tenths)
        return cases


def subjects(size: Size) -> tuple[Subject, ...]:
    """Both checkpoints of a size."""
    if size is Size.TINY:
        return tuple(Subject(family, size, STRUCTURES[family].window) for family in ("sd2", "sdxl"))
    return Subject("sd2", size, 64), Subject("sdxl", size, 128)


def sd2_cases(side: int) -> tuple[Case, ...]:
    """512x512 with 1 mask, 512 wide and 768 high with 3, 2048 wide and 512 high with 4, where a side is 512 pixels."""
    quarter, half = side // 4, side // 2
    thirds = tuple((0, half * i, side, half * (i + 1)) for i in range(3))
    columns = tuple((side * i, 0, side * i + half, side) for i in range(4))
    return (
        Case(side, side, ((quarter, quarter, 3 * quarter, 3 * quarter),), steps=35, bootstrapping=20, goal=2.5),
        Case(3 * half, side, thirds, steps=50, bootstrapping=20, goal=2.5),
        Case(side, 4 * side, columns, steps=50, bootstrapping=20, goal=4.0),
    )


def sdxl_cases(side: int) -> tuple[Case, ...]:
    """1024x1024 with 3 masks, where a side is 1024 pixels."""
    half = side // 2
    quadrants = ((0, 0, half, half), (half, 0, side, half), (0, half, half, side))
    return (Case(side, side, quadrants, steps=50, bootstrapping=20, goal=2.5),)
