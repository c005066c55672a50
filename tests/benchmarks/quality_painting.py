"""Paint the benchmark's requests as the service would: its own method and its exported networks, in this process.

V views, R regions, P colours of the palette; h x w canvas and window in latent cells.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from batching import UNetBatcher
from checkpoint import Checkpoint, TextEncoder
from demo_checkpoint.pictures import Pixels
from multsd_export.onnx_runtime import onnxruntime
from parameters import Parameters
from pipeline import Draw, decode_canvas, denoise, encode_prompts, prepare, start_denoising, to_image
from sampling import Bootstrapping, UNetRows, draw_bootstrapping
from schedulers import DEFAULT_SAMPLER
from tests.benchmarks.quality_requests import Request

GUIDANCE_SCALE = 7.5


def draw_fixed(palette: Tensor, *, steps: int, views: int, regions: int, generator: torch.Generator) -> Bootstrapping:
    """A colour for each view and region, the same in every step."""
    once = draw_bootstrapping(palette, steps=1, views=views, regions=regions, generator=generator)
    return Bootstrapping(palette=palette, choices=once.choices.expand(steps, -1, -1))


@dataclass(frozen=True)
class Variant:
    """A way to paint a request."""

    name: str
    title: str
    bootstrapping: float  # share of the steps
    masked: bool = True  # False: all prompts joined, without masks
    draw: Draw = draw_bootstrapping

    def parameters(self, request: Request, *, num_inference_steps: int, view_stride: int) -> Parameters:
        """What is asked of the method."""
        prompt = request.prompts if self.masked else (request.joined_prompt,)
        return Parameters(
            prompt=prompt,
            negative_prompt=("",) * len(prompt),
            masks=request.masks if self.masked else np.zeros((0, request.height, request.width), np.bool_),
            height=request.height,
            width=request.width,
            num_inference_steps=num_inference_steps,
            bootstrapping=round(self.bootstrapping * num_inference_steps),
            guidance_scale=GUIDANCE_SCALE,
            seed=request.seed,
            scheduler=DEFAULT_SAMPLER,
            view_stride=view_stride,
        )


VARIANTS = (
    Variant("text", "text alone", 0.0, masked=False),
    Variant("0", "0 %", 0.0),
    Variant("20", "20 %", 0.2),
    Variant("20_fixed", "20 %, fixed", 0.2, draw=draw_fixed),
    Variant("40", "40 %", 0.4),
)


class Networks(Protocol):
    """What painting asks of the networks."""

    async def encode(self, encoder: TextEncoder, input_ids: npt.NDArray[np.int32]) -> Mapping[str, Tensor]:
        """(U, L) -> last_hidden_state (U, L, D)"""

    async def unet(self, rows: UNetRows) -> Tensor:
        """(B, 4, window, window) and what goes with it -> (B, 4, window, window)"""

    async def vae_decoder(self, latents: Tensor) -> Tensor:
        """(1, 4, h, w) -> (1, 3, height, width), about [-1, 1]"""


class OnnxNetworks:
    """A composed repository's networks, run by ONNX Runtime as its cpu profile does."""

    def __init__(self, repository: Path, threads: int) -> None:
        self._sessions = {
            name: onnx_session(repository / name / "1" / "model.onnx", threads)
            for name in ("text_encoder", "unet", "vae_decoder")
        }

    async def encode(self, encoder: TextEncoder, input_ids: npt.NDArray[np.int32]) -> Mapping[str, Tensor]:
        """(U, L) -> last_hidden_state (U, L, D)"""
        return {"last_hidden_state": self._run(encoder.model, "last_hidden_state", {"input_ids": input_ids})}

    async def unet(self, rows: UNetRows) -> Tensor:
        """(B, 4, window, window) and what goes with it -> (B, 4, window, window)"""
        names = ("sample", "timestep", "encoder_hidden_states")
        return self._run("unet", "out_sample", {name: getattr(rows, name).numpy() for name in names})

    async def vae_decoder(self, latents: Tensor) -> Tensor:
        """(1, 4, h, w) -> (1, 3, height, width), about [-1, 1]"""
        return self._run("vae_decoder", "sample", {"latent_sample": latents.numpy()})

    def _run(self, network: str, output: str, inputs: dict[str, npt.NDArray[Any]]) -> Tensor:
        return torch.from_numpy(self._sessions[network].run([output], inputs)[0])


@dataclass(frozen=True)
class Painter:
    """What every picture of a run has in common."""

    checkpoint: Checkpoint
    networks: Networks
    num_inference_steps: int

    def paint(self, request: Request, variant: Variant, view_stride: int | None = None) -> tuple[Pixels, int]:
        """A picture (height, width, 3) and the UNet rows that it took; may be called from several threads."""
        stride = view_stride or self.checkpoint.view_stride
        steps = self.num_inference_steps
        parameters = variant.parameters(request, num_inference_steps=steps, view_stride=stride)
        return asyncio.run(paint(parameters, checkpoint=self.checkpoint, networks=self.networks, draw=variant.draw))


async def paint(
    parameters: Parameters, *, checkpoint: Checkpoint, networks: Networks, draw: Draw
) -> tuple[Pixels, int]:
    """`pipeline.paint` with the draw of the backgrounds as an argument."""
    job = prepare(parameters, checkpoint)
    conditioning = await encode_prompts(job, checkpoint, networks.encode)
    denoising = start_denoising(job, conditioning, checkpoint, draw)
    batcher = UNetBatcher(networks.unet, max_batch_size=checkpoint.unet_max_batch_size)
    latents = await denoise(denoising, batcher.complete_step)
    return to_image(await decode_canvas(latents, checkpoint, networks.vae_decoder), job.canvas), denoising.rows


def onnx_session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    """A network with the session options of the cpu profile."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
