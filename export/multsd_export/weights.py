"""Which files hold a component's weights. Only safetensors are ever opened: a pickle can run code when it is read."""

import json
from dataclasses import dataclass
from pathlib import Path

from multsd_export.errors import CheckpointError

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
VARIANTS = (None, "fp16")  # full files first
TRANSFORMERS, DIFFUSERS = "model", "diffusion_pytorch_model"  # how either library's weights are called
ADAPTER_FILE = "adapter_config.json"
CONVERT = (
    "python -c \"from diffusers import DiffusionPipeline as P; P.{load}('{source}', use_safetensors=False)"
    ".save_pretrained('{source}-safetensors')\""
)


@dataclass(frozen=True)
class Weights:
    """The safetensors files of one component: one, or an index and its shards."""

    files: tuple[Path, ...]
    variant: str | None  # as both libraries call it: None or "fp16"


def find_weights(folder: Path, stem: str) -> Weights:
    """The weights in a component's folder.

    A folder may have both a single file and shards: the library reads what is found here, so its own order counts.

    Args:
        stem: TRANSFORMERS, which takes the single file first, or DIFFUSERS, which takes the shards.

    Raises:
        CheckpointError: there are none in safetensors, a shard is missing or is none, or an adapter would be added.
    """
    if stem == TRANSFORMERS and (folder / ADAPTER_FILE).is_file():
        raise CheckpointError(
            f"{folder.name}: expected weights alone, found {ADAPTER_FILE}, whose adapter transformers would add to "
            "them; take it out, and name a LoRA with --lora."
        )
    for variant in VARIANTS:
        infix = f".{variant}" if variant else ""
        single, index = folder / f"{stem}{infix}.safetensors", folder / f"{stem}.safetensors.index{infix}.json"
        if index.is_file() and (stem == DIFFUSERS or not single.is_file()):
            return Weights((index, *_shards(index)), variant)
        if single.is_file():
            return Weights((single,), variant)
    raise CheckpointError(_refusal(folder, stem))


def conversion(load: str, source: Path | str) -> str:
    """How to turn pickled weights into safetensors, as an appendix to an error; `load` names diffusers' method."""
    return f"convert it where you would trust it to run: {CONVERT.format(load=load, source=source)}"


def _shards(index: Path) -> list[Path]:
    where = f"{index.parent.name}/{index.name}"
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        names = sorted(set(content["weight_map"].values()) if "metadata" in content else ())
    except (ValueError, KeyError, TypeError, AttributeError):
        names = []
    if not names:
        raise CheckpointError(f"{where}: expected an object with metadata and a weight_map.")
    for name in names:
        if not str(name).endswith(".safetensors") or Path(name).name != name:
            raise CheckpointError(f"{where}: {name} is not a safetensors file of the same folder.")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{where}: the shard {name} is missing.")
    return [index.parent / name for name in names]


def _refusal(folder: Path, stem: str) -> str:
    found = sorted(file.name for file in folder.glob("*")) if folder.is_dir() else []
    pickled = [file for file in found if file.endswith(PICKLE_SUFFIXES)]
    if pickled:
        return (
            f"{folder.name}: {pickled[0]} is a pickle, which can run code when it is loaded; expected "
            f"{stem}.safetensors; {conversion('from_pretrained', folder.parent)}"
        )
    return (
        f"{folder.name}: expected {stem}.safetensors, {stem}.fp16.safetensors or an index of shards, "
        f"found {', '.join(found) or 'nothing'}."
    )
