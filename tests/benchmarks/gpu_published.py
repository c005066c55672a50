"""The published method's networks in torch, eager: what `make bench-gpu` measures ours against.

As its authors run it (`generate` of region_based.py, github.com/omerbt/MultiDiffusion): weights in float32; on a GPU
all steps under one autocast, which casts each weight once; texts and pixels in float32. R rows, L tokens.
"""

from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from multsd_export.checkpoint import Checkpoint
from multsd_export.networks import networks_of
from tests.benchmarks.published import Networks


def eager_networks(checkpoint: Checkpoint, device: torch.device) -> Networks:
    """The checkpoint's own modules on a device."""
    modules = {network.name: network.load(torch.float32).to(device) for network in networks_of(checkpoint)}

    def text_encoder(*input_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden: list[Tensor] = []
        pooled = None
        for facts, ids in zip(checkpoint.text_encoders, input_ids, strict=True):
            result = modules[facts.model](ids)
            outputs = [result] if isinstance(result, Tensor) else list(result)
            hidden.append(outputs[0])
            pooled = outputs[1] if len(outputs) > 1 else pooled
        return torch.cat(hidden, dim=-1), pooled

    return Networks(
        text_encoder=text_encoder,
        unet=modules["unet"],
        vae_decoder=modules["vae_decoder"],
        vae_encoder=modules["vae_encoder"],
        device=device,
        steps=partial(torch.autocast, "cuda", torch.float16) if device.type == "cuda" else nullcontext,
        wait=partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None,
    )


def row_flops(checkpoint: Checkpoint) -> int:
    """Floating point operations of one UNet row, counted by torch on shapes alone."""
    (unet,) = (network for network in networks_of(checkpoint) if network.name == "unet")
    module = unet.load(torch.float16).to("meta")
    inputs = next(unet.draw(torch.Generator().manual_seed(0)))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*(tensor[:1].to("meta") for tensor in inputs))
    return int(counter.get_total_flops())
