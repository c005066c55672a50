"""Every family of checkpoints, exported and served by a real Triton: equal to the published loop on torch.

Networks, tokenizers and schedulers of the loop come from the checkpoint's folder through diffusers and transformers
themselves; only noise, masks, views and the choice of backgrounds are taken from the method's own modules.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpcclient
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from multsd_export.pipeline import Options, export
from multsd_export.profiles import CPU
from pipeline import BACKGROUND_STREAM
from regions import make_canvas, region_masks
from sampling import draw_bootstrapping, draw_noise
from tests.integration.conftest import ROOT, serve
from tests.integration.test_triton_clients import request, stream
from tests.small_checkpoints import STRUCTURES, kept_onnx, write_small_checkpoint
from tests.unit.repository.reference import copy_of, paint_with_plain_loop
from views import View, make_views

CELL = 8
STEPS, BOOTSTRAPPING, SEED, GUIDANCE_SCALE = 3, 2, 5, 7.5
PROMPTS, NEGATIVES = ("a quiet sea", "a red boat"), ("", "blurred")


class Torch:
    """A checkpoint's own text encoders and UNet, as diffusers' pipelines use them."""

    def __init__(self, folder: Path) -> None:
        self.xl = json.loads((folder / "model_index.json").read_text())["_class_name"] == "StableDiffusionXLPipeline"
        suffixes = ["", "_2"] if self.xl else [""]
        classes: list[Any] = [CLIPTextModel, CLIPTextModelWithProjection]
        self.encoders = [
            (
                CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}"),
                model.from_pretrained(folder / f"text_encoder{suffix}", dtype=torch.float32).eval(),
            )
            for suffix, model in zip(suffixes, classes, strict=False)
        ]
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval()

    def encode(self, text: str, *, zeroed: bool) -> tuple[Tensor, Tensor | None]:
        """(1, L, D) and, for SDXL, the pooled (1, P)."""
        hidden, pooled = [], None
        for tokenizer, model in self.encoders:
            ids = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
            output = model(ids, output_hidden_states=True)
            hidden.append(output.hidden_states[-2] if self.xl else output.last_hidden_state)
            pooled = output.text_embeds if self.xl and "text_embeds" in output else pooled
        joined = torch.cat(hidden, dim=-1)
        if zeroed:
            return torch.zeros_like(joined), None if pooled is None else torch.zeros_like(pooled)
        return joined, pooled


@torch.no_grad()
def plain_loop(checkpoint: Path, repository: Path, masks: np.ndarray[Any, Any]) -> Tensor:
    """Latents of the published method on torch."""
    settings = json.loads((repository / "multidiffusion/1/checkpoint/settings.json").read_text())
    palette = load_file(repository / "multidiffusion/1/checkpoint/palette.safetensors")["latents"]
    window, (height, width) = settings["window"], masks.shape[1:]
    networks = Torch(checkpoint)
    canvas = make_canvas(height, width, window=window, cell=CELL)
    views = make_views(canvas.height, canvas.width, window=window, stride=settings["view_stride"])
    choices = draw_bootstrapping(
        palette,
        steps=BOOTSTRAPPING,
        views=len(views),
        regions=len(PROMPTS),
        generator=torch.Generator().manual_seed(SEED + BACKGROUND_STREAM),
    ).choices
    scheduler = DDIMScheduler.from_pretrained(checkpoint / "scheduler", clip_sample=False)
    scheduler.set_timesteps(STEPS)
    prompts = [networks.encode(text, zeroed=False) for text in PROMPTS]
    negatives = [networks.encode(text, zeroed=networks.xl and not text) for text in NEGATIVES]
    # Each view is asked for once a step, with every region's unconditional row, then every region's conditional one.
    pooled = [added for _, added in (*negatives, *prompts) if added is not None]
    corners: Iterator[View] = iter([view for _ in range(STEPS) for view in views])

    def unet(sample: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        if not networks.xl:
            return networks.unet(sample, timestep, embeds).sample  # type: ignore[no-any-return]
        top, left = next(corners)
        ids = [canvas.height, canvas.width, top, left, window, window]
        added = {"text_embeds": torch.cat(pooled), "time_ids": torch.tensor([ids] * len(embeds)) * float(CELL)}
        return networks.unet(sample, timestep, embeds, added_cond_kwargs=added).sample  # type: ignore[no-any-return]

    return paint_with_plain_loop(
        draw_noise(canvas.height, canvas.width, channels=4, generator=torch.Generator().manual_seed(SEED)),
        masks=torch.from_numpy(region_masks(masks, canvas)),
        prompt_embeds=[hidden for hidden, _ in prompts],
        negative_embeds=[hidden for hidden, _ in negatives],
        corners=views,
        window=window,
        make_scheduler=copy_of(scheduler),
        unet=unet,
        guidance_scale=GUIDANCE_SCALE,
        bootstrapping=BOOTSTRAPPING,
        background=lambda step, view, region: palette[int(choices[step, view, region])][None],
    )


@pytest.mark.parametrize("structure", sorted(STRUCTURES))
def test_a_served_picture_of_the_family_is_that_of_the_published_loop_on_torch(structure: str, tmp_path: Path) -> None:
    checkpoint = write_small_checkpoint(tmp_path / structure, structure)
    repository = tmp_path / "repository"
    quiet: Callable[[str, float], None] = lambda _stage, _share: None  # noqa: E731
    export(Options(checkpoint, repository, ROOT / "model_repository", kept_onnx(structure), CPU), quiet)
    side = STRUCTURES[structure].window * CELL
    masks = np.zeros((1, side, side + 40), np.bool_)
    masks[0, side // 4 :, side // 3 :] = True
    inputs = request(
        grpcclient,
        prompt=np.array([text.encode() for text in PROMPTS], dtype=object),
        negative_prompt=np.array([text.encode() for text in NEGATIVES], dtype=object),
        masks=masks.astype(np.uint8),
        height=np.array([side], np.int32),
        width=np.array([side + 40], np.int32),
        num_inference_steps=np.array([STEPS], np.int32),
        bootstrapping=np.array([BOOTSTRAPPING], np.int32),
        seed=np.array([SEED], np.uint64),
        return_latents=np.array([True]),
    )
    with serve(repository, tmp_path) as url:
        (final,) = stream(url, inputs)
    latents = torch.from_numpy(final.as_numpy("latents").copy())[None]
    expected = plain_loop(checkpoint, repository, masks)
    assert float((latents - expected).abs().max() / expected.abs().max()) <= 1e-4
    assert final.as_numpy("image").shape == (side, side + 40, 3)
