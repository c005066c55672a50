"""From parameters to a picture: encode prompts, denoise the canvas, decode and crop.

The networks are arguments: in Triton they are BLS calls, in a test functions. U texts, L tokens, D embedding,
B rows, h x w canvas in latent cells.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from checkpoint import Checkpoint, TextEncoder
from conditioning import Conditioning, join_encodings, make_time_ids
from decoding import decode
from errors import InvalidRequestError, NotFiniteError
from parameters import Parameters, count_views
from preview import preview_image
from prompts import TokenizedPrompts, tokenize_prompts
from regions import Canvas, make_canvas, overlaps, region_masks
from row_plan import Regions, count_reference_rows
from sampling import Bootstrapping, Denoising, Scheduler, draw_bootstrapping, draw_noise
from schedulers import check_sampler, make_scheduler
from views import make_views

# A seed's backgrounds are drawn apart from its noise: bootstrapping changes the picture, never the noise.
BACKGROUND_STREAM = 0x9E3779B97F4A7C15
# Views times regions. Planning that many takes about half a second, in which nobody else's picture goes on; it is room
# for 2048x2048 pixels and 32 masks at the paper's stride.
MAX_PAIRS = 25_000
Answer = TypeVar("Answer")
CompleteStep = Callable[[Denoising], Awaitable[None]]
Draw = Callable[..., Bootstrapping]  # as `draw_bootstrapping`
Encode = Callable[[TextEncoder, npt.NDArray[np.int32]], Awaitable[Mapping[str, Tensor]]]
TILE_OVERLAP = 4  # a quarter of a VAE tile is shared with each neighbour


class Networks(Protocol):
    """The networks of a latent diffusion model."""

    async def encode(self, encoder: TextEncoder, input_ids: npt.NDArray[np.int32]) -> Mapping[str, Tensor]:
        """(U, L) -> the encoder's outputs by name, such as last_hidden_state (U, L, D)."""

    async def complete_step(self, denoising: Denoising) -> None:
        """Have the UNet predict every row of a canvas's step."""

    async def vae_decoder(self, latents: Tensor) -> Tensor:
        """(1, 4, h, w) -> (1, 3, height, width), about [-1, 1]"""


@dataclass(frozen=True)
class Picture:
    """What a request gets back."""

    image: npt.NDArray[np.uint8]  # (height, width, 3)
    latents: Tensor  # (4, h, w)
    warnings: list[dict[str, str]]
    report: dict[str, Any]


@dataclass
class Stopwatch:
    """Seconds by name; what no network accounts for is the orchestration's."""

    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    async def timed(self, name: str, call: Awaitable[Answer]) -> Answer:
        """Await a network's answer and count the time."""
        start = time.perf_counter()
        try:
            return await call
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def report(self) -> dict[str, float]:
        """Seconds per network, the total, and the rest."""
        total = time.perf_counter() - self.started
        rest = {"orchestration": total - sum(self.seconds.values()), "total": total}
        return {name: round(seconds, 4) for name, seconds in (self.seconds | rest).items()}


@dataclass(frozen=True)
class Job:
    """A request made ready: all that is known before a network is asked."""

    parameters: Parameters
    prompts: TokenizedPrompts
    canvas: Canvas
    regions: Regions
    scheduler: Scheduler
    warnings: tuple[tuple[str, str], ...]  # (field, message): what was asked for and will not be had


def check(parameters: Parameters, checkpoint: Checkpoint) -> None:
    """Refuse what a checkpoint cannot paint, before any work. Raises InvalidRequestError."""
    check_sampler(parameters.scheduler, checkpoint.scheduler_config, parameters.num_inference_steps)
    views = count_views(parameters, window=checkpoint.window, cell=checkpoint.vae_scale_factor)
    if views * parameters.regions > MAX_PAIRS:
        raise InvalidRequestError(
            "view_stride",
            f"expected at most {MAX_PAIRS} pairs of view and region, found {views} views of "
            f"{parameters.regions} regions; a larger stride gives fewer views",
        )


def prepare(parameters: Parameters, checkpoint: Checkpoint) -> Job:
    """Tokenize, lay out canvas, views and masks, and make the scheduler. Raises InvalidRequestError."""
    check(parameters, checkpoint)
    scheduler = make_scheduler(parameters.scheduler, checkpoint.scheduler_config, parameters.num_inference_steps)
    prompts = tokenize_prompts(
        [encoder.tokenizer for encoder in checkpoint.text_encoders],
        parameters.prompt,
        parameters.negative_prompt,
        zero_empty_negatives=checkpoint.zero_empty_negatives,
    )
    window = checkpoint.window
    canvas = make_canvas(parameters.height, parameters.width, window=window, cell=checkpoint.vae_scale_factor)
    views = make_views(canvas.height, canvas.width, window=window, stride=parameters.view_stride)
    inside = parameters.masks != 0  # (R - 1, height, width)
    regions = Regions(
        masks=torch.from_numpy(region_masks(inside, canvas)),
        views=views,
        window=window,
        prompt_embedding=prompts.prompt_embedding,
        negative_embedding=prompts.negative_embedding,
        guidance_scale=parameters.guidance_scale,
    )
    return Job(
        parameters=parameters,
        prompts=prompts,
        canvas=canvas,
        regions=regions,
        scheduler=scheduler,
        warnings=(*parameters.warnings, *prompts.warnings, *region_warnings(parameters, inside, regions)),
    )


async def encode_prompts(job: Job, checkpoint: Checkpoint, encode: Encode) -> Conditioning:
    """Ask every text encoder for the request's texts, all at once."""
    encodings = await asyncio.gather(
        *(encode(*each) for each in zip(checkpoint.text_encoders, job.prompts.input_ids, strict=True))
    )
    time_ids = None
    if checkpoint.time_ids:
        canvas = job.canvas
        time_ids = make_time_ids(
            canvas.height, canvas.width, views=job.regions.views, window=checkpoint.window, cell=canvas.cell
        )
    return join_encodings(encodings, job.prompts.zeroed, time_ids)


def start_denoising(
    job: Job, conditioning: Conditioning, checkpoint: Checkpoint, draw: Draw = draw_bootstrapping
) -> Denoising:
    """The canvas of a job with its own random numbers, all from the request's seed; draw: of the backgrounds."""
    seed = job.parameters.seed
    generator = torch.Generator().manual_seed(seed)
    background_generator = torch.Generator().manual_seed((seed + BACKGROUND_STREAM) % 2**64)
    noise = draw_noise(job.canvas.height, job.canvas.width, channels=checkpoint.latent_channels, generator=generator)
    bootstrapping = draw(
        checkpoint.palette,
        steps=min(job.parameters.bootstrapping, job.parameters.num_inference_steps),
        views=len(job.regions.views),
        regions=job.parameters.regions,
        generator=background_generator,
    )
    return Denoising(
        noise,
        conditioning,
        scheduler=job.scheduler,
        regions=job.regions,
        bootstrapping=bootstrapping,
        generator=generator,
    )


@dataclass(frozen=True)
class Observer:
    """Who follows a request from outside. What its functions raise ends the request."""

    before_step: Callable[[int], None] = lambda _: None  # with the steps done; also before decoding
    preview: Callable[[npt.NDArray[np.uint8]], None] = lambda _: None  # (h, w, 3), a pixel for every cell in sight
    planned: Callable[[int, int], None] = lambda *_: None  # with the UNet rows to come, and the published method's


async def denoise(
    denoising: Denoising,
    complete_step: CompleteStep,
    after_step: Callable[[int, Tensor | None], None] = lambda *_: None,
    preview_every: int = 0,
) -> Tensor:
    """Take every step of a canvas: its latents (1, 4, h, w).

    after_step: with the steps done and, where a preview is due, an estimate of the clean latents.

    Raises NotFiniteError, and what else the functions raise.
    """
    while not denoising.finished:
        await complete_step(denoising)
        due = preview_every > 0 and (denoising.step + 1) % preview_every == 0
        clean = denoising.advance(estimate=due)
        check_finite(denoising.latents, "unet", f"after step {denoising.step}")
        after_step(denoising.step, clean)
    return denoising.latents


async def paint(
    parameters: Parameters,
    *,
    checkpoint: Checkpoint,
    networks: Networks,
    observer: Observer,
) -> Picture:
    """Paint one picture. Raises InvalidRequestError, NotFiniteError, and what the networks and the observer raise."""
    stopwatch = Stopwatch()
    job = await asyncio.to_thread(prepare, parameters, checkpoint)  # large masks would hold up the others
    observer.before_step(0)
    conditioning = await stopwatch.timed("text_encoder", encode_prompts(job, checkpoint, networks.encode))
    denoising = await asyncio.to_thread(start_denoising, job, conditioning, checkpoint)  # as would their plans
    reference = count_reference_rows(job.regions, num_inference_steps=parameters.num_inference_steps)
    observer.planned(denoising.total_rows, reference)

    async def complete_step(denoising: Denoising) -> None:
        await stopwatch.timed("unet", networks.complete_step(denoising))

    def after_step(step: int, clean: Tensor | None) -> None:
        observer.before_step(step)
        if clean is not None:
            observer.preview(preview_image(clean, checkpoint, job.canvas))

    latents = await denoise(denoising, complete_step, after_step, parameters.preview_every)
    sample = await stopwatch.timed("vae_decoder", decode_canvas(latents, checkpoint, networks.vae_decoder))
    return Picture(
        image=await asyncio.to_thread(to_image, sample, job.canvas),
        latents=latents[0],
        warnings=[{"field": name, "message": message} for name, message in job.warnings],
        report={
            "parameters": parameters.summary(),
            "unet_rows": denoising.rows,
            "unet_rows_reference": reference,
            "seconds": stopwatch.report(),
            "checkpoint": {"name": checkpoint.name, "digest": checkpoint.digest},
        },
    )


async def decode_canvas(
    latents: Tensor, checkpoint: Checkpoint, vae_decoder: Callable[[Tensor], Awaitable[Tensor]]
) -> Tensor:
    """The canvas (1, 4, h, w) in pixels, (1, 3, 8h, 8w)."""
    return await decode(
        latents / checkpoint.scaling_factor,
        vae_decoder,
        tile=checkpoint.vae_tile,
        overlap=checkpoint.vae_tile // TILE_OVERLAP,
        cell=checkpoint.vae_scale_factor,
    )


def to_image(sample: Tensor, canvas: Canvas) -> npt.NDArray[np.uint8]:
    """Crop the decoded canvas (1, 3, 8h, 8w) in [-1, 1] to the picture: (height, width, 3) uint8.

    Raises NotFiniteError.
    """
    picture = sample[0, :, *canvas.crop]  # (3, height, width)
    check_finite(picture, "vae_decoder", "in the picture")
    levels = ((picture / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(1, 2, 0).contiguous().numpy()


def check_finite(values: Tensor, network: str, where: str) -> None:
    """Raises NotFiniteError: such values would become black pixels without a word."""
    # A sum that is finite has finite terms alone, and takes a tenth of the time.
    if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
        raise NotFiniteError(network, where)


def region_warnings(parameters: Parameters, inside: npt.NDArray[np.bool_], regions: Regions) -> list[tuple[str, str]]:
    """What the regions cannot give, as (field, message)."""
    warnings = []
    for index, mask in enumerate(regions.masks[1:]):
        if not mask.any():
            warnings.append((f"masks[{index}]", "region is empty; its prompt has no effect"))
    if not regions.masks[0].any():
        warnings.append(("prompt[0]", "regions cover the whole picture; the background's prompt has no effect"))
    shared: dict[int, list[str]] = {}
    for first, second, pixels in overlaps(inside):
        shared.setdefault(second, []).append(f"masks[{first}] in {pixels} pixels")
    for second, others in shared.items():
        warnings.append((f"masks[{second}]", f"overlaps {', '.join(others)}; there they are averaged"))
    bootstrapped = any(bool(mask.any()) and not bool(mask.all()) for mask in regions.masks[1:])
    if bootstrapped and parameters.bootstrapping >= parameters.num_inference_steps:
        message = f"all {parameters.num_inference_steps} steps are bootstrapped: regions are never harmonised"
        warnings.append(("bootstrapping", message))
    return warnings
