"""The published configurations of three checkpoints, as far as they decide their structure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]

CLIP_L: Config = {  # OpenAI's CLIP ViT-L/14
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
OPEN_CLIP_H: Config = {  # OpenCLIP ViT-H/14 without its last layer
    **CLIP_L,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
}
OPEN_CLIP_G: Config = {  # OpenCLIP ViT-bigG/14
    **CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
SD1_UNET: Config = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SD2_768_UNET: Config = {
    **SD1_UNET,
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "upcast_attention": True,
}
SDXL_UNET: Config = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: Config = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
NOISE: Config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@dataclass(frozen=True)
class Published:
    """One published checkpoint's configs."""

    title: str
    pipeline: str
    text_encoders: tuple[Config, ...]
    unet: Config
    vae: Config
    scheduler: Config


PUBLISHED: Mapping[str, Published] = {
    "sd15": Published(
        title="Stable Diffusion 1.5",
        pipeline="StableDiffusionPipeline",
        text_encoders=(CLIP_L,),
        unet=SD1_UNET,
        vae=VAE,
        scheduler={"_class_name": "PNDMScheduler", **NOISE, "skip_prk_steps": True, "set_alpha_to_one": False},
    ),
    "sd2": Published(
        title="Stable Diffusion 2.1, 768 pixels",
        pipeline="StableDiffusionPipeline",
        text_encoders=(OPEN_CLIP_H,),
        unet=SD2_768_UNET,
        vae={**VAE, "sample_size": 768},
        scheduler={
            "_class_name": "DDIMScheduler",
            **NOISE,
            "clip_sample": False,
            "set_alpha_to_one": False,
            "prediction_type": "v_prediction",
        },
    ),
    "sdxl": Published(
        title="Stable Diffusion XL base 1.0",
        pipeline="StableDiffusionXLPipeline",
        text_encoders=(CLIP_L, OPEN_CLIP_G),
        unet=SDXL_UNET,
        vae={**VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        scheduler={"_class_name": "EulerDiscreteScheduler", **NOISE, "timestep_spacing": "leading"},
    ),
}
