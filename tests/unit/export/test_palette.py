"""The palette is what the checkpoint's own encoder makes of constant colours."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.numpy import load_file

from multsd_export.palette import draw_colours

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
