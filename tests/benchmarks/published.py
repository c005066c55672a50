"""The published method as its authors' code runs it, to be timed beside ours: every row of every view and region.

R regions, V views, L tokens, D embedding, P pooled embedding; h x w canvas and window x window views in latent cells. A
request encodes as many constant pictures as it bootstraps steps; a view's [uncond; cond] rows of all regions are one
UNet batch, its regions take a DDIM step each, and the results are averaged. Noise, masks and the choice of backgrounds
are ours, so that both paint the same picture.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from checkpoint import Checkpoint
from conditioning import make_time_ids
from demo_checkpoint.networks import load_networks
from multsd_export.onnx_runtime import onnxruntime
from pipeline import BACKGROUND_STREAM, Job
from sampling import draw_bootstrapping, draw_noise
from tests.benchmarks.quality_painting import onnx_session

NETWORKS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
CPU = torch.device("cpu")
Network = Callable[..., Tensor]
Encode = Callable[..., tuple[Tensor, Tensor | None]]


@dataclass
class Networks:
    """Four networks as functions of tensors, and the seconds spent in each."""

    text_encoder: Encode  # (B, L) int32 of each tokenizer -> (B, L, D), and (B, P) where the UNet takes it
    unet: Network  # (B, 4, window, window), (B), (B, L, D); SDXL: (B, P), (B, 6) -> (B, 4, window, window)
    vae_decoder: Network  # (1, 4, h, w) -> (1, 3, 8h, 8w)
    vae_encoder: Network  # (1, 3, 8h, 8w) -> (1, 4, h, w)
    device: torch.device = CPU
    steps: Callable[[], AbstractContextManager[Any]] = nullcontext  # what all steps of a request run in
    wait: Callable[[], None] = lambda: None  # for what is queued on a GPU
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(NETWORKS, 0.0))

    def call(self, name: str, *inputs: Tensor) -> Any:
        """One network's answer, timed: on a GPU only until the work is queued there."""
        started = time.perf_counter()
        output = getattr(self, name)(*inputs)
        self.seconds[name] += time.perf_counter() - started
        return output

    @contextmanager
    def part(self, name: str, seconds: dict[str, float]) -> Iterator[None]:
        """Note the seconds of a part of a request, by its name, with all of its work on a GPU and no other."""
        self.wait()
        started = time.perf_counter()
        yield
        self.wait()
        seconds[name] = time.perf_counter() - started


def onnx_networks(repository: Path, threads: int) -> Networks:
    """The sessions that the cpu profile serves with."""
    text_encoder, unet, vae_decoder, vae_encoder = (
        _onnx_network(repository / name / "1" / "model.onnx", threads) for name in NETWORKS
    )
    return Networks(lambda input_ids: (text_encoder(input_ids), None), unet, vae_decoder, vae_encoder)


def torch_networks(folder: Path) -> Networks:
    """A checkpoint's own modules in float32."""
    loaded = load_networks(folder)
    unet, vae, text_encoder = (network.eval() for network in (loaded.unet, loaded.vae, loaded.text_encoder))
    return Networks(
        text_encoder=lambda input_ids: (text_encoder(input_ids=input_ids)[0], None),
        unet=lambda sample, timestep, embeds: unet(sample, timestep, embeds, return_dict=False)[0],
        vae_decoder=lambda latents: vae.decode(latents, return_dict=False)[0],
        vae_encoder=lambda sample: vae.encode(sample, return_dict=False)[0].mean,
    )


@dataclass(frozen=True)
class Painted:
    """What the published method made of a request."""

    latents: Tensor  # (1, 4, h, w)
    rows: int
    seconds: dict[str, float]  # by network, "texts", "backgrounds" and "total"


@torch.no_grad()  # as its authors: autocast keeps no cast weights in inference mode
def paint_published(job: Job, checkpoint: Checkpoint, networks: Networks) -> Painted:
    """Paint a request that is ready, with DDIM."""
    started, before = time.perf_counter(), dict(networks.seconds)
    parts: dict[str, float] = {}
    regions, window, scheduler, device = job.regions, checkpoint.window, job.scheduler, networks.device
    with networks.part("texts", parts):
        embeds, pooled = _encode(job, networks)  # (2R, L, D), (2R, P)
    sizes = _time_ids(job, checkpoint).to(device) if pooled is not None else None  # (V, 6)
    generator = torch.Generator().manual_seed(job.parameters.seed)
    noise = draw_noise(job.canvas.height, job.canvas.width, channels=checkpoint.latent_channels, generator=generator)
    noise, all_masks = noise.to(device), regions.masks.to(device)
    bootstrapping = min(job.parameters.bootstrapping, job.parameters.num_inference_steps)
    with networks.part("backgrounds", parts):
        backgrounds = _encode_backgrounds(bootstrapping, checkpoint, networks)
    choices = _choices(job, checkpoint, bootstrapping)

    latents, rows = noise * scheduler.init_noise_sigma, 0
    with networks.steps():
        for step, t in enumerate(scheduler.timesteps):
            value, count = torch.zeros_like(latents), torch.zeros_like(latents)
            for view, (top, left) in enumerate(regions.views):
                inside = (..., slice(top, top + window), slice(left, left + window))
                masks = all_masks[inside][:, None].float()  # (R, 1, window, window)
                seen = latents[inside].repeat(len(masks), 1, 1, 1)  # (R, 4, window, window)
                if step < bootstrapping and len(masks) > 1:
                    colours = backgrounds[choices[step, view, 1:].long()]
                    noised = scheduler.add_noise(colours, noise[inside], t[None].to(device))
                    seen[1:] = seen[1:] * masks[1:] + noised * (1 - masks[1:])
                timesteps = t.to(device, torch.float32).expand(len(embeds))
                added = () if pooled is None or sizes is None else (pooled, sizes[view].expand(len(embeds), -1))
                uncond, cond = networks.call("unet", torch.cat([seen, seen]), timesteps, embeds, *added).chunk(2)
                rows += len(embeds)
                noise_pred = uncond + job.parameters.guidance_scale * (cond - uncond)
                prev = scheduler.step(noise_pred, t, seen, return_dict=False)[0]
                value[inside] += (prev * masks).sum(dim=0, keepdim=True)
                count[inside] += masks.sum(dim=0, keepdim=True)
            latents = torch.where(count > 0, value / count.clamp(min=1), value)
    networks.call("vae_decoder", latents / checkpoint.scaling_factor).cpu()  # waits for all that is queued
    seconds = {name: after - before[name] for name, after in networks.seconds.items()}
    return Painted(latents.cpu(), rows, seconds | parts | {"total": time.perf_counter() - started})


def _encode_backgrounds(count: int, checkpoint: Checkpoint, networks: Networks) -> Tensor:
    """Encodes `count` pictures of one colour, as the published method does; used are those that ours has ready."""
    side = checkpoint.window * checkpoint.vae_scale_factor
    for colour in (torch.rand(count, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(networks.device):
        networks.call("vae_encoder", colour[None, :, None, None].expand(1, 3, side, side).contiguous())
    return checkpoint.palette.to(networks.device)


def _encode(job: Job, networks: Networks) -> tuple[Tensor, Tensor | None]:
    """[uncond; cond] of all regions; texts whose embeddings are zeros for this checkpoint have zeros."""
    rows = [*job.prompts.negative_embedding, *job.prompts.prompt_embedding]
    ids = [torch.from_numpy(each[rows]).to(networks.device) for each in job.prompts.input_ids]
    kept = ~torch.tensor(job.prompts.zeroed, device=networks.device)[rows]
    embeds, pooled = networks.call("text_encoder", *ids)
    return embeds * kept[:, None, None], None if pooled is None else pooled * kept[:, None]


def _time_ids(job: Job, checkpoint: Checkpoint) -> Tensor:
    """SDXL's sizes of each view, as `pipeline` has them."""
    return make_time_ids(
        job.canvas.height,
        job.canvas.width,
        views=job.regions.views,
        window=checkpoint.window,
        cell=checkpoint.vae_scale_factor,
    )


def _choices(job: Job, checkpoint: Checkpoint, bootstrapping: int) -> Tensor:
    """Which background each step, view and region sees: (steps, V, R)."""
    return draw_bootstrapping(
        checkpoint.palette,
        steps=bootstrapping,
        views=len(job.regions.views),
        regions=job.parameters.regions,
        generator=torch.Generator().manual_seed((job.parameters.seed + BACKGROUND_STREAM) % 2**64),
    ).choices


def _onnx_network(file: Path, threads: int) -> Network:
    session: onnxruntime.InferenceSession = onnx_session(file, threads)
    names = [tensor.name for tensor in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        arrays: dict[str, npt.NDArray[Any]] = {
            name: np.ascontiguousarray(tensor.numpy()) for name, tensor in zip(names, inputs, strict=True)
        }
        return torch.from_numpy(session.run(None, arrays)[0])

    return run
