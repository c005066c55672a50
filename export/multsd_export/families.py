"""The families of checkpoints that can be exported: what each consists of and what its configs have to say.

Detected from the checkpoint's own configs, and refused by name where they say anything else.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeGuard

from multsd_export.errors import CheckpointError

Config = Mapping[str, Any]
Configs = Mapping[str, Config]  # component -> its config
Fact = tuple[str, Any, tuple[Any, ...]]  # name, what was found, what is supported

SD_PIPELINE, SDXL_PIPELINE = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
SUPPORTED = f"{SD_PIPELINE} (Stable Diffusion 1.x and 2.x) and {SDXL_PIPELINE} (the SDXL base)"
FAMILY_MODELS = ("text_encoder_2",)  # of the committed repository; only some families have them
FAMILY_TENSORS = {"unet": ("text_embeds", "time_ids")}  # model -> tensors of its contract that only some families have
TIME_IDS = 6  # original height and width, crop top and left, target height and width


class Family(StrEnum):
    """Checkpoints of one structure."""

    SD1 = "sd1"
    SD2 = "sd2"
    SDXL = "sdxl"


@dataclass(frozen=True)
class TextEncoderSlot:
    """One text encoder of a family: component and Triton model have one name."""

    model: str
    tokenizer: str
    model_type: str  # of the component's config
    outputs: tuple[str, ...]


SD_TEXT_ENCODERS = (TextEncoderSlot("text_encoder", "tokenizer", "clip_text_model", ("last_hidden_state",)),)
SDXL_TEXT_ENCODERS = (
    *SD_TEXT_ENCODERS,
    TextEncoderSlot("text_encoder_2", "tokenizer_2", "clip_text_model", ("last_hidden_state", "text_embeds")),
)


def text_encoder_slots(pipeline: str) -> tuple[TextEncoderSlot, ...]:
    """The text encoders of a supported pipeline, in the order in which the UNet takes their hidden states.

    Args:
        pipeline: `_class_name` of model_index.json.

    Raises:
        CheckpointError: the pipeline is another one.
    """
    if pipeline not in (SD_PIPELINE, SDXL_PIPELINE):
        raise CheckpointError(f"model_index.json: {pipeline} is not supported; supported: {SUPPORTED}.")
    return SDXL_TEXT_ENCODERS if pipeline == SDXL_PIPELINE else SD_TEXT_ENCODERS


def detect_family(model_index: Config, configs: Configs) -> Family:
    """The family, after every fact about its structure was checked.

    Stable Diffusion 1 and 2 are one pipeline. Their UNets differ in how attention is projected, and their text encoders
    (CLIP of OpenAI, OpenCLIP) in their activation: both have to say the same.

    Raises:
        CheckpointError: naming the first fact that is not supported.
    """
    _check(_common_facts(configs))
    _check_scheduler(configs["scheduler"])
    if model_index.get("_class_name") == SDXL_PIPELINE:
        _check(_sdxl_facts(model_index, configs))
        return Family.SDXL
    _check(_sd_facts(configs))
    return Family.SD2 if configs["unet"].get("use_linear_projection") else Family.SD1


def _check(facts: Sequence[Fact]) -> None:
    for name, value, supported in facts:
        if value not in supported:
            expected = " or ".join(repr(choice) for choice in supported)
            raise CheckpointError(f"{name} is {value!r}; supported: {expected}.")


# What makes both libraries read something else than the folder's own weights: quantised ones, for which they want
# packages of their own, and transformers a file of any name, pickles too.
OTHER_WEIGHTS = ("quantization_config", "transformers_weights")
# Of diffusers, those whose noise schedule is a list of betas. Another's would be read as one that it is not.
SCHEDULERS = tuple(
    f"{name}Scheduler"
    for name in (
        "DDIM",
        "DDPM",
        "DEISMultistep",
        "DPMSolverMultistep",
        "DPMSolverSDE",
        "DPMSolverSinglestep",
        "EulerAncestralDiscrete",
        "EulerDiscrete",
        "HeunDiscrete",
        "KDPM2AncestralDiscrete",
        "KDPM2Discrete",
        "LCM",
        "LMSDiscrete",
        "PNDM",
        "TCD",
        "UniPCMultistep",
    )
)
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")
# Not a learned one: the UNet would have twice the channels.
VARIANCE_TYPES = (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")


def positive_integer(config: Config, component: str, key: str) -> int:
    """A number that a component's config has to give.

    Raises:
        CheckpointError: it is missing or something else.
    """
    value = config.get(key)
    if not _is_integer(value) or value <= 0:
        raise CheckpointError(f"{component}: {key} is {value!r}, expected a positive integer.")
    return value


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_scheduler(scheduler: Config) -> None:
    """The numbers with which a noise schedule is laid; diffusers takes any, and fails when a picture begins."""
    steps, offset = scheduler.get("num_train_timesteps", 1000), scheduler.get("steps_offset", 0)
    betas = {f"trained_betas, number {index}": beta for index, beta in enumerate(scheduler.get("trained_betas") or ())}
    betas |= {name: scheduler[name] for name in ("beta_start", "beta_end")}
    if not _is_integer(steps) or steps <= 0:
        raise CheckpointError(f"scheduler: num_train_timesteps is {steps!r}, expected a positive integer.")
    if not _is_integer(offset) or not 0 <= offset < steps:
        raise CheckpointError(f"scheduler: steps_offset is {offset!r}, expected an integer from 0 to {steps - 1}.")
    for name, beta in betas.items():
        if not is_number(beta) or not 0 < beta <= 1:
            raise CheckpointError(f"scheduler: {name} is {beta!r}, expected a number above 0 and at most 1.")


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is finite and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _common_facts(configs: Configs) -> list[Fact]:
    unet, vae, scheduler = configs["unet"], configs["vae"], configs["scheduler"]
    steps = scheduler.get("num_train_timesteps", 1000)
    return [
        *((f"{name}: {key}", configs[name].get(key), (None,)) for name in configs for key in OTHER_WEIGHTS),
        ("text_encoder: model_type", configs["text_encoder"].get("model_type"), ("clip_text_model",)),
        ("unet: _class_name", unet.get("_class_name"), ("UNet2DConditionModel",)),
        ("unet: in_channels", unet.get("in_channels"), (4,)),
        ("unet: out_channels", unet.get("out_channels", 4), (4,)),
        ("unet: class_embed_type", unet.get("class_embed_type"), (None,)),
        ("unet: num_class_embeds", unet.get("num_class_embeds"), (None,)),
        ("unet: time_cond_proj_dim", unet.get("time_cond_proj_dim"), (None,)),
        ("unet: encoder_hid_dim_type", unet.get("encoder_hid_dim_type"), (None,)),
        ("vae: _class_name", vae.get("_class_name"), ("AutoencoderKL",)),
        ("vae: latent_channels", vae.get("latent_channels"), (unet.get("in_channels"),)),
        ("vae: shift_factor", vae.get("shift_factor"), (None, 0)),
        ("vae: latents_mean", vae.get("latents_mean"), (None,)),
        ("vae: block_out_channels, how many", _count(vae.get("block_out_channels")), (4,)),  # 8 pixels per latent cell
        ("scheduler: _class_name", scheduler.get("_class_name"), SCHEDULERS),
        ("scheduler: beta_schedule", scheduler.get("beta_schedule"), BETA_SCHEDULES),
        ("scheduler: beta_start and beta_end are given", {"beta_start", "beta_end"} <= scheduler.keys(), (True,)),
        ("scheduler: trained_betas, how many", _count(scheduler.get("trained_betas")), (None, steps)),
        ("scheduler: timestep_spacing", scheduler.get("timestep_spacing", "linspace"), TIMESTEP_SPACINGS),
        ("scheduler: use_flow_sigmas", scheduler.get("use_flow_sigmas", False), (False,)),
        ("scheduler: variance_type", scheduler.get("variance_type"), VARIANCE_TYPES),
        ("scheduler: prediction_type", scheduler.get("prediction_type", "epsilon"), ("epsilon", "v_prediction")),
        ("scheduler: thresholding", scheduler.get("thresholding", False), (False,)),
    ]


def _count(values: object) -> object:
    """How many a list has, None where none is given; of what is no list, the type."""
    if values is None:
        return None
    return len(values) if isinstance(values, list) else type(values).__name__


def _sd_facts(configs: Configs) -> list[Fact]:
    text_encoder, unet = configs["text_encoder"], configs["unet"]
    hidden_size = positive_integer(text_encoder, "text_encoder", "hidden_size")
    activation = "gelu" if unet.get("use_linear_projection") else "quick_gelu"
    return [
        ("unet: addition_embed_type", unet.get("addition_embed_type"), (None, "text")),
        ("unet: cross_attention_dim", unet.get("cross_attention_dim"), (hidden_size,)),
        (
            f"text_encoder: hidden_act beside use_linear_projection={bool(unet.get('use_linear_projection'))} in unet",
            text_encoder.get("hidden_act", "quick_gelu"),
            (activation,),
        ),
    ]


def _sdxl_facts(model_index: Config, configs: Configs) -> list[Fact]:
    second, unet = configs["text_encoder_2"], configs["unet"]
    _check(
        [
            (
                "model_index.json: requires_aesthetics_score",
                model_index.get("requires_aesthetics_score"),
                (None, False),
            ),
            ("text_encoder_2: model_type", second.get("model_type"), ("clip_text_model",)),
            ("text_encoder_2: architectures", second.get("architectures"), (["CLIPTextModelWithProjection"],)),
            ("unet: addition_embed_type", unet.get("addition_embed_type"), ("text_time",)),
        ]
    )
    joined = sum(positive_integer(configs[name], name, "hidden_size") for name in ("text_encoder", "text_encoder_2"))
    added = positive_integer(second, "text_encoder_2", "projection_dim")
    added += TIME_IDS * positive_integer(unet, "unet", "addition_time_embed_dim")
    return [
        ("unet: cross_attention_dim", unet.get("cross_attention_dim"), (joined,)),
        ("unet: projection_class_embeddings_input_dim", unet.get("projection_class_embeddings_input_dim"), (added,)),
    ]
