"""Checkpoints of every supported structure with random weights, small enough to export in seconds.

The structure is the published one: heads, projections, text encoders, tokenizer files, scheduler, a VAE of eight pixels
a latent cell. Channels, layers and the window are few.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

END = "<|endoftext|>"
VOCAB_SIZE = 516
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
UNET = {"layers_per_block": 1, "norm_num_groups": 4, "in_channels": 4, "out_channels": 4}


@dataclass(frozen=True)
class Structure:
    """One structure: what its configs say, and what an export has to find in them."""

    pipeline: str
    family: str
    window: int
    prediction_type: str
    scheduler: Any
    unet: Mapping[str, Any]
    text_encoders: tuple[Mapping[str, Any], ...]
    scaling_factor: float
    pad_tokens: tuple[str, ...]
    model_index: Mapping[str, Any]


def small_text_encoder(width: int, activation: str, projection: int) -> dict[str, Any]:
    """A text encoder's configuration.

    As published: end and start ids of CLIP's first release, which transformers treats as a special case.
    """
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "hidden_act": activation,
        "projection_dim": projection,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def _sd_unet(window: int, **differences: Any) -> dict[str, Any]:
    return {
        **UNET,
        "sample_size": window,
        "block_out_channels": (8, 16, 16, 16),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": 16,
        **differences,
    }


def _structures() -> dict[str, Structure]:
    sd2_heads = {"attention_head_dim": (1, 2, 4, 4), "use_linear_projection": True}
    return {
        "sd1": Structure(
            pipeline="StableDiffusionPipeline",
            family="sd1",
            window=16,
            prediction_type="epsilon",
            scheduler=PNDMScheduler(**BETAS, steps_offset=1, skip_prk_steps=True),
            unet=_sd_unet(16, attention_head_dim=2),
            text_encoders=(small_text_encoder(16, "quick_gelu", 16),),
            scaling_factor=0.18215,
            pad_tokens=(END,),
            model_index={},
        ),
        "sd2": Structure(
            pipeline="StableDiffusionPipeline",
            family="sd2",
            window=16,
            prediction_type="epsilon",
            scheduler=PNDMScheduler(**BETAS, steps_offset=1, skip_prk_steps=True),
            unet=_sd_unet(16, **sd2_heads),
            text_encoders=(small_text_encoder(16, "gelu", 8),),
            scaling_factor=0.18215,
            pad_tokens=("!",),
            model_index={},
        ),
        "sd2_768": Structure(
            pipeline="StableDiffusionPipeline",
            family="sd2",
            window=24,
            prediction_type="v_prediction",
            scheduler=DDIMScheduler(**BETAS, steps_offset=1, clip_sample=False, prediction_type="v_prediction"),
            unet=_sd_unet(24, **sd2_heads, upcast_attention=True),
            text_encoders=(small_text_encoder(16, "gelu", 8),),
            scaling_factor=0.18215,
            pad_tokens=("!",),
            model_index={},
        ),
        "sdxl": Structure(
            pipeline="StableDiffusionXLPipeline",
            family="sdxl",
            window=16,
            prediction_type="epsilon",
            scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
            unet={
                **UNET,
                "sample_size": 16,
                "block_out_channels": (8, 16, 32),
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "cross_attention_dim": 16 + 24,
                "attention_head_dim": (1, 2, 4),
                "transformer_layers_per_block": (1, 1, 2),
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 20 + 6 * 8,
            },
            text_encoders=(small_text_encoder(16, "quick_gelu", 16), small_text_encoder(24, "gelu", 20)),
            scaling_factor=0.13025,
            pad_tokens=(END, "!"),
            model_index={"force_zeros_for_empty_prompt": True},
        ),
    }


STRUCTURES = _structures()
KEPT = Path(__file__).parents[1] / "build" / "small_checkpoints"


def kept_onnx(structure: str) -> Path:
    """A work folder for exports of `write_small_checkpoint(path, structure)`, kept from suite to suite.

    Both suites export the same checkpoints, which takes half a minute each; what changes an ONNX file makes it anew.
    """
    return KEPT / structure


def write_small_checkpoint(path: Path, structure: str, *, seed: int = 0) -> Path:
    """Write a checkpoint of one of STRUCTURES in half precision, diffusers layout; the seed decides every weight."""
    return write_structure(path, STRUCTURES[structure], seed=seed)


def write_structure(path: Path, facts: Structure, *, seed: int = 0) -> Path:
    """The same for a structure of one's own."""
    path.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for index, config in enumerate(facts.text_encoders):
            suffix = f"_{index + 1}" if index else ""
            encoder = CLIPTextModelWithProjection if index else CLIPTextModel
            encoder(CLIPTextConfig(**config)).half().save_pretrained(path / f"text_encoder{suffix}")
            write_tokenizer(path / f"tokenizer{suffix}", facts.pad_tokens[index])
        UNet2DConditionModel(**facts.unet).half().save_pretrained(path / "unet")
        _vae(facts.scaling_factor).half().save_pretrained(path / "vae")
    facts.scheduler.save_pretrained(path / "scheduler")
    (path / "model_index.json").write_text(json.dumps(_model_index(facts)))
    return path


def write_tokenizer(folder: Path, pad_token: str = END) -> None:
    """vocab.json and merges.txt, as real checkpoints have them: every byte, one merge, the two special tokens."""
    letters = sorted(ByteLevel.alphabet())  # "!" is the first, as in CLIP's vocabulary
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "th", "the</w>", "<|startoftext|>", END]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad_token}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _vae(scaling_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        scaling_factor=scaling_factor,
    )


def _model_index(facts: Structure) -> dict[str, Any]:
    second = {
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }
    return {
        "_class_name": facts.pipeline,
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        **(second if len(facts.text_encoders) == 2 else {}),
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", type(facts.scheduler).__name__],
        **facts.model_index,
    }
