"""Fuse LoRAs into a network's weights: diffusers reads and loads them, peft merges them."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from diffusers.loaders.lora_base import fuse_text_encoder_lora
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError

from multsd_export.checkpoint import Checkpoint
from multsd_export.errors import CheckpointError
from multsd_export.families import Family
from multsd_export.lora import Lora

Tensors = dict[str, torch.Tensor]


def fuse_loras(model: Any, checkpoint: Checkpoint, component: str) -> None:
    """Add every LoRA's part for this component to the model's float32 weights, in place.

    Raises:
        CheckpointError: a LoRA names layers that the checkpoint does not have, or of other sizes.
    """
    for lora in checkpoint.loras:
        try:
            _fuse(model, checkpoint, component, lora)
        except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
            if isinstance(error, CheckpointError):
                raise
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"lora: {lora.path.name} does not fit {component}: {reason}") from error


def _fuse(model: Any, checkpoint: Checkpoint, component: str, lora: Lora) -> None:
    mixin = StableDiffusionXLLoraLoaderMixin if checkpoint.family is Family.SDXL else StableDiffusionLoraLoaderMixin
    unet_config = FrozenDict(UNet2DConditionModel.load_config(checkpoint.path / "unet", local_files_only=True))
    weights, alphas, metadata = mixin.lora_state_dict(
        str(lora.path),
        unet_config=unet_config,  # block numbers of other trainers are mapped by it
        use_safetensors=True,
        local_files_only=True,
        return_lora_metadata=True,
    )
    _check_components(weights, checkpoint, lora)
    own = {name: tensor for name, tensor in weights.items() if name.startswith(f"{component}.")}
    if not own:
        return
    options = {"network_alphas": alphas, "metadata": metadata}
    if component == "unet":
        mixin.load_lora_into_unet(own, unet=model, **options)
    else:
        mixin.load_lora_into_text_encoder(own, text_encoder=model, prefix=component, **options)
    _check_every_layer_is_loaded(model, own, component, lora)
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
