"""The palette: constant-colour pictures, encoded once, on which regions are bootstrapped.

The reference draws and encodes them anew for every request (`get_random_background`); they do not depend on the
request, so they are artefacts of the checkpoint. P colours.
"""

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save_file

from multsd_export.checkpoint import Checkpoint
from multsd_export.networks import DTYPES, Network
from multsd_export.parity import open_session

PALETTE_FILE = "palette.safetensors"
COLOURS = 64
SEED = 0

Floats = npt.NDArray[np.float32]
Encode = Callable[[Floats], Floats]  # (1, 3, 8h, 8w) in [-1, 1] -> (1, 4, h, w), the posterior's mean


def draw_colours(count: int = COLOURS) -> Floats:
    """(P, 3) float32, uniform in [0, 1)."""
    return np.random.default_rng(SEED).random((count, 3), dtype=np.float32)


def onnx_encoder(file: Path) -> Encode:
    """An exported `vae_encoder` in ONNX Runtime."""
    session = open_session(file)

    def encode(image: Floats) -> Floats:
        latents: Floats = session.run(["latent_sample"], {"sample": image})[0]
        return latents

    return encode


def torch_encoder(vae_encoder: Network) -> Encode:
    """The checkpoint's own: the weights of its precision, computed with in float32, on a GPU where torch sees one.

    Where that has too little memory, as beside a Triton that serves, the processor takes over.
    """
    torch.backends.cudnn.allow_tf32 = False  # a convolution in full float32 is what the processor computes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = vae_encoder.load(DTYPES[vae_encoder.precision]).float()

    def encode(image: Floats) -> Floats:
        nonlocal device
        try:
            return _encode(module, image, device)
        except torch.OutOfMemoryError:
            if device.type == "cpu":
                raise
        device = torch.device("cpu")
        return _encode(module, image, device)

    return encode


@torch.no_grad()
def _encode(module: torch.nn.Module, image: Floats, device: torch.device) -> Floats:
    latents: Floats = module.to(device)(torch.from_numpy(image).to(device)).cpu().numpy()
    return latents


def release_memory() -> None:
    """Give back what torch keeps of a GPU's memory, which an engine's builder in this process could not use."""
    gc.collect()
    torch.cuda.empty_cache()


def write_palette(
    encode: Encode, checkpoint: Checkpoint, file: Path, progress: Callable[[float], None], count: int = COLOURS
) -> None:
    """Encode the colours and write them.

    The file holds latents: (P, 4, window, window) float32, posterior mean * scaling_factor; and colours: (P, 3)
    float32 in [0, 1).
    """
    colours = draw_colours(count)
    latents = []
    for index, colour in enumerate(colours):
        latents.append(encode(_constant_image(colour, checkpoint.window * checkpoint.vae_scale_factor)))
        progress((index + 1) / count)
    scaled = np.concatenate(latents) * np.float32(checkpoint.scaling_factor)  # (P, 4, window, window)
    save_file({"latents": np.ascontiguousarray(scaled, dtype=np.float32), "colours": colours}, file)


def _constant_image(colour: Floats, side: int) -> Floats:
    """(1, 3, side, side) in [-1, 1], `side` in pixels."""
    return np.tile((colour * 2 - 1).reshape(1, 3, 1, 1), (1, 1, side, side))
