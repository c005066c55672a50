"""The inner half of the UNet as a network of its own, so that what a prompt says is learned where a picture is cheap.

Colours, shapes and where things are live in the two lower levels, which see the window's 64x64 cells as 16x16. There,
the mean of 4x4 cells is a picture with a quarter of the noise, and the mean of v over them is what those levels have to
know. `Core` trains them on exactly that, at a tenth of the window's cost; `grow` then starts the whole UNet from it:
its upper levels hand the lower ones the same means, and `UpperLevels` trains them to draw edges around a core that
stays.

B rows, L = 77 tokens, D embedding; (c, c) cells of the core, (4c, 4c) of the UNet.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn

POOLED = 4  # a core's cell is this many cells of the UNet, a side
_LEVELS = 2  # of the UNet above the core
_AVERAGE = torch.tensor([[0.0, 0, 0], [0, 1, 1], [0, 1, 1]]) / 4  # as a convolution of stride 2


class Core(nn.Module):
    """A UNet's two lower levels between adapters: pooled noisy latents (B, 4, c, c) -> pooled v (B, 4, c, c)."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.time_proj = unet.time_proj
        self.time_embedding = unet.time_embedding
        self.add_embedding = unet.add_embedding
        self.down_blocks = unet.down_blocks[_LEVELS:]
        self.mid_block = unet.mid_block
        self.up_blocks = unet.up_blocks[:-_LEVELS]
        entered = unet.config.block_out_channels[_LEVELS - 1]
        left = unet.config.block_out_channels[_LEVELS]
        self.enter = nn.Conv2d(unet.config.in_channels, entered, 1)
        self.leave = nn.Sequential(
            nn.GroupNorm(unet.config.norm_num_groups, left),
            nn.SiLU(),
            nn.Conv2d(left, unet.config.out_channels, 3, padding=1),
        )

    def forward(
        self, latents: torch.Tensor, timesteps: torch.Tensor, prompt_embeds: torch.Tensor
    ) -> UNet2DConditionOutput:
        """Predict pooled v at timesteps (B,), or () for all rows, for prompts (B, L, D): called as the UNet is."""
        embedding = self.embed(timesteps.expand(len(latents)), prompt_embeds)
        return UNet2DConditionOutput(sample=self.leave(self.features(self.enter(latents), embedding, prompt_embeds)))

    def embed(self, timesteps: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """The UNet's embedding (B, channels) of timesteps (B,) and pooled prompts."""
        time = self.time_embedding(self.time_proj(timesteps).to(prompt_embeds.dtype))
        embedding: torch.Tensor = time + self.add_embedding(prompt_embeds)
        return embedding

    def features(self, hidden: torch.Tensor, embedding: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """What the UNet's upper levels get from the lower ones, before it is upsampled: (B, channels, c, c)."""
        skipped: tuple[torch.Tensor, ...] = (hidden,)
        for block in self.down_blocks:
            hidden, outputs = block(hidden, embedding, **_prompted(block, prompt_embeds))
            skipped += outputs
        hidden = self.mid_block(hidden, embedding, encoder_hidden_states=prompt_embeds)
        *lower, last = self.up_blocks
        for block in lower:
            count = len(block.resnets)
            skipped, outputs = skipped[:-count], skipped[-count:]
            hidden = block(hidden, outputs, embedding, **_prompted(block, prompt_embeds))
        # The last block without its upsampler, for the core ends here.
        for resnet, output in zip(last.resnets, reversed(skipped), strict=True):
            hidden = resnet(torch.cat([hidden, output], dim=1), embedding)
        return hidden


class UpperLevels(nn.Module):
    """A grown UNet in which only what lies above the core learns: the same output, and no gradient through the core."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet
        self.core = Core(unet)
        unet.requires_grad_(False)
        for part in (unet.conv_in, *unet.down_blocks[:_LEVELS]):
            part.requires_grad_(True)
        unet.down_blocks[_LEVELS - 1].downsamplers.requires_grad_(False)  # the way into the core
        for part in (unet.up_blocks[-_LEVELS - 1].upsamplers, *unet.up_blocks[-_LEVELS:]):
            part.requires_grad_(True)
        for part in (unet.conv_norm_out, unet.conv_out):
            part.requires_grad_(True)
        for parameter, mask in _kept(unet):
            _train_only(parameter, ~mask)

    def forward(
        self, latents: torch.Tensor, timesteps: torch.Tensor, prompt_embeds: torch.Tensor
    ) -> UNet2DConditionOutput:
        """Predict v (B, 4, 4c, 4c) at timesteps (B,) for prompts (B, L, D): called as the UNet is."""
        unet, core = self.unet, self.core
        with torch.no_grad():
            embedding = core.embed(timesteps, prompt_embeds)
        hidden = unet.conv_in(latents)
        skipped: tuple[torch.Tensor, ...] = (hidden,)
        for block in unet.down_blocks[:_LEVELS]:
            hidden, outputs = block(hidden, embedding)
            skipped += outputs
        with torch.no_grad():
            hidden = core.features(hidden, embedding, prompt_embeds)
        hidden = unet.up_blocks[-_LEVELS - 1].upsamplers[0](hidden)
        skipped = skipped[:-1]  # the last one is the core's
        for block in unet.up_blocks[-_LEVELS:]:
            count = len(block.resnets)
            skipped, outputs = skipped[:-count], skipped[-count:]
            hidden = block(hidden, outputs, embedding)
        return UNet2DConditionOutput(sample=unet.conv_out(F.silu(unet.conv_norm_out(hidden))))


@torch.no_grad()
def confine_prompt(unet: UNet2DConditionModel) -> None:
    """Let the pooled prompt reach only the second half of the time embedding, and keep it there in training.

    The upper levels then read the first half alone (`grow`): they draw what the core tells them and never see the
    prompt, so guidance, which multiplies whatever a prompt changes, has nothing of theirs to multiply.
    """
    norm = unet.add_embedding.norm2
    prompt_alone = torch.arange(len(norm.weight), device=norm.weight.device) >= _time_channels(unet)
    for parameter in (norm.weight, norm.bias):
        parameter *= prompt_alone
        _train_only(parameter, prompt_alone)


def _time_channels(unet: UNet2DConditionModel) -> int:
    """How many channels of the time embedding know nothing of the prompt: the first ones."""
    return int(unet.time_embedding.linear_2.out_features) // 2


def _train_only(parameter: nn.Parameter, mask: torch.Tensor) -> None:
    """Keep a parameter as it is where a mask, which broadcasts to it, is false."""
    parameter.register_hook(lambda gradient: gradient * mask)  # type: ignore[no-untyped-call]


def _prompted(block: nn.Module, prompt_embeds: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"encoder_hidden_states": prompt_embeds} if getattr(block, "has_cross_attention", False) else {}


@torch.no_grad()
def grow(core: Core, unet: UNet2DConditionModel) -> None:
    """Let a UNet whose lower levels are the core's hand them the pooled latents, as the core's adapter did.

    The first channels of the upper levels carry the latents and average them on the way down; the others keep their
    random weights, for the edges that are still to be learned. No upper level reads what it could know of the prompt.
    """
    channels = unet.config.in_channels
    _carry(unet.conv_in, channels, torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]))
    upper = unet.down_blocks[:_LEVELS]
    for block in upper:
        for resnet in block.resnets:
            nn.init.zeros_(resnet.conv2.weight)  # adds nothing at first
            nn.init.zeros_(resnet.conv2.bias)
            if resnet.conv_shortcut is not None:
                _carry(resnet.conv_shortcut, channels, torch.ones(1, 1))
    for block in upper[:-1]:
        _carry(block.downsamplers[0].conv, channels, _AVERAGE)
    last = upper[-1].downsamplers[0].conv
    nn.init.zeros_(last.weight)
    last.weight[:, :channels] = core.enter.weight * _AVERAGE
    last.bias.copy_(core.enter.bias)
    for block in (*upper, *unet.up_blocks[-_LEVELS:]):
        for resnet in block.resnets:
            resnet.time_emb_proj.weight[:, _time_channels(unet) :] = 0


def _kept(unet: UNet2DConditionModel) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    """What `grow` sets and training must leave alone: parameters of the upper levels, each with the mask of it."""
    upper = unet.down_blocks[:_LEVELS]
    carrying = [unet.conv_in, *(block.downsamplers[0].conv for block in upper[:-1])]
    for block in upper:
        for resnet in block.resnets:
            carrying += [resnet.conv2, *([] if resnet.conv_shortcut is None else [resnet.conv_shortcut])]
    for conv in carrying:
        first = torch.arange(conv.out_channels, device=unet.device) < unet.config.in_channels
        yield conv.weight, first[:, None, None, None]
        yield conv.bias, first
    for block in (*upper, *unet.up_blocks[-_LEVELS:]):
        for resnet in block.resnets:
            weight = resnet.time_emb_proj.weight
            yield weight, torch.arange(weight.shape[1], device=unet.device) >= _time_channels(unet)


def _carry(conv: nn.Conv2d, channels: int, kernel: torch.Tensor) -> None:
    """Let the first output channels of a convolution be the first input channels through a kernel."""
    conv.weight[:channels] = 0
    if conv.bias is not None:
        conv.bias[:channels] = 0
    for channel in range(channels):
        conv.weight[channel, channel] = kernel
