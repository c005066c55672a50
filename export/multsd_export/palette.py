"""The palette: constant-colour pictures, encoded once, on which regions are bootstrapped.

The reference draws and encodes them anew for every request (`get_random_background`); they do not depend on the
request, so they are artefacts of the checkpoint. P colours.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from multsd_export.checkpoint import Checkpoint
from multsd_export.parity import open_session

PALETTE_FILE = "palette.safetensors"
COLOURS = 64
SEED = 0

Floats = npt.NDArray[np.float32]


def draw_colours(count: int = COLOURS) -> Floats:
    """(P, 3) float32, uniform in [0, 1)."""
    return np.random.default_rng(SEED).random((count, 3), dtype=np.float32)


def write_palette(
    vae_encoder: Path, checkpoint: Checkpoint, file: Path, progress: Callable[[float], None], count: int = COLOURS
) -> None:
    """Encode the colours with an exported `vae_encoder` and write them.

    The file holds latents: (P, 4, window, window) float32, posterior mean * scaling_factor; and colours: (P, 3)
    float32 in [0, 1).
    """
    session = open_session(vae_encoder)
    colours = draw_colours(count)
    latents = []
    for index, colour in enumerate(colours):
        image = _constant_image(colour, checkpoint.window * checkpoint.vae_scale_factor)
        latents.append(session.run(["latent_sample"], {"sample": image})[0])
        progress((index + 1) / count)
    scaled = np.concatenate(latents) * np.float32(checkpoint.scaling_factor)  # (P, 4, window, window)
    save_file({"latents": np.ascontiguousarray(scaled, dtype=np.float32), "colours": colours}, file)


def _constant_image(colour: Floats, side: int) -> Floats:
    """(1, 3, side, side) in [-1, 1], `side` in pixels."""
    return np.tile((colour * 2 - 1).reshape(1, 3, 1, 1), (1, 1, side, side))
