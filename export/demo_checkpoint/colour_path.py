"""Initial weights of the autoencoder with which it keeps colours from the first step on.

Group normalisation divides by the spread of the whole input: a flat colour is lost, and an object's colour comes to
depend on how large the object is. A small network does not learn its way around that in minutes. So the path that a
colour takes is built, in the first eight channels of every feature map:

- channels 0 and 1 are +CONSTANT and -CONSTANT everywhere. They make up nearly all of the mean and the spread of a
  normalisation group, which then no longer depend on the picture; the normalisation's scale undoes the division.
- channels 2-4 carry red, green and blue, channels 5-7 their negatives. silu(x) - silu(-x) = x, so the activation
  before the last convolution lets a colour through exactly.

The encoder is complete with that: its latents are the mean colours of the 8x8 cells, and a fourth channel of zeros.
In the decoder the other channels start at random; they learn where inside a cell an edge runs.
"""

import math
from collections.abc import Iterator

import torch
from diffusers import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

CONSTANT = 16.0  # its square is far above what colours add to the spread (about 0.5 each)
LOG_VARIANCE = -6.0  # of the posterior: a standard deviation of 0.05, the noise that the decoder is trained to bear
_PATH = 8  # channels: two constants, three colours, their negatives


@torch.no_grad()
def build_colour_path(vae: AutoencoderKL) -> None:
    """Set the autoencoder's initial weights: mean colours in, mean colours out."""
    for conv in _convolutions(vae.encoder):
        nn.init.zeros_(conv.weight)
    for conv in _convolutions(vae.decoder):
        nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
        conv.weight[:, :2] = 0  # or the constants would flood everything, and show where a picture ends
    for part in (vae.encoder, vae.decoder):
        _build_blocks(part)
        _split_signs(part.conv_in)
        _join_signs(part.conv_out)
    vae.encoder.conv_out.bias[vae.config.latent_channels :] = LOG_VARIANCE
    for mix in (vae.quant_conv, vae.post_quant_conv):
        mix.weight.copy_(torch.eye(len(mix.weight))[..., None, None])
        mix.bias.zero_()


def _build_blocks(part: nn.Module) -> None:
    for module in part.modules():
        if isinstance(module, ResnetBlock2D):
            _make_constant(module.conv1)
            nn.init.zeros_(module.conv2.weight)  # a block adds nothing at first
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                _carry(module.conv_shortcut, torch.ones(1, 1))
        elif isinstance(module, Downsample2D):
            _carry(module.conv, torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 0]]) / 4)  # padded right and below
        elif isinstance(module, Upsample2D):
            _carry(module.conv, _centre())
        elif isinstance(module, nn.GroupNorm):
            module.weight.fill_(CONSTANT * math.sqrt(2 / module.num_channels))


def _carry(conv: nn.Conv2d, kernel: torch.Tensor) -> None:
    """Let a convolution pass the colours on through a kernel."""
    _make_constant(conv)
    conv.weight[2:_PATH] = 0
    for channel in range(2, _PATH):
        conv.weight[channel, channel] = kernel


def _make_constant(conv: nn.Conv2d) -> None:
    _bias(conv).zero_()
    conv.weight[:2] = 0
    _bias(conv)[:2] = torch.tensor([CONSTANT, -CONSTANT])


def _split_signs(conv: nn.Conv2d) -> None:
    """First convolution: three input channels become colours and negatives."""
    _make_constant(conv)
    conv.weight[2:_PATH] = 0
    for colour in range(3):
        conv.weight[2 + colour, colour] = _centre()
        conv.weight[5 + colour, colour] = -_centre()


def _join_signs(conv: nn.Conv2d) -> None:
    """Last convolution: colours less negatives become the first three output channels, the others zero."""
    nn.init.zeros_(conv.weight)
    _bias(conv).zero_()
    for colour in range(3):
        conv.weight[colour, 2 + colour] = _centre()
        conv.weight[colour, 5 + colour] = -_centre()


def _bias(conv: nn.Conv2d) -> torch.Tensor:
    if conv.bias is None:
        raise ValueError("colour path: a convolution without a bias has no place for a constant")
    return conv.bias


def _centre() -> torch.Tensor:
    return torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])


def _convolutions(part: nn.Module) -> Iterator[nn.Conv2d]:
    return (module for module in part.modules() if isinstance(module, nn.Conv2d))
