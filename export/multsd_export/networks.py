"""The networks of a checkpoint: how each is loaded and which tensors go in and out.

B rows, L tokens, D embedding, P pooled embedding, h w latent size in cells. The UNet's h and w are the checkpoint's
window and static: a UNet exported with dynamic sides still fails on sides that are not a multiple of eight cells.
Tensors that go in and out are float32 (input_ids int32), whatever the network computes in.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from multsd_export.checkpoint import Checkpoint, TextEncoderFacts
from multsd_export.errors import CheckpointError
from multsd_export.families import TIME_IDS
from multsd_export.lora_fusion import fuse_loras
from multsd_export.precision import NORMALISATIONS, TEXT_ENCODER_ISLANDS
from multsd_export.profiles import Precision

Inputs = tuple[torch.Tensor, ...]
Axes = Mapping[int, str]  # dynamic axis -> its name
Load = Callable[[torch.dtype], torch.nn.Module]
Draw = Callable[[torch.Generator], Iterator[Inputs]]

TRAIN_TIMESTEPS = 1000
DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16}
ROWS: Axes = {0: "batch"}
PICTURES: Axes = {0: "batch", 2: "height", 3: "width"}


@dataclass(frozen=True)
class Network:
    """One network of the repository; its name is the model's folder."""

    name: str
    component: str  # sub-folder of the checkpoint
    inputs: Mapping[str, Axes]  # input name -> its dynamic axes, in the order of `forward`
    outputs: tuple[str, ...]  # in the order of `forward`
    load: Load
    draw: Draw  # random inputs of several sizes, the first of at least two rows
    batched: bool  # rows of different requests share a run, so a row must not depend on its neighbours
    takes_lora: bool
    precision: Precision  # what its graph computes in
    islands: frozenset[str]  # operators that a graph in half precision computes in float32


class TextEncoder(torch.nn.Module):
    """input_ids: (B, L) int32 -> last_hidden_state: (B, L, D) float32."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.model(input_ids=input_ids).last_hidden_state
        return hidden.float()


class PenultimateTextEncoder(torch.nn.Module):
    """input_ids: (B, L) int32 -> the hidden states before the last layer, without the final norm: (B, L, D) float32."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.model(input_ids=input_ids, output_hidden_states=True).hidden_states[-2]
        return hidden.float()


class ProjectingTextEncoder(torch.nn.Module):
    """As PenultimateTextEncoder, and text_embeds: (B, P) float32, the projected pooled output."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        result = self.model(input_ids=input_ids, output_hidden_states=True)
        return result.hidden_states[-2].float(), result.text_embeds.float()


class Unet(torch.nn.Module):
    """sample: (B, 4, h, w), timestep: (B), encoder_hidden_states: (B, L, D) -> out_sample: (B, 4, h, w), float32."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        dtype = self.model.dtype
        noise_pred: torch.Tensor = self.model(
            sample.to(dtype), timestep, encoder_hidden_states.to(dtype), return_dict=False
        )[0]
        return noise_pred.float()


class SdxlUnet(torch.nn.Module):
    """As Unet, and text_embeds: (B, P), time_ids: (B, 6) float32, in pixels."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        dtype = self.model.dtype
        # Sizes and timesteps stay float32: above 2048 float16 does not hold every integer. So does text_embeds, which
        # the network joins with them before it casts both.
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        noise_pred: torch.Tensor = self.model(
            sample.to(dtype), timestep, encoder_hidden_states.to(dtype), added_cond_kwargs=added, return_dict=False
        )[0]
        return noise_pred.float()


class VaeDecoder(torch.nn.Module):
    """latent_sample: (B, 4, h, w), already divided by the scaling factor -> sample: (B, 3, 8h, 8w), about [-1, 1]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        sample: torch.Tensor = self.model.decode(latent_sample.to(self.model.dtype), return_dict=False)[0]
        return sample.float()


class VaeEncoder(torch.nn.Module):
    """sample: (B, 3, 8h, 8w) in [-1, 1] -> latent_sample: (B, 4, h, w), the posterior's mean, not yet scaled."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        mean: torch.Tensor = self.model.encode(sample.to(self.model.dtype), return_dict=False)[0].mean
        return mean.float()


def networks_of(checkpoint: Checkpoint, precision: Precision = Precision.FP32) -> tuple[Network, ...]:
    """Every network of the checkpoint's family, in the order in which they are exported."""
    encoders = [_text_encoder(checkpoint, facts, precision) for facts in checkpoint.text_encoders]
    vae_precision = Precision.FP32 if checkpoint.vae_upcast else precision
    return (
        *encoders,
        _unet(checkpoint, precision),
        _vae("vae_decoder", "latent_sample", "sample", VaeDecoder, draw_vae_decoder, checkpoint, vae_precision),
        _vae("vae_encoder", "sample", "latent_sample", VaeEncoder, draw_vae_encoder, checkpoint, vae_precision),
    )


def _text_encoder(checkpoint: Checkpoint, facts: TextEncoderFacts, precision: Precision) -> Network:
    projects = "text_embeds" in facts.outputs
    model_class = CLIPTextModelWithProjection if projects else CLIPTextModel
    penultimate = ProjectingTextEncoder if projects else PenultimateTextEncoder
    wrapper = penultimate if checkpoint.pooled_dim else TextEncoder
    return Network(
        name=facts.model,
        component=facts.model,
        inputs={"input_ids": ROWS},
        outputs=facts.outputs,
        load=lambda dtype: wrapper(_load(model_class, checkpoint, facts.model, dtype)).eval(),
        draw=partial(draw_text_encoder, facts),
        batched=True,
        takes_lora=True,
        precision=precision,
        islands=TEXT_ENCODER_ISLANDS,
    )


def _unet(checkpoint: Checkpoint, precision: Precision) -> Network:
    names = ["sample", "timestep", "encoder_hidden_states"]
    if checkpoint.pooled_dim:
        names += ["text_embeds", "time_ids"]
    wrapper = SdxlUnet if checkpoint.pooled_dim else Unet
    return Network(
        name="unet",
        component="unet",
        inputs=dict.fromkeys(names, ROWS),
        outputs=("out_sample",),
        load=lambda dtype: wrapper(_load(UNet2DConditionModel, checkpoint, "unet", dtype)).eval(),
        draw=partial(draw_unet, checkpoint),
        batched=True,
        takes_lora=True,
        precision=precision,
        islands=NORMALISATIONS,
    )


def _vae(
    name: str,
    source: str,
    result: str,
    wrapper: Callable[[Any], torch.nn.Module],
    draw: Callable[[Checkpoint, torch.Generator], Iterator[Inputs]],
    checkpoint: Checkpoint,
    precision: Precision,
) -> Network:
    return Network(
        name=name,
        component="vae",
        inputs={source: PICTURES},
        outputs=(result,),
        load=lambda dtype: wrapper(_load(AutoencoderKL, checkpoint, "vae", dtype)).eval(),
        draw=partial(draw, checkpoint),
        batched=False,
        takes_lora=False,
        precision=precision,
        islands=NORMALISATIONS,
    )


def draw_text_encoder(facts: TextEncoderFacts, generator: torch.Generator) -> Iterator[Inputs]:
    """Random tokens at batches of 2, 1 and 5, each row with one end token (CLIP's last), at which pooling looks."""
    for batch in (2, 1, 5):
        shape = (batch, facts.max_length)
        ids = torch.randint(0, facts.vocab_size - 1, shape, dtype=torch.int32, generator=generator)
        ends = torch.randint(1, facts.max_length, (batch,), generator=generator)
        ids[torch.arange(batch), ends] = facts.vocab_size - 1
        yield (ids,)


def draw_unet(checkpoint: Checkpoint, generator: torch.Generator) -> Iterator[Inputs]:
    """Random latents, fractional timesteps, embeddings, and sizes where it takes them, at batches of 2, 1 and 5."""
    for batch in (2, 1, 5):
        inputs = (
            torch.randn(batch, checkpoint.latent_channels, checkpoint.window, checkpoint.window, generator=generator),
            torch.rand(batch, generator=generator) * (TRAIN_TIMESTEPS - 1),
            torch.randn(batch, checkpoint.text_encoders[0].max_length, checkpoint.embedding_dim, generator=generator),
        )
        if checkpoint.pooled_dim is None:
            yield inputs
        else:
            text_embeds = torch.randn(batch, checkpoint.pooled_dim, generator=generator)
            time_ids = torch.randint(0, 2048, (batch, TIME_IDS), generator=generator).float()
            yield (*inputs, text_embeds, time_ids)


def draw_vae_decoder(checkpoint: Checkpoint, generator: torch.Generator) -> Iterator[Inputs]:
    """Random latents of square and oblong sizes."""
    for batch, height, width in ((2, 8, 16), (1, 16, 16), (1, 23, 9)):
        yield (torch.randn(batch, checkpoint.latent_channels, height, width, generator=generator),)


def draw_vae_encoder(checkpoint: Checkpoint, generator: torch.Generator) -> Iterator[Inputs]:
    """Random pictures in [-1, 1] of square and oblong sizes."""
    factor = checkpoint.vae_scale_factor
    for batch, height, width in ((2, 8, 16), (1, 16, 16), (1, 23, 9)):
        yield (torch.rand(batch, 3, height * factor, width * factor, generator=generator) * 2 - 1,)


def _load(model_class: Any, checkpoint: Checkpoint, component: str, dtype: torch.dtype) -> Any:
    """The component's weights in `dtype`, LoRAs fused in float32."""
    if not checkpoint.loras or component == "vae":
        return _read(model_class, checkpoint, component, dtype)
    model = _read(model_class, checkpoint, component, torch.float32)
    fuse_loras(model, checkpoint, component)
    return model.to(dtype)


def _read(model_class: Any, checkpoint: Checkpoint, component: str, dtype: torch.dtype) -> Any:
    clip = model_class in (CLIPTextModel, CLIPTextModelWithProjection)
    options = {"dtype": dtype, "attn_implementation": "eager"} if clip else {"torch_dtype": dtype}
    try:
        model, info = model_class.from_pretrained(
            checkpoint.path / component,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            variant=checkpoint.weights[component].variant,
            **options,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{component}: the weights cannot be loaded: {reason}") from error
    missing = sorted(str(name) for name in info["missing_keys"])
    if missing:  # both libraries fill them with random numbers and only log it
        raise CheckpointError(f"{component}: {len(missing)} weights are missing, the first is {missing[0]}.")
    return model
