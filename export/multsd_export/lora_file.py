"""What a LoRA's file holds: pairs of matrices, each as strong as its alpha says, and the adapter's configuration.

diffusers passes alphas on to peft as patterns of names, of which some match no layer: those layers would be fused at
another layer's strength. So alphas are worked into the matrices before diffusers sees them.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from safetensors import safe_open

from multsd_export.errors import CheckpointError

Tensors = dict[str, torch.Tensor]

# kohya's names, peft's, and diffusers' of three ages
DOWN = re.compile(r"(?P<layer>.+?)(?P<part>\.lora_down|\.lora_A|\.lora_linear_layer\.down|[._]lora\.down)\.weight")
MAGNITUDES = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")  # of peft's DoRA
CONFIG_TYPES: Mapping[str, tuple[type, ...]] = {
    "r": (int,),
    "lora_alpha": (int, float),
    "rank_pattern": (dict,),
    "alpha_pattern": (dict,),
    "target_modules": (list, str),
    "use_rslora": (bool,),
    "use_dora": (bool,),
}


@dataclass(frozen=True)
class LoraFile:
    """The tensors in float32, without alphas, and peft's configuration where the file has one."""

    tensors: Tensors
    config: Mapping[str, Any] | None  # "unet.r" -> 4 and the like


def read_lora_file(path: Path) -> LoraFile:
    """Read a file of any trainer's names.

    Raises:
        CheckpointError: a tensor is no part of a LoRA, or how strongly a layer counts cannot be told.
        SafetensorError: the file is damaged.
    """
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        text = (file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY)
    dora = next((name for name in tensors if name.endswith(".dora_scale")), None)
    if dora:
        raise CheckpointError(f"lora: {path.name} is a DoRA of kohya's format (it has {dora}); expected a LoRA.")
    alpha = next((name for name in tensors if name.endswith(".alpha")), None)
    if alpha and text:
        raise CheckpointError(f"lora: {path.name} has {alpha} and {LORA_ADAPTER_METADATA_KEY}, expected one of them.")
    return LoraFile(_scaled(tensors, path.name), _read_config(text, path.name) if text else None)


def _scaled(tensors: Mapping[str, torch.Tensor], file: str) -> Tensors:
    """Every layer's tensors, its upper matrix times alpha / rank; without an alpha that is 1."""
    rest, scaled = dict(tensors), {}
    for name in tensors:
        down = DOWN.fullmatch(name)
        if down is None:
            continue
        layer, part = down["layer"], down["part"]
        up = f"{layer}{part.replace('down', 'up').replace('lora_A', 'lora_B')}"
        if f"{up}.weight" not in rest:
            raise CheckpointError(f"lora: {file} has {name} without {up}.weight.")
        scaled[name] = rest.pop(name).float()
        scale = _scale(rest, f"{layer}.alpha", f"{layer}{part.removesuffix('.down')}.alpha", scaled[name], file)
        for each in (f"{up}.weight", f"{up}.bias"):
            if each in rest:
                scaled[each] = rest.pop(each).float() * scale
        for each in (f"{layer}{suffix}" for suffix in MAGNITUDES):
            if each in rest:
                scaled[each] = rest.pop(each).float()
    if rest:
        raise CheckpointError(f"lora: {file} has {min(rest)}, which is no part of a LoRA's layer.")
    return scaled


def _scale(rest: Tensors, name: str, other: str, down: torch.Tensor, file: str) -> float:
    """Take a layer's alpha, under either name, out of the rest: alpha / rank."""
    name = name if name in rest else other
    if name not in rest:
        return 1.0
    alpha = rest.pop(name)
    if alpha.numel() != 1 or not math.isfinite(alpha.item()):
        raise CheckpointError(f"lora: {file}: {name} is {alpha.tolist()}, expected one number.")
    return float(alpha.item()) / max(len(down), 1)  # peft refuses the rank 0


def _read_config(text: str, file: str) -> dict[str, Any] | None:
    where = f"lora: {file}: {LORA_ADAPTER_METADATA_KEY}"
    try:
        config = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{where} is not valid JSON: {error}.") from error
    if config is None:
        return None
    if not isinstance(config, dict):
        raise CheckpointError(f"{where}: expected a JSON object, found {type(config).__name__}.")
    known = {field.name for field in fields(LoraConfig)}
    for name, value in config.items():
        field = name.partition(".")[2]
        if field not in known:
            raise CheckpointError(f"{where}: {name} is no field of peft's LoraConfig.")
        expected = CONFIG_TYPES.get(field, (object,))
        if not isinstance(value, expected) or (isinstance(value, bool) and int in expected):
            names = " or ".join(each.__name__ for each in expected)
            raise CheckpointError(f"{where}: {name} is {value!r}, expected {names}.")
    return config
