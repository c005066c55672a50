"""A checkpoint of a published configuration with random weights in half precision."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from multsd_export.json_files import write_json
from multsd_export.rehearsal.configs import Config, Published

START, END = "<|startoftext|>", "<|endoftext|>"
EMBEDDING_STD = 0.02
CPU = torch.device("cpu")


def write_random_checkpoint(published: Published, path: Path, seed: int = 0, device: torch.device = CPU) -> None:
    """Write every component, one after the other, so that no two are in memory at a time.

    Args:
        device: draws the weights; another one draws others.
    """
    generator = torch.Generator(device).manual_seed(seed)
    for index, config in enumerate(published.text_encoders):
        suffix = f"_{index + 1}" if index else ""
        _write_text_encoder(CLIPTextConfig(**config), bool(index), path / f"text_encoder{suffix}", generator)
        _write_tokenizer(path / f"tokenizer{suffix}", config["vocab_size"])
    _write_diffusers(UNet2DConditionModel, published.unet, path / "unet", generator)
    _write_diffusers(AutoencoderKL, published.vae, path / "vae", generator)
    (path / "scheduler").mkdir()
    write_json(path / "scheduler" / "scheduler_config.json", published.scheduler)
    write_json(path / "model_index.json", {"_class_name": published.pipeline})


def _write_diffusers(model_class: Any, config: Config, folder: Path, generator: torch.Generator) -> None:
    with torch.device("meta"):
        model = model_class(**config)
    model.save_config(folder)
    _write_weights(model, folder / "diffusion_pytorch_model.safetensors", generator)


def _write_text_encoder(config: Any, projects: bool, folder: Path, generator: torch.Generator) -> None:
    model_class = CLIPTextModelWithProjection if projects else CLIPTextModel
    with torch.device("meta"):
        model = model_class(config)
    config.architectures = [model_class.__name__]
    config.save_pretrained(folder)
    _write_weights(model, folder / "model.safetensors", generator)


def _write_weights(model: Any, file: Path, generator: torch.Generator) -> None:
    """Of a scale at which activations neither vanish nor overflow."""
    weights = {name: _random(name, tensor.shape, generator) for name, tensor in model.state_dict().items()}
    save_file(weights, file, metadata={"format": "pt"})


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if len(shape) < 2:
        return torch.zeros(shape, dtype=torch.half) if name.endswith("bias") else torch.ones(shape, dtype=torch.half)
    std = EMBEDDING_STD if "embeddings." in name else 1 / math.sqrt(math.prod(shape[1:]))
    return (torch.randn(shape, generator=generator, device=generator.device) * std).half().cpu()


def _write_tokenizer(folder: Path, size: int) -> None:
    """Byte-pair files of the full vocabulary's size, without merges: prompts become letters."""
    letters = sorted(ByteLevel.alphabet())
    known = [*letters, *(f"{letter}</w>" for letter in letters)]
    unused = [f"unused{index}</w>" for index in range(size - len(known) - 2)]
    folder.mkdir()
    vocabulary = {token: index for index, token in enumerate([*known, *unused, START, END])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": END}
    write_json(folder / "tokenizer_config.json", config)
