"""A checkpoint small enough to reason about: windows of 8 x 8 cells, prompts of 8 tokens, a colour palette of 6."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from checkpoint import Checkpoint, TextEncoder
from prompts import PromptTokenizer
from sampling import Denoising, UNetRows

WINDOW = 8
EMBEDDING = 16
MAX_LENGTH = 8
WORDS = ("<start>", "<end>", "<unknown>", "a", "red", "cat", "blue", "dog", "on", "the", "moon")
START, END, UNKNOWN = 0, 1, 2

CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "prediction_type": "epsilon",
}


def make_tokenizer() -> PromptTokenizer:
    """Words as tokens, in lower case, between a start and an end token that also pads, as CLIP has it."""
    words = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(words, unk_token=WORDS[UNKNOWN]))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", START), ("<end>", END)]
    )
    return PromptTokenizer(tokenizer=tokenizer, max_length=MAX_LENGTH, pad_token_id=END)


def make_checkpoint(*, window: int = WINDOW, vae_scale_factor: int = 8, unet_max_batch_size: int = 3) -> Checkpoint:
    generator = torch.Generator().manual_seed(1)
    colours = torch.randn(6, 4, 1, 1, generator=generator)
    return Checkpoint(
        name="tiny",
        digest="0123",
        window=window,
        view_stride=4,
        latent_channels=4,
        vae_scale_factor=vae_scale_factor,
        scaling_factor=0.5,
        unet_max_batch_size=unet_max_batch_size,
        vae_tile=128,
        scheduler_config=CONFIG,
        text_encoders=(TextEncoder("text_encoder", ("last_hidden_state",), make_tokenizer()),),
        time_ids=False,
        zero_empty_negatives=False,
        palette=colours.expand(6, 4, window, window),
        preview=torch.tensor([[0.2, 0.0, 0.1], [0.0, 0.3, 0.1], [0.1, 0.0, 0.2], [0.1, 0.1, 0.1], [0.4, 0.5, 0.6]]),
    )


def make_unet(**differences: Any) -> Any:
    """A real UNet of some thousand random weights."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=WINDOW,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=EMBEDDING,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **differences,
    )
    return unet.eval().requires_grad_(False)


def answer(denoising: Denoising, unet: Callable[[UNetRows], Tensor], max_batch_size: int = 3) -> Tensor:
    """Answer a canvas until it has its latents, in calls of so many rows."""
    while not denoising.finished:
        while denoising.untaken:
            rows = denoising.take(max_batch_size)
            denoising.give(rows, unet(rows))
        denoising.advance()
    return denoising.latents


def network(unet: Any) -> Callable[[UNetRows], Tensor]:
    """A diffusers UNet as the loop asks for it."""

    def predict(rows: UNetRows) -> Tensor:
        prediction: Tensor = unet(rows.sample, rows.timestep, rows.encoder_hidden_states).sample
        return prediction

    return predict
