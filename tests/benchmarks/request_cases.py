"""The requests that `make bench` times."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as grpcclient

from parameters import Parameters
from schedulers import DEFAULT_SAMPLER
from tests.integration.requests_and_pictures import Box, mask_png
from tests.integration.test_triton_clients import request

PROMPTS = ("green stripes background", "a red circle", "a blue star", "a yellow heart", "a white cross")
GUIDANCE_SCALE = 7.5
SEED = 3


@dataclass(frozen=True)
class Case:
    """One request, with the paper's stride and one negative prompt."""

    height: int
    width: int
    boxes: tuple[Box, ...]  # one a mask
    steps: int
    bootstrapping: int
    goal: float  # seconds of the published loop on the same sessions over ours

    @property
    def title(self) -> str:
        """Width x height, masks, bootstrapped and all steps."""
        masks = f"{len(self.boxes)} mask{'s' if len(self.boxes) > 1 else ''}"
        return f"{self.width}x{self.height}, {masks}, {self.bootstrapping}/{self.steps} steps"

    @property
    def prompts(self) -> tuple[str, ...]:
        """The background's and one a mask."""
        return PROMPTS[: len(self.boxes) + 1]

    def masks(self) -> npt.NDArray[np.bool_]:
        """(R - 1, height, width)"""
        masks = np.zeros((len(self.boxes), self.height, self.width), np.bool_)
        for mask, (left, top, right, bottom) in zip(masks, self.boxes, strict=True):
            mask[top:bottom, left:right] = True
        return masks

    def body(self) -> dict[str, Any]:
        """The JSON of POST /multsd."""
        return {
            "bg_prompt": self.prompts[0],
            "fg_prompt": list(self.prompts[1:]),
            "masks": [mask_png(self.width, self.height, box) for box in self.boxes],
            "width": self.width,
            "height": self.height,
            "ddim_steps": self.steps,
            "bootstrapping": self.bootstrapping,
            "seed": SEED,
        }

    def tensors(self) -> list[Any]:
        """The same for Triton's gRPC client, with the final latents."""
        return request(
            grpcclient,
            prompt=np.array([prompt.encode() for prompt in self.prompts], dtype=object),
            masks=self.masks().astype(np.uint8),
            height=np.array([self.height], np.int32),
            width=np.array([self.width], np.int32),
            num_inference_steps=np.array([self.steps], np.int32),
            bootstrapping=np.array([self.bootstrapping], np.int32),
            seed=np.array([SEED], np.uint64),
            return_latents=np.array([True]),
        )

    def parameters(self, view_stride: int) -> Parameters:
        """The same for the method itself."""
        return Parameters(
            prompt=self.prompts,
            negative_prompt=("",) * len(self.prompts),
            masks=self.masks(),
            height=self.height,
            width=self.width,
            num_inference_steps=self.steps,
            bootstrapping=self.bootstrapping,
            guidance_scale=GUIDANCE_SCALE,
            seed=SEED,
            scheduler=DEFAULT_SAMPLER,
            view_stride=view_stride,
        )


THIRDS = tuple((0, 256 * i, 512, 256 * i + 256) for i in range(3))
QUARTERS = tuple((256 * i, 0, 256 * i + 256, 512) for i in range(4))
# The first is the original API's own example; the others bootstrap the paper's fifth of the steps, and then all of
# them, as the original API's default would: while bootstrapping, regions share hardly any rows.
CASES = (
    Case(512, 512, ((128, 128, 384, 384),), steps=35, bootstrapping=20, goal=1.3),
    *(Case(768, 512, THIRDS, steps=20, bootstrapping=count, goal=1.6) for count in (4, 20)),
    *(Case(512, 1024, QUARTERS, steps=20, bootstrapping=count, goal=2.2) for count in (4, 20)),
)
