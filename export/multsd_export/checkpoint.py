"""What an export needs to know of a checkpoint, read from the checkpoint's own files without importing torch.

Supported is one family, `sd1`: the structure of Stable Diffusion 1 and 2, that is one CLIP text encoder, a
UNet2DConditionModel on four latent channels and an AutoencoderKL. Everything else is refused by name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multsd_export.digests import file_digest, value_digest
from multsd_export.errors import CheckpointError

FAMILIES = {"StableDiffusionPipeline": "sd1"}
WEIGHTS = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
CONFIGS = {
    "text_encoder": "config.json",
    "unet": "config.json",
    "vae": "config.json",
    "scheduler": "scheduler_config.json",
}
TOKENIZER_FILES = (("vocab.json", "merges.txt"), ("tokenizer.json",))  # either will do
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint folder: the numbers that the exported repository depends on, and the digest of every file used."""

    path: Path
    name: str
    revision: str | None
    family: str
    window: int  # side of the UNet's input, latent cells
    latent_channels: int
    vae_scale_factor: int  # pixels per latent cell, one direction
    scaling_factor: float  # latents = posterior mean * scaling_factor
    max_length: int  # tokens per prompt
    vocab_size: int
    embedding_dim: int
    prediction_type: str
    files: Mapping[str, str]  # path relative to the folder -> sha256

    @property
    def digest(self) -> str:
        """One digest for the whole checkpoint."""
        return f"sha256:{value_digest(dict(self.files))}"

    def component_digests(self, component: str) -> dict[str, str]:
        """Digests of the files of one sub-folder, such as `unet`."""
        return {name: digest for name, digest in self.files.items() if name.startswith(f"{component}/")}


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint folder.

    Raises:
        CheckpointError: something is missing, unsupported or not safetensors; the message names it.
    """
    _check_folder(path)
    family = _family(_read_json(path / "model_index.json"))
    files = [path / "model_index.json", *_component_files(path)]
    configs = {component: _read_json(path / component / name) for component, name in CONFIGS.items()}
    _check_structure(configs)
    name, revision = _name_and_revision(path.resolve())
    return Checkpoint(
        path=path,
        name=name,
        revision=revision,
        family=family,
        window=_window(configs["unet"]),
        latent_channels=_integer(configs["unet"], "unet", "in_channels"),
        vae_scale_factor=2 ** (len(configs["vae"]["block_out_channels"]) - 1),
        scaling_factor=float(configs["vae"].get("scaling_factor", 0.18215)),
        max_length=_integer(configs["text_encoder"], "text_encoder", "max_position_embeddings"),
        vocab_size=_integer(configs["text_encoder"], "text_encoder", "vocab_size"),
        embedding_dim=_integer(configs["unet"], "unet", "cross_attention_dim"),
        prediction_type=configs["scheduler"].get("prediction_type", "epsilon"),
        files={file.relative_to(path).as_posix(): file_digest(file) for file in sorted(files)},
    )


def _check_folder(path: Path) -> None:
    if path.is_file():
        raise CheckpointError(f"{path} is a single file; a checkpoint is a folder in diffusers layout.")
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist; name a checkpoint folder in diffusers layout.")


def _family(model_index: Mapping[str, Any]) -> str:
    pipeline = model_index.get("_class_name")
    if pipeline not in FAMILIES:
        supported = ", ".join(FAMILIES)
        raise CheckpointError(f"model_index.json: {pipeline} is not supported; supported: {supported}.")
    return FAMILIES[pipeline]


def _component_files(path: Path) -> list[Path]:
    configs = [path / component / name for component, name in CONFIGS.items()]
    weights = [_weights(path / component, name) for component, name in WEIGHTS.items()]
    return [*configs, *weights, *_tokenizer_files(path / "tokenizer")]


def _weights(folder: Path, name: str) -> Path:
    found = sorted(file.name for file in folder.glob("*")) if folder.is_dir() else []
    if name in found:
        return folder / name
    pickled = [file for file in found if file.endswith(PICKLE_SUFFIXES)]
    if pickled:
        raise CheckpointError(
            f"{folder.name}: {pickled[0]} is a pickle, which can run code when it is loaded; expected {name}."
        )
    raise CheckpointError(f"{folder.name}: expected {name}, found {', '.join(found) or 'nothing'}.")


def _tokenizer_files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.json")) + sorted(folder.glob("*.txt"))
    names = {file.name for file in found}
    if not any(names.issuperset(choice) for choice in TOKENIZER_FILES):
        expected = " or ".join(" and ".join(choice) for choice in TOKENIZER_FILES)
        raise CheckpointError(f"tokenizer: expected {expected}, found {', '.join(sorted(names)) or 'nothing'}.")
    return found


def _read_json(file: Path) -> dict[str, Any]:
    where = f"{file.parent.name}/{file.name}"
    if not file.is_file():
        raise CheckpointError(f"{where} is missing; a checkpoint is a folder in diffusers layout.")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{where} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object.")
    return value


def _integer(config: Mapping[str, Any], component: str, key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise CheckpointError(f"{component}: {key} is {value!r}, expected an integer.")
    return value


def _window(unet: Mapping[str, Any]) -> int:
    """The side of the UNet's input; the skip connections of four levels need a multiple of eight."""
    window = _integer(unet, "unet", "sample_size")
    if window <= 0 or window % 8:
        raise CheckpointError(f"unet: sample_size is {window}; supported: multiples of 8.")
    return window


def _check_structure(configs: Mapping[str, Mapping[str, Any]]) -> None:
    text_encoder, unet, vae, scheduler = (configs[c] for c in ("text_encoder", "unet", "vae", "scheduler"))
    vae_factor = 2 ** (len(vae.get("block_out_channels", ())) - 1)
    facts = (
        ("text_encoder: model_type", text_encoder.get("model_type"), ("clip_text_model",)),
        ("unet: _class_name", unet.get("_class_name"), ("UNet2DConditionModel",)),
        ("unet: in_channels", unet.get("in_channels"), (4,)),
        ("unet: out_channels", unet.get("out_channels", 4), (4,)),
        ("unet: addition_embed_type", unet.get("addition_embed_type"), (None, "text")),
        ("unet: class_embed_type", unet.get("class_embed_type"), (None,)),
        ("unet: time_cond_proj_dim", unet.get("time_cond_proj_dim"), (None,)),
        ("unet: encoder_hid_dim_type", unet.get("encoder_hid_dim_type"), (None,)),
        ("unet: cross_attention_dim", unet.get("cross_attention_dim"), (text_encoder.get("hidden_size"),)),
        ("vae: _class_name", vae.get("_class_name"), ("AutoencoderKL",)),
        ("vae: latent_channels", vae.get("latent_channels"), (unet.get("in_channels"),)),
        ("vae: shift_factor", vae.get("shift_factor"), (None, 0)),
        ("vae: pixels per latent cell", vae_factor, (8,)),
        ("scheduler: prediction_type", scheduler.get("prediction_type", "epsilon"), ("epsilon", "v_prediction")),
        ("scheduler: thresholding", scheduler.get("thresholding", False), (False,)),
    )
    for name, value, supported in facts:
        if value not in supported:
            expected = " or ".join(repr(choice) for choice in supported)
            raise CheckpointError(f"{name} is {value!r}; supported: {expected}.")


def _name_and_revision(path: Path) -> tuple[str, str | None]:
    """A hub snapshot lies at `models--owner--name/snapshots/<commit>`; any other folder has only its name."""
    if path.parent.name == "snapshots":
        return path.parent.parent.name.removeprefix("models--").replace("--", "/"), path.name
    return path.name, None
