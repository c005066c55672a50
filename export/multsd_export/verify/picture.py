"""Hold a whole picture to the method on torch: the repository's own orchestrator, with torch's networks in it.

What differs between the two is what runs in Triton: networks, batches, transport. That the orchestrator is the
published method is shown elsewhere, without Triton. R regions, L tokens, D embedding, h x w canvas in latent cells.
"""

import asyncio
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from multsd_export.errors import ServerError, TorchError
from multsd_export.networks import Network
from multsd_export.parity import relative_error
from multsd_export.profiles import Precision
from multsd_export.verify.networks import CONSISTENT
from multsd_export.verify.reference import Reference
from multsd_export.verify.report import Check
from multsd_export.verify.server import Array, Server

if TYPE_CHECKING:  # modules of the repository's `multidiffusion` model, found on the path that `_reference` extends
    from checkpoint import TextEncoder
    from sampling import Denoising

MODEL = "multidiffusion_unary"
ORCHESTRATOR = Path("multidiffusion") / "1"
PROMPTS, NEGATIVES = ("a green meadow under a grey sky", "a red boat"), ("", "blurred")
OTHER_PROMPTS = ("a dark forest", "a white horse")
SEED, GUIDANCE_SCALE = 7, 7.5
# Errors of a step enter the next and guidance multiplies them, so a picture may differ by more than a network.
LATENT_LIMITS = {Precision.FP32: 1e-3, Precision.FP16: 5e-2}  # largest difference over largest value
PSNR_LIMITS = {Precision.FP32: 50.0, Precision.FP16: 30.0}  # dB


@dataclass(frozen=True)
class TorchNetworks:
    """The networks that the orchestrator asks, in torch."""

    reference: Reference
    max_batch_size: int

    async def encode(self, encoder: "TextEncoder", input_ids: Array) -> dict[str, torch.Tensor]:
        """(U, L) -> last_hidden_state (U, L, D), and text_embeds where the encoder has it."""
        tensors = self.reference.run(encoder.model, torch.from_numpy(input_ids))
        return dict(zip(encoder.outputs, tensors, strict=True))

    async def complete_step(self, denoising: "Denoising") -> None:
        """Predict every row of a canvas's step."""
        while denoising.untaken:
            rows = denoising.take(self.max_batch_size)
            added = [each for each in (rows.text_embeds, rows.time_ids) if each is not None]
            inputs = (rows.sample, rows.timestep, rows.encoder_hidden_states, *added)
            (prediction,) = self.reference.run("unet", *inputs)
            denoising.give(rows, prediction)

    async def vae_decoder(self, latents: torch.Tensor) -> torch.Tensor:
        """(1, 4, h, w) -> (1, 3, 8h, 8w)"""
        (decoded,) = self.reference.run("vae_decoder", latents)
        return decoded


def verify_picture(
    server: Server, repository: Path, networks: TorchNetworks, network: Network, window: int, steps: int
) -> list[Check]:
    """Every check of a whole picture, one and a half windows wide.

    Args:
        network: the UNet, whose precision sets the limits.
        window: pixels.
        steps: of the sampler.
    """
    try:
        first, consistent = _answers(server, "picture", window, steps)
    except ServerError as error:
        return [Check("picture", "is painted", False, str(error))]
    try:
        image, latents = _reference(repository, networks, picture_inputs(window, steps, PROMPTS))
    except TorchError as error:
        return [Check("picture", "has torch's latents", False, str(error)), consistent]
    return [
        _same_latents("has torch's latents", "picture", first["latents"], latents, network.precision),
        _same_image("looks like torch's", "picture", first["image"], image, network.precision),
        consistent,
    ]


def verify_graphs_picture(server: Server, graphs: Server, network: Network, window: int, steps: int) -> list[Check]:
    """A picture by a server that replays CUDA graphs, beside that of the first one."""
    subject = "picture, CUDA graphs"
    try:
        plain = _paint(server, picture_inputs(window, steps, PROMPTS))
        first, consistent = _answers(graphs, subject, window, steps)
    except ServerError as error:
        return [Check(subject, "is painted", False, str(error))]
    return [
        _same_latents(
            "has the latents of the first server", subject, first["latents"], plain["latents"], network.precision
        ),
        consistent,
    ]


def _answers(server: Server, subject: str, window: int, steps: int) -> tuple[dict[str, Array], Check]:
    """A's picture, and whether A, B, A have the same bits for A alone. Raises ServerError."""
    inputs, others = (picture_inputs(window, steps, prompts) for prompts in (PROMPTS, OTHER_PROMPTS))
    first, other, again = (_paint(server, each) for each in (inputs, others, inputs))
    repeated = all(np.array_equal(first[name], again[name]) for name in first)
    differs = not np.array_equal(first["latents"], other["latents"])
    found = {(True, True): "the same bits", (False, True): "A's second picture differs"}
    detail = found.get((repeated, differs), "B's picture is A's")
    return first, Check(subject, CONSISTENT, repeated and differs, detail)


def _same_latents(name: str, subject: str, latents: Array, expected: Array, precision: Precision) -> Check:
    difference, limit = relative_error(latents, expected), LATENT_LIMITS[precision]
    detail = f"{difference:.2g} apart (relative), limit {limit:g}"
    return Check(subject, name, difference <= limit, detail, difference)


def _same_image(name: str, subject: str, image: Array, expected: Array, precision: Precision) -> Check:
    decibels, limit = psnr(image, expected), PSNR_LIMITS[precision]
    detail = f"{decibels:.1f} dB, at least {limit:g}"
    return Check(subject, name, decibels >= limit, detail, min(decibels, 999.0))  # JSON has no infinity


def picture_inputs(window: int, steps: int, prompts: tuple[str, ...]) -> dict[str, Array]:
    """A request of two regions; the second is a box in the middle."""
    height, width = window, window * 3 // 2
    mask = np.zeros((1, height, width), np.uint8)
    mask[:, height // 4 : -height // 4, width // 3 : -width // 3] = 1
    return {
        "prompt": np.array([text.encode() for text in prompts], dtype=np.object_),
        "negative_prompt": np.array([text.encode() for text in NEGATIVES], dtype=np.object_),
        "masks": mask,
        "height": np.array([height], np.int32),
        "width": np.array([width], np.int32),
        "num_inference_steps": np.array([steps], np.int32),
        "bootstrapping": np.array([steps // 3], np.int32),
        "guidance_scale": np.array([GUIDANCE_SCALE], np.float32),
        "seed": np.array([SEED], np.uint64),
        "return_latents": np.array([True]),
    }


def psnr(image: Array, expected: Array) -> float:
    """Peak signal to noise of uint8 pictures in dB; infinite where they are equal."""
    error = float(np.mean((image.astype(np.float64) - expected.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def _paint(server: Server, inputs: Mapping[str, Array]) -> dict[str, Array]:
    return server.infer(MODEL, inputs, ["image", "latents"])


def _reference(repository: Path, networks: TorchNetworks, inputs: Mapping[str, Array]) -> tuple[Array, Array]:
    """The same request by the orchestrator's own code: image (height, width, 3) uint8 and latents (4, h, w)."""
    code = (repository / ORCHESTRATOR).resolve()
    sys.path.insert(0, str(code))
    from checkpoint_files import load_checkpoint
    from parameters import Parameters
    from pipeline import Observer, paint

    checkpoint = load_checkpoint(code / "checkpoint")
    parameters = Parameters(
        prompt=tuple(text.decode() for text in inputs["prompt"]),
        negative_prompt=tuple(text.decode() for text in inputs["negative_prompt"]),
        masks=inputs["masks"] != 0,
        height=int(inputs["height"][0]),
        width=int(inputs["width"][0]),
        num_inference_steps=int(inputs["num_inference_steps"][0]),
        bootstrapping=int(inputs["bootstrapping"][0]),
        guidance_scale=float(inputs["guidance_scale"][0]),
        seed=int(inputs["seed"][0]),
        scheduler="ddim",
        view_stride=checkpoint.view_stride,
        return_latents=True,
    )
    picture = asyncio.run(paint(parameters, checkpoint=checkpoint, networks=networks, observer=Observer()))
    return picture.image, picture.latents.numpy()
