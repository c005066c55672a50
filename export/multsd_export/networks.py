"""The four networks: how each is loaded from a checkpoint in fp32 and which tensors go in and out.

B rows, L tokens, D embedding, h w latent size in cells. The UNet's h and w are the checkpoint's window and static:
a UNet exported with dynamic sides still fails on sides that are not a multiple of eight cells.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from transformers import CLIPTextModel

from multsd_export.checkpoint import Checkpoint
from multsd_export.errors import CheckpointError

Inputs = tuple[torch.Tensor, ...]
Axes = Mapping[int, str]  # dynamic axis -> its name

TRAIN_TIMESTEPS = 1000
DIFFUSERS_OPTIONS = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}


@dataclass(frozen=True)
class Network:
    """One network of the repository; its name is the model's folder."""

    name: str
    component: str  # sub-folder of the checkpoint
    inputs: Mapping[str, Axes]  # input name -> its dynamic axes, in the order of `forward`
    output: str
    load: Callable[[Checkpoint], torch.nn.Module]
    draw: Callable[[Checkpoint, torch.Generator], Iterator[Inputs]]  # random inputs of several sizes
    batched: bool  # rows of different requests share a run, so a row must not depend on its neighbours


class TextEncoder(torch.nn.Module):
    """input_ids: (B, L) int32 -> last_hidden_state: (B, L, D) float32."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.model(input_ids=input_ids, return_dict=False)[0]
        return hidden


class Unet(torch.nn.Module):
    """sample: (B, 4, h, w), timestep: (B), encoder_hidden_states: (B, L, D) -> out_sample: (B, 4, h, w), float32."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        noise_pred: torch.Tensor = self.model(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return noise_pred


class VaeDecoder(torch.nn.Module):
    """latent_sample: (B, 4, h, w), already divided by the scaling factor -> sample: (B, 3, 8h, 8w), about [-1, 1]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        sample: torch.Tensor = self.model.decode(latent_sample, return_dict=False)[0]
        return sample


class VaeEncoder(torch.nn.Module):
    """sample: (B, 3, 8h, 8w) in [-1, 1] -> latent_sample: (B, 4, h, w), the posterior's mean, not yet scaled."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        mean: torch.Tensor = self.model.encode(sample, return_dict=False)[0].mean
        return mean


def load_text_encoder(checkpoint: Checkpoint) -> torch.nn.Module:
    """The checkpoint's CLIP text encoder in fp32."""
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    return TextEncoder(_load(CLIPTextModel, checkpoint, "text_encoder", options)).eval()


def load_unet(checkpoint: Checkpoint) -> torch.nn.Module:
    """The checkpoint's UNet in fp32."""
    return Unet(_load(UNet2DConditionModel, checkpoint, "unet", DIFFUSERS_OPTIONS)).eval()


def load_vae_decoder(checkpoint: Checkpoint) -> torch.nn.Module:
    """The decoding half of the checkpoint's autoencoder in fp32."""
    return VaeDecoder(_load(AutoencoderKL, checkpoint, "vae", DIFFUSERS_OPTIONS)).eval()


def load_vae_encoder(checkpoint: Checkpoint) -> torch.nn.Module:
    """The encoding half of the checkpoint's autoencoder in fp32."""
    return VaeEncoder(_load(AutoencoderKL, checkpoint, "vae", DIFFUSERS_OPTIONS)).eval()


def draw_text_encoder(checkpoint: Checkpoint, generator: torch.Generator) -> Iterator[Inputs]:
    """Random tokens at batches of 2, 1 and 5."""
    for batch in (2, 1, 5):
        shape = (batch, checkpoint.max_length)
        yield (torch.randint(0, checkpoint.vocab_size, shape, dtype=torch.int32, generator=generator),)


def draw_unet(checkpoint: Checkpoint, generator: torch.Generator) -> Iterator[Inputs]:
    """Random latents, fractional timesteps and embeddings at batches of 2, 1 and 5."""
    for batch in (2, 1, 5):
        yield (
            torch.randn(batch, checkpoint.latent_channels, checkpoint.window, checkpoint.window, generator=generator),
            torch.rand(batch, generator=generator) * (TRAIN_TIMESTEPS - 1),
            torch.randn(batch, checkpoint.max_length, checkpoint.embedding_dim, generator=generator),
        )


def draw_vae_decoder(checkpoint: Checkpoint, generator: torch.Generator) -> Iterator[Inputs]:
    """Random latents of square and oblong sizes."""
    for batch, height, width in ((2, 8, 16), (1, 16, 16), (1, 23, 9)):
        yield (torch.randn(batch, checkpoint.latent_channels, height, width, generator=generator),)


def draw_vae_encoder(checkpoint: Checkpoint, generator: torch.Generator) -> Iterator[Inputs]:
    """Random pictures in [-1, 1] of square and oblong sizes."""
    factor = checkpoint.vae_scale_factor
    for batch, height, width in ((2, 8, 16), (1, 16, 16), (1, 23, 9)):
        yield (torch.rand(batch, 3, height * factor, width * factor, generator=generator) * 2 - 1,)


NETWORKS = (
    Network(
        name="text_encoder",
        component="text_encoder",
        inputs={"input_ids": {0: "batch"}},
        output="last_hidden_state",
        load=load_text_encoder,
        draw=draw_text_encoder,
        batched=True,
    ),
    Network(
        name="unet",
        component="unet",
        inputs={"sample": {0: "batch"}, "timestep": {0: "batch"}, "encoder_hidden_states": {0: "batch"}},
        output="out_sample",
        load=load_unet,
        draw=draw_unet,
        batched=True,
    ),
    Network(
        name="vae_decoder",
        component="vae",
        inputs={"latent_sample": {0: "batch", 2: "height", 3: "width"}},
        output="sample",
        load=load_vae_decoder,
        draw=draw_vae_decoder,
        batched=False,
    ),
    Network(
        name="vae_encoder",
        component="vae",
        inputs={"sample": {0: "batch", 2: "height", 3: "width"}},
        output="latent_sample",
        load=load_vae_encoder,
        draw=draw_vae_encoder,
        batched=False,
    ),
)


def _load(model_class: Any, checkpoint: Checkpoint, component: str, options: Mapping[str, Any]) -> Any:
    folder = checkpoint.path / component
    try:
        model, info = model_class.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{component}: the weights cannot be loaded: {reason}") from error
    missing = sorted(str(name) for name in info["missing_keys"])
    if missing:  # both libraries fill them with random numbers and only log it
        raise CheckpointError(f"{component}: {len(missing)} weights are missing, the first is {missing[0]}.")
    return model
