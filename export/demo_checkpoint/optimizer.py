"""The optimizer of UNet and text encoder: Muon for the hidden weights, AdamW for all else.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) gives every direction of a weight matrix an
update of the same size. Shapes need that: the gradient of "which shape is it" is small beside that of colours and
grounds. With AdamW the core had a fifth of the shapes after 8700 steps; with Muon, and easy pictures first, two thirds
after 1500.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

MOMENTUM = 0.95
BETAS = (0.9, 0.99)  # of AdamW
# Neither lookup tables, whose rows are used apart, nor the layers next to the latents' few channels.
NOT_HIDDEN = ("embeddings", "positional_embedding", "conv_in", "conv_out", "enter", "leave")


class MuonAndAdamW:
    """One optimizer of a network's trainable weights, made of the two; both follow the same learning rate."""

    def __init__(self, network: nn.Module, *, weight_decay: float) -> None:
        named = [(name, weight) for name, weight in network.named_parameters() if weight.requires_grad]
        hidden = [weight for name, weight in named if weight.ndim >= 2 and not set(name.split(".")) & set(NOT_HIDDEN)]
        taken = {id(weight) for weight in hidden}
        others = [weight for _, weight in named if id(weight) not in taken]
        # torch's Muon takes matrices alone: each is a view (outputs, inputs x window) of its convolution's weight.
        self._matrices = [(weight, nn.Parameter(_as_matrix(weight.detach()))) for weight in hidden]
        self._muon = torch.optim.Muon(
            [matrix for _, matrix in self._matrices],
            momentum=MOMENTUM,
            weight_decay=weight_decay,
            adjust_lr_fn="match_rms_adamw",  # so that AdamW's rates fit it
        )
        self._adamw = torch.optim.AdamW(others, weight_decay=weight_decay, betas=BETAS)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both, as torch's optimizers have them."""
        return [*self._muon.param_groups, *self._adamw.param_groups]

    def step(self) -> None:
        """One update from the gradients."""
        for weight, matrix in self._matrices:
            matrix.grad = None if weight.grad is None else _as_matrix(weight.grad, like=weight)
        self._muon.step()  # type: ignore[no-untyped-call]
        self._adamw.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self._weights():
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from."""
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from another optimizer's `state_dict`, over weights of the same names and shapes."""
        self._muon.load_state_dict(state["muon"])
        self._adamw.load_state_dict(state["adamw"])

    def _weights(self) -> Iterator[torch.Tensor]:
        yield from (weight for weight, _ in self._matrices)
        yield from (weight for group in self._adamw.param_groups for weight in group["params"])


def _as_matrix(values: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """A weight, or its gradient if `like` is the weight, as (outputs, the rest) in the weight's own order in memory.

    Of a weight that is a view, so that updating the matrix updates the weight.
    """
    weight = values if like is None else like
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.view(len(weight), -1) if like is None else values.reshape(len(weight), -1)
