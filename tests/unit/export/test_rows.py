"""Rows of waiting requests are joined, and each request gets its own rows or its own error."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rows import InvalidInputError, Slot, join_rows, make_slot, plan_runs, run_requests, run_slots, split_rows

Array = npt.NDArray[np.float32]


def slot(request: int, rows: int, width: int = 3) -> Slot:
    """Rows that hold the request's number."""
    return make_slot(request, {"x": np.full((rows, width), request, np.float32)})


def requests_of(runs: list[list[Slot]]) -> list[list[int]]:
    return [[slot.request for slot in run] for run in runs]


def test_requests_share_runs_up_to_the_largest_batch() -> None:
    slots = [slot(request, rows) for request, rows in enumerate([4, 8, 4, 1])]
    assert requests_of(plan_runs(slots, 16)) == [[0, 1, 2], [3]]


def test_only_rows_of_one_shape_share_a_run() -> None:
    slots = [slot(request, 1, width) for request, width in enumerate([3, 5, 3, 5])]
    assert requests_of(plan_runs(slots, 16)) == [[0, 2], [1, 3]]


def test_splitting_undoes_joining() -> None:
    slots = [slot(request, rows) for request, rows in enumerate([2, 1, 3])]
    joined = join_rows(slots)
    assert joined["x"][:, 0].tolist() == [0, 0, 1, 2, 2, 2]
    for request, tensors in split_rows(joined, slots).items():
        assert not isinstance(tensors, Exception)
        np.testing.assert_array_equal(tensors["x"], slots[request].tensors["x"])


def fails_on_1(tensors: Mapping[str, Array]) -> Mapping[str, Array]:
    if (tensors["x"] == 1).any():
        raise RuntimeError("one")
    return {"y": tensors["x"] * 2}


def test_a_joint_run_that_fails_is_repeated_alone_and_only_the_cause_fails() -> None:
    results: Any = run_slots(fails_on_1, [slot(request, 2) for request in range(3)])
    assert str(results[1]) == "one"
    assert [results[request]["y"].tolist() for request in (0, 2)] == [[[0] * 3] * 2, [[4] * 3] * 2]


def test_inputs_of_different_row_counts_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"as many rows in every input, found \{'x': 2, 't': 1\}"):
        make_slot(0, {"x": np.zeros((2, 3)), "t": np.zeros(1)})


def test_every_request_gets_its_result_or_its_error_in_order() -> None:
    uneven = {"x": np.zeros((2, 3)), "t": np.zeros(1)}
    results: Any = run_requests([slot(0, 1).tensors, uneven, slot(1, 1).tensors, slot(2, 2).tensors], fails_on_1, 16)
    assert [type(result) for result in results] == [dict, InvalidInputError, RuntimeError, dict]
    assert results[3]["y"].tolist() == [[4] * 3] * 2
