"""Fuse LoRAs into a network's weights: diffusers names and loads their tensors, peft merges them."""

import hashlib
import re
import warnings
from collections import Counter
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from diffusers.loaders.lora_base import fuse_text_encoder_lora
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError

from multsd_export.checkpoint import Checkpoint
from multsd_export.errors import CheckpointError
from multsd_export.families import Family
from multsd_export.lora import Lora
from multsd_export.lora_file import Tensors, read_lora_file

# What the libraries raise of a file that does not fit; a configuration that peft cannot work with, the last three.
MISFITS = (RuntimeError, ValueError, LookupError, RuntimeWarning, SafetensorError, TypeError, AttributeError, re.error)


def fuse_loras(model: Any, checkpoint: Checkpoint, component: str) -> None:
    """Add every LoRA's part for this component to the model's float32 weights, in place.

    Raises:
        CheckpointError: a LoRA names layers that the checkpoint does not have, or of other sizes, or has tensors of
            which nothing takes notice.
    """
    for lora in checkpoint.loras:
        try:
            _fuse(model, checkpoint, component, lora)
        except MISFITS as error:
            if isinstance(error, CheckpointError):
                raise
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"lora: {lora.path.name} does not fit {component}: {reason}") from error


def _fuse(model: Any, checkpoint: Checkpoint, component: str, lora: Lora) -> None:
    mixin = StableDiffusionXLLoraLoaderMixin if checkpoint.family is Family.SDXL else StableDiffusionLoraLoaderMixin
    unet_config = FrozenDict(UNet2DConditionModel.load_config(checkpoint.path / "unet", local_files_only=True))
    file = read_lora_file(lora.path)
    # block numbers of other trainers are mapped by unet_config
    weights, _ = mixin.lora_state_dict(dict(file.tensors), unet_config=unet_config)
    _check_components(weights, checkpoint, lora)
    if len(weights) != len(file.tensors):
        raise CheckpointError(
            f"lora: {lora.path.name} has {len(file.tensors)} tensors, of which diffusers takes {len(weights)}; "
            "expected every layer once, in names of one kind."
        )
    own = {name: tensor for name, tensor in weights.items() if name.startswith(f"{component}.")}
    if not own:
        return
    options = {"network_alphas": None, "metadata": file.config}
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "error", message=r"The following \w+_pattern keys did not match", category=RuntimeWarning
        )
        if component == "unet":
            mixin.load_lora_into_unet(own, unet=model, **options)
        else:
            mixin.load_lora_into_text_encoder(own, text_encoder=model, prefix=component, **options)
    _check_every_layer_is_loaded(model, own, component, lora)
    _check_every_tensor_is_loaded(model, own, lora)
    if file.config is None:
        _check_strengths(model, component, lora)
    if component == "unet":
        model.fuse_lora(lora_scale=lora.scale)
    else:
        fuse_text_encoder_lora(model, lora_scale=lora.scale)
    recurse_remove_peft_layers(model)
    del model.peft_config


def _check_components(weights: Tensors, checkpoint: Checkpoint, lora: Lora) -> None:
    components = ["unet", *(facts.model for facts in checkpoint.text_encoders)]
    strangers = sorted(name for name in weights if name.partition(".")[0] not in components)
    if strangers or not weights:
        found = strangers[0] if strangers else "nothing"
        raise CheckpointError(f"lora: {lora.path.name} has {found}; the checkpoint takes {', '.join(components)}.")


def _check_every_layer_is_loaded(model: Any, own: Tensors, component: str, lora: Lora) -> None:
    """Both libraries only log what fits no layer."""
    named = sum("lora_A." in name or "down." in name.rpartition("lora")[2] for name in own)
    loaded = sum(isinstance(module, BaseTunerLayer) for module in model.modules())
    if loaded < named:
        raise CheckpointError(
            f"lora: {lora.path.name} changes {named} layers of {component}, of which the checkpoint has {loaded}."
        )


def _check_every_tensor_is_loaded(model: Any, own: Tensors, lora: Lora) -> None:
    """Each tensor of the file is in one adapter, and nothing else is; told by their values, since names change."""
    wanted = {name: _fingerprint(value) for name, value in own.items()}
    loaded = Counter(_fingerprint(value) for name, value in model.named_parameters() if ".lora_" in name)
    missing = Counter(wanted.values()) - loaded
    left_out = [name for name, fingerprint in wanted.items() if fingerprint in missing]
    if left_out:
        raise CheckpointError(f"lora: {lora.path.name} has {left_out[0]}, which no layer takes.")
    if loaded - Counter(wanted.values()):
        raise CheckpointError(f"lora: {lora.path.name} lacks tensors of layers that its configuration names.")


def _fingerprint(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().float().numpy().tobytes()).hexdigest()


def _check_strengths(model: Any, component: str, lora: Lora) -> None:
    """Alphas are in the matrices, so every layer counts once."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and set(module.scaling.values()) != {1.0}:
            raise CheckpointError(f"lora: {lora.path.name}: how strongly {component}.{name} counts cannot be told.")
