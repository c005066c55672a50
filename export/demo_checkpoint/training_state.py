"""What a training run keeps on disk, so that it can be stopped at any step and go on as if it had not been."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up, the peak until step hold, then a cosine down to final."""

    peak: float
    final: float
    warmup: int
    hold: int
    steps: int

    def at(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        progress = max(0, step - self.hold) / max(1, self.steps - self.hold)
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Phases:
    """Several schedules, one after the other."""

    parts: tuple[LearningRate, ...]

    @property
    def steps(self) -> int:
        """In all."""
        return sum(part.steps for part in self.parts)

    def at(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        for part in self.parts:
            if step < part.steps:
                return part.at(step)
            step -= part.steps
        return self.parts[-1].final


class Optimizer(Protocol):
    """What a training needs of torch's optimizers."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Each with its "lr"."""

    def step(self) -> object:
        """One update from the gradients."""

    def zero_grad(self) -> None:
        """Forget the gradients."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from a `state_dict`."""


class TrainingState:
    """A network, the moving average of its weights, its optimizer, and how many steps they have seen."""

    def __init__(self, network: nn.Module, optimizer: Optimizer, *, ema_decay: float) -> None:
        self.network = network
        self.optimizer = optimizer
        self.ema_decay = ema_decay
        self.ema = {name: weight.detach().clone() for name, weight in network.state_dict().items()}
        self.step = 0

    def advance(self, loss: Callable[[], torch.Tensor], learning_rate: float) -> torch.Tensor:
        """One optimizer step on a loss, gradients clipped to norm 1; returns the loss, without waiting for a GPU."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self._average()
        return value.detach()

    def save(self, path: Path) -> None:
        """Write everything to one file, which is replaced only once it is whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        content = {"network": self.network.state_dict(), "ema": self.ema, "optimizer": self.optimizer.state_dict()}
        torch.save({**content, "step": self.step}, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Read what `save` wrote; weights that are not trained stay as they are, for they come from elsewhere."""
        content = torch.load(path, weights_only=True, map_location="cpu")
        frozen = {name for name, weight in self.network.named_parameters() if not weight.requires_grad}
        trained = {name: weight for name, weight in content["network"].items() if name not in frozen}
        self.network.load_state_dict({**self.network.state_dict(), **trained})
        self.optimizer.load_state_dict(content["optimizer"])
        for name in trained:
            self.ema[name].copy_(content["ema"][name])
        self.step = content["step"]

    @torch.no_grad()
    def _average(self) -> None:
        # A young average forgets faster, or it would remember the random start.
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        weights = {name: weight for name, weight in self.network.state_dict().items() if weight.is_floating_point()}
        torch._foreach_lerp_([self.ema[name] for name in weights], list(weights.values()), 1 - decay)


class MissingStateError(Exception):
    """A phase needs what another one has not written."""


def require_states(folder: Path, *names: str) -> None:
    """Raise MissingStateError where the folder lacks one of these files."""
    if not all((folder / name).is_file() for name in names):
        there = sorted(file.name for file in folder.glob("*.pt"))
        found = ", ".join(there) or "no state"
        raise MissingStateError(
            f"expected {' and '.join(names)} in {folder}, found {found if folder.is_dir() else 'no such folder'}"
        )


def averaged_weights(path: Path) -> dict[str, torch.Tensor]:
    """The moving average in a state file, in the layout of the network's state_dict.

    Raises MissingStateError where there is none.
    """
    require_states(path.parent, path.name)
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True, map_location="cpu")["ema"]
    return weights
