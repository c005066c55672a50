"""A build's progress as one number: TensorRT reports a tree of phases, each with steps of its own."""

import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class PhaseTree:
    """The share of a build that is done, 0 to 1, never falling. Its methods may be called from any thread.

    Phases that it was not told of are passed over: progress is no reason to end a build.
    """

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._share = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        with self._lock:
            self._phases[name] = _Phase(parent, steps)

    def complete(self, name: str, step: int) -> None:
        """A phase's step number `step`, counted from 0, is done."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
            self._tell()

    def finish(self, name: str) -> None:
        """A phase is over, whether or not all of its steps were told."""
        with self._lock:
            phase = self._phases.pop(name, None)
            if phase and phase.parent is None:
                self._share = 1.0
            self._tell()

    def _tell(self) -> None:
        roots = [name for name, phase in self._phases.items() if phase.parent is None]
        self._share = max([self._share, *map(self._share_of, roots)])
        self._report(self._share)

    def _share_of(self, name: str) -> float:
        """Steps that are done, and of the one under way what its own phases have done."""
        phase = self._phases[name]
        inner = [self._share_of(child) for child, other in self._phases.items() if other.parent == name]
        return min(1.0, (phase.done + max(inner, default=0.0)) / max(phase.steps, 1))
