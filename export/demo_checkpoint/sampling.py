"""Plain text-to-image with the checkpoint's networks: what the held-out check looks at.

B prompts; latents (B, 4, c, c) of c cells a side, pictures (8c, 8c, 3).
"""

import torch
from diffusers import DDIMScheduler

from demo_checkpoint.core import POOLED, Core
from demo_checkpoint.networks import LATENT_CHANNELS, WINDOW, Networks, build_scheduler, build_tokenizer
from demo_checkpoint.pictures import Pixels


@torch.no_grad()
def sample(
    networks: Networks,
    prompts: list[str],
    *,
    seed: int,
    num_inference_steps: int = 35,
    guidance_scale: float = 7.5,
    core: Core | None = None,
    scheduler: DDIMScheduler | None = None,
) -> list[Pixels]:
    """Paint one picture a prompt with DDIM; the steps are those of the API's example, the guidance its default.

    core: paint with it, in place of the UNet, the small picture that it sees.
    scheduler: with the noise schedule that the networks were trained on; left out, `build_scheduler`'s.
    """
    generator = torch.Generator().manual_seed(seed)
    pooled = POOLED if core else 1
    shape = (len(prompts), LATENT_CHANNELS, WINDOW // pooled, WINDOW // pooled)
    latents = torch.randn(shape, generator=generator) / pooled
    network = core or networks.unet
    prompt_embeds = encode_prompts(networks, [""] * len(prompts) + prompts)  # (2B, L, D)
    scheduler = scheduler or build_scheduler()
    scheduler.set_timesteps(num_inference_steps)
    for t in scheduler.timesteps:
        rows = network(torch.cat([latents, latents]), t, prompt_embeds).sample.float()
        unconditional, conditional = rows.chunk(2)
        guided = unconditional + guidance_scale * (conditional - unconditional)
        latents = scheduler.step(guided, t, latents).prev_sample
    return decode(networks, latents)


@torch.no_grad()
def encode_prompts(networks: Networks, prompts: list[str]) -> torch.Tensor:
    """The embeddings (B, L, D) of prompts, padded to L tokens."""
    tokens = build_tokenizer()(prompts, padding="max_length", truncation=True, return_tensors="pt")
    embeds: torch.Tensor = networks.text_encoder(tokens.input_ids).last_hidden_state
    return embeds


@torch.no_grad()
def decode(networks: Networks, latents: torch.Tensor) -> list[Pixels]:
    """Pictures of latents (B, 4, h, w), one at a time: group normalisation and memory stay those of one picture."""
    pictures = []
    for row in latents / networks.vae.config.scaling_factor:
        pixels = networks.vae.decode(row[None]).sample[0].float().permute(1, 2, 0)
        pictures.append(((pixels + 1) * 127.5).round().clamp(0, 255).byte().numpy())
    return pictures
