"""Reads what the export lays beside this model: the only module of the method that touches files."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tokenizers import Tokenizer

from checkpoint import Checkpoint, TextEncoder
from preview import fit_preview
from prompts import PromptTokenizer


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
