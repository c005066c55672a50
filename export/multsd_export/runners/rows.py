"""The rows of waiting requests: which share a run, and whose results are whose.

An export copies this file beside a runner, as `1/rows.py` of every network.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]  # name -> (rows, ...)
Run = Callable[[Tensors], Tensors]


@dataclass(frozen=True)
class Slot:
    """The rows of one request."""

    request: int
    tensors: Tensors
    rows: int


class InvalidInputError(ValueError):
    """What a caller sent does not fit the network."""


def plan_runs(slots: Sequence[Slot], max_rows: int) -> list[list[Slot]]:
    """Group slots, in order, into runs of equal row shapes and at most `max_rows` rows.

    A request is never split: Triton admits none above the model's largest batch.
    """
    runs: list[list[Slot]] = []
    open_runs: dict[tuple[Any, ...], list[Slot]] = {}
    for slot in slots:
        key = tuple((name, array.shape[1:]) for name, array in sorted(slot.tensors.items()))
        run = open_runs.get(key)
        if run is None or sum(other.rows for other in run) + slot.rows > max_rows:
            run = open_runs[key] = []
            runs.append(run)
        run.append(slot)
    return runs


def run_slots(run: Run, slots: Sequence[Slot]) -> dict[int, Tensors | Exception]:
    """Run slots of equal row shapes together; results or errors by request.

    Where the joint run fails every request runs alone, so that one cannot fail its neighbours.
    """
    try:
        outputs = run(join_rows(slots))
    except Exception as error:
        if len(slots) == 1:
            return {slots[0].request: error}
        return {request: result for slot in slots for request, result in run_slots(run, [slot]).items()}
    return split_rows(outputs, slots)


def join_rows(slots: Sequence[Slot]) -> Tensors:
    """The rows of every slot, one after the other."""
    if len(slots) == 1:
        return slots[0].tensors
    return {name: np.concatenate([slot.tensors[name] for slot in slots]) for name in slots[0].tensors}


def split_rows(outputs: Tensors, slots: Sequence[Slot]) -> dict[int, Tensors | Exception]:
    """Undo `join_rows` on a run's outputs."""
    ends = np.cumsum([slot.rows for slot in slots])
    return {
        slot.request: {name: array[end - slot.rows : end] for name, array in outputs.items()}
        for slot, end in zip(slots, ends, strict=True)
    }


def make_slot(request: int, tensors: Tensors) -> Slot:
    """Check that every input has as many rows as the others.

    Raises:
        InvalidInputError: it has not.
    """
    rows = {name: len(array) for name, array in tensors.items()}
    if len(set(rows.values())) != 1:
        raise InvalidInputError(f"expected as many rows in every input, found {rows}")
    return Slot(request, tensors, next(iter(rows.values())))


def run_requests(requests: Sequence[Tensors], run: Run, max_rows: int) -> list[Tensors | Exception]:
    """The result or the error of each request, in order; those of equal row shapes share runs."""
    results: dict[int, Tensors | Exception] = {}
    slots: list[Slot] = []
    for index, tensors in enumerate(requests):
        try:
            slots.append(make_slot(index, tensors))
        except InvalidInputError as error:
            results[index] = error
    for together in plan_runs(slots, max_rows):
        results.update(run_slots(run, together))
    return [results[index] for index in range(len(requests))]
