"""The palette is what the checkpoint's own encoder makes of constant colours."""

import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.numpy import load_file

from multsd_export.artefacts import Artefact, palette_artefact
from multsd_export.checkpoint import read_checkpoint
from multsd_export.modules import Wrapper
from multsd_export.networks import networks_of
from multsd_export.palette import Encode, draw_colours, torch_encoder

from .conftest import WINDOW, Exported


def test_colours_are_uniform_and_always_the_same() -> None:
    colours = draw_colours()
    assert colours.shape == (64, 3)
    assert colours.dtype == np.float32
    assert 0 <= colours.min() < 0.1
    assert 0.9 < colours.max() <= 1
    np.testing.assert_array_equal(colours, draw_colours())


def test_latents_are_scaled_posterior_means_of_constant_pictures(exported: Exported) -> None:
    palette = load_file(exported.options.work_dir / "palette" / "palette.safetensors")
    assert palette["latents"].shape == (64, 4, WINDOW, WINDOW)
    assert palette["latents"].dtype == palette["colours"].dtype == np.float32
    np.testing.assert_array_equal(palette["colours"], draw_colours())
    vae = AutoencoderKL.from_pretrained(
        exported.options.checkpoint / "vae", torch_dtype=torch.float32, low_cpu_mem_usage=False
    )
    colour = torch.from_numpy(palette["colours"][7]).reshape(1, 3, 1, 1)
    picture = (colour * 2 - 1).expand(1, 3, WINDOW * 8, WINDOW * 8)
    with torch.no_grad():
        expected = vae.encode(picture).latent_dist.mean * vae.config.scaling_factor
    error = np.abs(palette["latents"][7] - expected.numpy()[0]).max()
    assert error == pytest.approx(0, abs=1e-4 * float(expected.abs().max()))


class Crowded(Wrapper):
    """An encoder for which a GPU has no room."""

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return 2 * sample

    def to(self, device: torch.device) -> "Crowded":  # type: ignore[override]
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.5 GiB.")
        return self


def test_where_a_gpu_has_no_room_the_processor_encodes(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (encoder,) = (each for each in networks_of(read_checkpoint(checkpoint_folder)) if each.name == "vae_encoder")
    encode = torch_encoder(replace(encoder, load=lambda _dtype: Crowded(None)))
    for value in (1, 2):
        picture = np.full((1, 3, 8, 8), value, dtype=np.float32)
        np.testing.assert_array_equal(encode(picture), 2 * picture)


def test_what_torch_keeps_of_a_gpu_is_given_back_when_the_encoder_is_gone(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine's builder comes next, in the same process."""
    alive: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
    found: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: found.append(len(alive)))

    def encode() -> Encode:
        module = torch.nn.AvgPool2d(8)
        alive.add(module)
        return lambda image: np.resize(module(torch.from_numpy(image)).numpy(), (1, 4, WINDOW, WINDOW))

    vae_encoder = Artefact(tmp_path / "vae_encoder", "key", {}, {})
    palette_artefact(vae_encoder, encode, read_checkpoint(checkpoint_folder), tmp_path, lambda _share: None, 2)
    assert found == [0]
