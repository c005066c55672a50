"""Reading JSON leniently, and the bound on its nesting."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multsd_gateway.body import MAX_DEPTH, check_nesting, most_containers, parse_object
from multsd_gateway.errors import InvalidRequestError
from multsd_gateway.service import check
from multsd_gateway.settings import Settings

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=4), st.booleans())
def test_what_json_dumps_writes_is_read(value: dict[str, object], ascii_only: bool) -> None:
    assert parse_object(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


def test_a_byte_order_mark_and_raw_control_characters_are_read() -> None:
    assert parse_object(b'\xef\xbb\xbf{"a": "b\n\tc"}') == {"a": "b\n\tc"}


def test_brackets_inside_strings_do_not_nest() -> None:
    text = json.dumps({"a": "[" * 1000 + '\\"' + "{" * 1000})

    assert parse_object(text.encode()) == json.loads(text)


def test_nesting_up_to_the_bound_is_read() -> None:
    check_nesting("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(InvalidRequestError):
        check_nesting("[" * (MAX_DEPTH + 1))


def test_as_many_points_as_the_limits_allow_are_read() -> None:
    limits = Settings(max_regions=20, max_polygon_points=1000)
    masks = [{"polygon": [[x, x % 7] for x in range(1000)]}] * 20
    body = json.dumps({"bg_prompt": "a", "fg_prompt": ["b"] * 20, "masks": masks}).encode()

    with pytest.raises(InvalidRequestError, match="at most 10000 lists and objects"):
        parse_object(body)
    assert len(parse_object(body, most_containers(limits))["masks"]) == 20
    request, _ = check(body, strict=False, settings=limits, samplers=None)
    assert len(request.masks) == 20


@pytest.mark.parametrize("text", ['"' + '\\"' * 2_000_000, '"' * 4_000_001, "\\" * 4_000_000, '"\\', "x" * 4_000_000])
def test_hostile_text_costs_one_pass(text: str) -> None:
    began = time.perf_counter()
    check_nesting(text)

    assert time.perf_counter() - began < 5
