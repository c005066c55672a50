"""The networks of a checkpoint: how each is loaded and which tensors go in and out.

The UNet's height and width are the checkpoint's window and static: a UNet exported with dynamic sides still fails on
sides that are not a multiple of eight cells. Tensors that go in and out are float32 (input_ids int32), whatever the
network computes in (`modules`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from multsd_export.checkpoint import Checkpoint, TextEncoderFacts
from multsd_export.errors import CheckpointError
from multsd_export.families import TIME_IDS
from multsd_export.lora_fusion import fuse_loras
from multsd_export.modules import (
    MissingWeightsError,
    PenultimateTextEncoder,
    ProjectingTextEncoder,
    SdxlUnet,
    TextEncoder,
    Unet,
    VaeDecoder,
    VaeEncoder,
    Wrapper,
    read_model,
)
from multsd_export.precision import NORMALISATIONS, TEXT_ENCODER_ISLANDS
from multsd_export.profiles import Precision

Inputs = tuple[torch.Tensor, ...]
Axes = Mapping[int, str]  # dynamic axis -> its name
Load = Callable[[torch.dtype], Wrapper]
Draw = Callable[[torch.Generator], Iterator[Inputs]]

UNREADABLE = (OSError, RuntimeError, ValueError, SafetensorError)  # of weights
UNUSABLE = (TypeError, AttributeError, LookupError, ArithmeticError, StrictDataclassError)  # of a config's values
TRAIN_TIMESTEPS = 1000
DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16}
ROWS: Axes = {0: "batch"}
PICTURES: Axes = {0: "batch", 2: "height", 3: "width"}
COMPARED_SIDE = 64  # latent cells, the longest that an export compares a VAE at; `verify` takes longer ones


@dataclass(frozen=True)
class Network:
    """One network of the repository; its name is the model's folder."""

    name: str
    component: str  # sub-folder of the checkpoint
    inputs: Mapping[str, Axes]  # input name -> its dynamic axes, in the order of `forward`
    outputs: tuple[str, ...]  # in the order of `forward`
    wrapper: type[Wrapper]
    load: Load
    draw: Draw  # random inputs of several sizes, the first of at least two rows
    batched: bool  # rows of different requests share a run, so a row must not depend on its neighbours
    takes_lora: bool
    precision: Precision  # what its graph computes in
    islands: frozenset[str]  # operators that a graph in half precision computes in float32
    upcast_attention: bool = False  # whether it computes attention's scores in float32 too
    whole_pictures: bool = False  # whether it normalises over areas of up to a whole picture's pixels


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
    wrapper: type[Wrapper] = TextEncoder
    if checkpoint.pooled_dim:
        wrapper = ProjectingTextEncoder if "text_embeds" in facts.outputs else PenultimateTextEncoder
    return Network(
        name=facts.model,
        component=facts.model,
        inputs={"input_ids": ROWS},
        outputs=facts.outputs,
        wrapper=wrapper,
        load=partial(_load, wrapper, checkpoint, facts.model),
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
    wrapper: type[Wrapper] = SdxlUnet if checkpoint.pooled_dim else Unet
    return Network(
        name="unet",
        component="unet",
        inputs=dict.fromkeys(names, ROWS),
        outputs=("out_sample",),
        wrapper=wrapper,
        load=partial(_load, wrapper, checkpoint, "unet"),
        draw=partial(draw_unet, checkpoint),
        batched=True,
        takes_lora=True,
        precision=precision,
        islands=NORMALISATIONS,
        upcast_attention=checkpoint.upcast_attention,
    )


def _vae(
    name: str,
    source: str,
    result: str,
    wrapper: type[Wrapper],
    draw: Callable[[Checkpoint, torch.Generator], Iterator[Inputs]],
    checkpoint: Checkpoint,
    precision: Precision,
) -> Network:
    return Network(
        name=name,
        component="vae",
        inputs={source: PICTURES},
        outputs=(result,),
        wrapper=wrapper,
        load=partial(_load, wrapper, checkpoint, "vae"),
        draw=partial(draw, checkpoint),
        batched=False,
        takes_lora=False,
        precision=precision,
        islands=NORMALISATIONS,
        whole_pictures=True,
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
    """Random latents of square and oblong sizes, a window among them."""
    for batch, height, width in _picture_sizes(checkpoint):
        yield (torch.randn(batch, checkpoint.latent_channels, height, width, generator=generator),)


def draw_vae_encoder(checkpoint: Checkpoint, generator: torch.Generator) -> Iterator[Inputs]:
    """Random pictures in [-1, 1] of square and oblong sizes, a window among them."""
    factor = checkpoint.vae_scale_factor
    for batch, height, width in _picture_sizes(checkpoint):
        yield (torch.rand(batch, 3, height * factor, width * factor, generator=generator) * 2 - 1,)


def _picture_sizes(checkpoint: Checkpoint) -> tuple[tuple[int, int, int], ...]:
    """Batch, height and width in latent cells."""
    window = min(checkpoint.window, COMPARED_SIDE)
    return (2, 8, 16), (1, window, window), (1, 23, 9)


def _load(wrapper: type[Wrapper], checkpoint: Checkpoint, component: str, dtype: torch.dtype) -> Wrapper:
    """The component's weights in `dtype`, LoRAs fused in float32.

    Raises:
        CheckpointError: they cannot be read, a LoRA does not fit, or a weight is not finite in `dtype`.
    """
    fuses = bool(checkpoint.loras) and component != "vae"
    model = _read(wrapper, checkpoint, component, torch.float32 if fuses else dtype)
    if fuses:
        fuse_loras(model, checkpoint, component)
        model = model.to(dtype)
    _check_finite(model, checkpoint, component, dtype)
    return wrapper(model).eval()


def _check_finite(model: Any, checkpoint: Checkpoint, component: str, dtype: torch.dtype) -> None:
    """Where weights are served as they are, nothing else looks at their values; merged checkpoints do have some."""
    for name, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            fused = [] if component == "vae" else [lora.path.name for lora in checkpoint.loras]
            where = f"lora: with {', '.join(fused)}, {component}.{name}" if fused else f"{component}: {name}"
            raise CheckpointError(f"{where} is not finite in {dtype}.")


def _read(wrapper: type[Wrapper], checkpoint: Checkpoint, component: str, dtype: torch.dtype) -> Any:
    # Attention written out, with a softmax in float32: what the graph of a text encoder is held to.
    options = {} if component in ("unet", "vae") else {"attn_implementation": "eager"}
    variant = checkpoint.weights[component].variant
    try:
        return read_model(wrapper.model_class, checkpoint.path / component, dtype, variant=variant, **options)
    except MissingWeightsError as error:
        raise CheckpointError(f"{component}: {error}.") from error
    except (*UNREADABLE, *UNUSABLE) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{component}: the weights cannot be loaded: {reason}") from error
