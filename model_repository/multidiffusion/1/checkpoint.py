"""What the orchestrator knows of the checkpoint: the files that the export lays beside this module.

P colours, window and h x w in latent cells.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from prompts import PromptTokenizer

RIDGE = 1e-3  # of the channels' mean variance


@dataclass(frozen=True)
class TextEncoder:
    """One text encoder: a model on the server, and how its tokens are made."""

    model: str
    outputs: tuple[str, ...]
    tokenizer: PromptTokenizer


@dataclass(frozen=True)
class Checkpoint:
    """A pretrained latent diffusion model, as far as it is not a network."""

    name: str
    digest: str
    window: int  # side of a view in latent cells; the UNet's only size
    view_stride: int  # latent cells
    latent_channels: int
    vae_scale_factor: int  # pixels per latent cell and side
    scaling_factor: float  # of latents against the VAE's own
    unet_max_batch_size: int
    vae_tile: int  # latent cells; a canvas with a longer side is decoded in tiles
    scheduler_config: dict[str, Any]
    text_encoders: tuple[TextEncoder, ...]  # in the order in which the UNet takes their hidden states
    time_ids: bool  # whether the UNet takes sizes and crops
    zero_empty_negatives: bool  # whether a negative prompt that says nothing has embeddings of zeros
    palette: Tensor  # (P, latent_channels, window, window) encoded constant colours, scaled
    preview: Tensor  # (latent_channels + 1, 3), a scaled latent cell followed by 1 -> its colour, about [0, 1]


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read settings.json, scheduler_config.json, palette.safetensors and the tokenizers that the settings name."""
    settings = json.loads((folder / "settings.json").read_text())
    palette = load_file(folder / "palette.safetensors")
    return Checkpoint(
        name=settings["name"],
        digest=settings["digest"],
        window=settings["window"],
        view_stride=settings["view_stride"],
        latent_channels=settings["latent_channels"],
        vae_scale_factor=settings["vae_scale_factor"],
        scaling_factor=settings["scaling_factor"],
        unet_max_batch_size=settings["unet_max_batch_size"],
        vae_tile=settings["vae_tile"],
        scheduler_config=json.loads((folder / "scheduler_config.json").read_text()),
        text_encoders=tuple(_text_encoder(folder, each) for each in settings["text_encoders"]),
        time_ids=settings["time_ids"],
        zero_empty_negatives=settings["force_zeros_for_empty_prompt"],
        palette=palette["latents"],
        preview=fit_preview(palette["latents"], palette["colours"]),
    )


def fit_preview(latents: Tensor, colours: Tensor) -> Tensor:
    """The affine map from a scaled latent cell to its colour that is nearest for constant pictures: ridge regression.

    A channel that hardly differs between constant pictures says nothing of colour. Least squares alone would give it
    any weight, which a painted picture, where it does differ, would show.

    latents: (P, C, window, window). colours: (P, 3) in [0, 1). Returns (C + 1, 3).
    """
    middle = latents.shape[-1] // 2
    cells = latents[:, :, middle, middle]  # away from the picture's edges
    mean, mean_colour = cells.mean(dim=0), colours.mean(dim=0)
    centred = cells - mean
    penalty = RIDGE * centred.square().mean() * len(cells) * torch.eye(cells.shape[1])
    weights: Tensor = torch.linalg.solve(centred.T @ centred + penalty, centred.T @ (colours - mean_colour))
    return torch.cat([weights, (mean_colour - mean @ weights)[None]])


def _text_encoder(folder: Path, settings: dict[str, Any]) -> TextEncoder:
    return TextEncoder(
        model=settings["model"],
        outputs=tuple(settings["outputs"]),
        tokenizer=PromptTokenizer(
            tokenizer=Tokenizer.from_file(str(folder / settings["tokenizer"])),
            max_length=settings["max_length"],
            pad_token_id=settings["pad_token_id"],
        ),
    )
