"""The published region-based loop, written to be read: one scheduler step per view and region, x_prev averaged.

R regions, V views, h x w canvas and window x window views in latent cells. It follows section by section what Bar-Tal
et al. publish (ICML 2023, eq. 5, 8 and 9), on given masks, noise and backgrounds, and knows nothing of the project.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

UNet = Callable[[Tensor, Tensor, Tensor], Tensor]  # sample (B, 4, n, n), timestep (B), embeddings (B, L, D)


def paint_with_plain_loop(
    noise: Tensor,  # (1, 4, h, w)
    *,
    masks: Tensor,  # (R, h, w) of 0 and 1, the background first
    prompt_embeds: Sequence[Tensor],  # R times (1, L, D)
    negative_embeds: Sequence[Tensor],  # R times (1, L, D)
    corners: Sequence[tuple[int, int]],  # V times (top, left)
    window: int,
    make_scheduler: Callable[[], Any],
    unet: UNet,
    guidance_scale: float,
    bootstrapping: int,
    background: Callable[[int, int, int], Tensor],  # (step, view, region) -> (1, 4, window, window)
    added_noise: Callable[[int, int], Any] | None = None,  # (step, view) -> what the sampler's step draws noise from
) -> Tensor:
    """The denoised latents (1, 4, h, w)."""
    scheduler = make_scheduler()
    latents: Tensor = noise * scheduler.init_noise_sigma
    # A multistep sampler remembers its last outputs: every view and region needs a sampler of its own.
    schedulers = {(v, r): make_scheduler() for v in range(len(corners)) for r in range(len(masks))}

    for step, t in enumerate(scheduler.timesteps):
        value = torch.zeros_like(latents)
        count = torch.zeros_like(latents)
        for v, (top, left) in enumerate(corners):
            inside = (..., slice(top, top + window), slice(left, left + window))
            seen = []
            for r in range(len(masks)):
                x = latents[inside]
                if step < bootstrapping and r > 0:
                    mask = masks[r][inside].to(latents.dtype)
                    noised = schedulers[v, r].add_noise(background(step, v, r), noise[inside], t[None])
                    x = x * mask + noised * (1 - mask)
                seen.append(x)

            model_input = torch.cat([schedulers[v, r].scale_model_input(seen[r], t) for r in range(len(masks))])
            embeds = torch.cat([*negative_embeds, *prompt_embeds])  # (2R, L, D)
            timestep = t.to(torch.float32).expand(len(embeds))
            uncond, cond = unet(torch.cat([model_input] * 2), timestep, embeds).chunk(2)
            noise_pred = uncond + guidance_scale * (cond - uncond)  # (R, 4, window, window)

            for r in range(len(masks)):
                mask = masks[r][inside].to(latents.dtype)
                draws = {} if added_noise is None else {"generator": added_noise(step, v)}
                prev = schedulers[v, r].step(noise_pred[r : r + 1], t, seen[r], return_dict=False, **draws)[0]
                value[inside] += prev * mask
                count[inside] += mask
        latents = torch.where(count > 0, value / count.clamp(min=1), value)
    return latents


def copy_of(scheduler: Any) -> Callable[[], Any]:
    """Fresh copies of a scheduler at its first step."""
    return lambda: copy.deepcopy(scheduler)
