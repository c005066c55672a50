"""What an export needs to know of a checkpoint, read from the checkpoint's own files without importing torch.

Supported are the families of `families`; everything else is refused by name.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multsd_export.digests import file_digest, value_digest
from multsd_export.errors import CheckpointError
from multsd_export.families import (
    Family,
    TextEncoderSlot,
    detect_family,
    is_number,
    positive_integer,
    text_encoder_slots,
)
from multsd_export.lora import Lora
from multsd_export.sources import Source, folder_source
from multsd_export.tokenizer import ConvertedTokenizer, convert_tokenizer
from multsd_export.weights import DIFFUSERS, TRANSFORMERS, Weights, conversion, find_weights

TOKENIZER_FILES = (("vocab.json", "merges.txt"), ("tokenizer.json",))  # either will do


@dataclass(frozen=True)
class TextEncoderFacts:
    """One text encoder and the tokenizer that feeds it."""

    model: str  # the component's and the Triton model's name
    tokenizer: str  # the component's name
    outputs: tuple[str, ...]
    max_length: int  # tokens per prompt
    vocab_size: int
    hidden_size: int
    converted: ConvertedTokenizer = field(repr=False)


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint folder: the numbers that the exported repository depends on, and the digest of every file used."""

    path: Path
    source: Source
    family: Family
    window: int  # side of the UNet's input, latent cells
    latent_channels: int
    vae_scale_factor: int  # pixels per latent cell, one direction
    scaling_factor: float  # latents = posterior mean * scaling_factor
    text_encoders: tuple[TextEncoderFacts, ...]  # in the order in which the UNet takes their hidden states
    embedding_dim: int  # of the hidden states of all text encoders, side by side
    pooled_dim: int | None  # of text_embeds, where the UNet takes them
    time_ids: bool  # whether the UNet takes sizes and crops
    force_zeros_for_empty_prompt: bool
    upcast_attention: bool  # the UNet's attention overflows in half precision
    vae_upcast: bool  # the VAE does
    prediction_type: str
    weights: Mapping[str, Weights]  # component -> its files
    loras: tuple[Lora, ...]  # fused into UNet and text encoders, in this order
    files: Mapping[str, str]  # path relative to the folder -> sha256

    @property
    def name(self) -> str:
        """The folder's name, or the hub repository's."""
        return self.source.name

    @property
    def revision(self) -> str | None:
        """The hub repository's commit."""
        return self.source.revision

    @property
    def digest(self) -> str:
        """One digest for the whole checkpoint, what is fused into it included."""
        return f"sha256:{value_digest([dict(self.files), *self.lora_records()] if self.loras else dict(self.files))}"

    def lora_records(self) -> list[dict[str, str | float]]:
        """Every fused LoRA's name, scale and digest."""
        return [lora.record() for lora in self.loras]

    def component_digests(self, component: str) -> dict[str, str]:
        """Digests of the files of one sub-folder, such as `unet`."""
        return {name: digest for name, digest in self.files.items() if name.startswith(f"{component}/")}


def read_checkpoint(path: Path, source: Source | None = None, loras: Sequence[Lora] = ()) -> Checkpoint:
    """Read and check a checkpoint folder.

    Args:
        source: where the folder was taken from; left out, it is told by the folder itself.

    Raises:
        CheckpointError: something is missing, unsupported or not safetensors; the message names it.
    """
    _check_folder(path)
    model_index = _read_json(path / "model_index.json")
    slots = text_encoder_slots(str(model_index.get("_class_name")))
    encoders = [slot.model for slot in slots]
    weights = {
        **{name: find_weights(path / name, TRANSFORMERS) for name in encoders},
        **{name: find_weights(path / name, DIFFUSERS) for name in ("unet", "vae")},
    }
    config_files = [path / name / "config.json" for name in weights]
    config_files.append(path / "scheduler" / "scheduler_config.json")
    configs = {file.parent.name: _read_json(file) for file in config_files}
    family = detect_family(model_index, configs)
    files = [path / "model_index.json", *config_files, *(file for found in weights.values() for file in found.files)]
    for slot in slots:
        files += _tokenizer_files(path / slot.tokenizer)
    unet, vae = configs["unet"], configs["vae"]
    sdxl = family is Family.SDXL
    return Checkpoint(
        path=path,
        source=source or folder_source(path),
        family=family,
        window=_window(unet),
        latent_channels=positive_integer(unet, "unet", "in_channels"),
        vae_scale_factor=2 ** (len(vae["block_out_channels"]) - 1),
        scaling_factor=_scaling_factor(vae),
        text_encoders=tuple(_text_encoder(slot, configs[slot.model], path) for slot in slots),
        embedding_dim=positive_integer(unet, "unet", "cross_attention_dim"),
        pooled_dim=positive_integer(configs["text_encoder_2"], "text_encoder_2", "projection_dim") if sdxl else None,
        time_ids=sdxl,
        force_zeros_for_empty_prompt=sdxl and bool(model_index.get("force_zeros_for_empty_prompt", True)),
        upcast_attention=bool(unet.get("upcast_attention", False)),
        vae_upcast=sdxl and bool(vae.get("force_upcast", True)),  # Stable Diffusion 1 and 2 are published in half
        prediction_type=configs["scheduler"].get("prediction_type", "epsilon"),
        weights=weights,
        loras=tuple(loras),
        files={file.relative_to(path).as_posix(): file_digest(file) for file in sorted(files)},
    )


def _check_folder(path: Path) -> None:
    if path.is_file():
        raise CheckpointError(
            f"{path} is a single file; a checkpoint is a folder in diffusers layout; "
            f"{conversion('from_single_file', path)}"
        )
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist; name a checkpoint folder in diffusers layout.")


def _text_encoder(slot: TextEncoderSlot, config: Mapping[str, Any], path: Path) -> TextEncoderFacts:
    vocab_size = positive_integer(config, slot.model, "vocab_size")
    return TextEncoderFacts(
        model=slot.model,
        tokenizer=slot.tokenizer,
        outputs=slot.outputs,
        max_length=positive_integer(config, slot.model, "max_position_embeddings"),
        vocab_size=vocab_size,
        hidden_size=positive_integer(config, slot.model, "hidden_size"),
        converted=convert_tokenizer(path / slot.tokenizer, vocab_size),
    )


def _tokenizer_files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.json")) + sorted(folder.glob("*.txt"))
    names = {file.name for file in found}
    if not any(names.issuperset(choice) for choice in TOKENIZER_FILES):
        expected = " or ".join(" and ".join(choice) for choice in TOKENIZER_FILES)
        raise CheckpointError(f"{folder.name}: expected {expected}, found {', '.join(sorted(names)) or 'nothing'}.")
    return found


def _read_json(file: Path) -> dict[str, Any]:
    where = f"{file.parent.name}/{file.name}"
    if not file.is_file():
        raise CheckpointError(f"{where} is missing; a checkpoint is a folder in diffusers layout.")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object.")
    return value


def _scaling_factor(vae: Mapping[str, Any]) -> float:
    value = vae.get("scaling_factor", 0.18215)
    if not is_number(value) or value <= 0:
        raise CheckpointError(f"vae: scaling_factor is {value!r}, expected a positive number.")
    return float(value)


def _window(unet: Mapping[str, Any]) -> int:
    """The side of the UNet's input; the skip connections of four levels need a multiple of eight."""
    window = positive_integer(unet, "unet", "sample_size")
    if window % 8:
        raise CheckpointError(f"unet: sample_size is {window}; supported: multiples of 8.")
    return window
