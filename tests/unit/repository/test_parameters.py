import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from errors import InvalidRequestError
from parameters import Limits, Parameters, most_rows, parse_parameters

LIMITS = Limits(
    max_pixels=512 * 512,
    max_regions=4,
    max_mask_pixels=3 * 512 * 512,
    max_steps=100,
    max_prompt_bytes=20,
    max_running=1,
    max_waiting=1,
    max_waiting_rows=1000,
)
HEIGHT, WIDTH = 64, 72

Arrays = dict[str, npt.NDArray[Any] | None]


def texts(*values: bytes) -> npt.NDArray[np.object_]:
    return np.array(values, dtype=np.object_)


def integer(value: int) -> npt.NDArray[np.int32]:
    return np.array([value], dtype=np.int32)


def real(value: float) -> npt.NDArray[np.float32]:
    return np.array([value], dtype=np.float32)


def flag(value: bool) -> npt.NDArray[np.bool_]:
    return np.array([value])


def masks(count: int, height: int = HEIGHT, width: int = WIDTH) -> npt.NDArray[np.uint8]:
    return np.full((count, height, width), 255, dtype=np.uint8)


def parse(arrays: Arrays) -> Parameters:
    return parse_parameters(arrays, limits=LIMITS, window=64, view_stride=8)


def request(**changes: npt.NDArray[Any] | None) -> Arrays:
    """Two regions and what else a request has to say, then the changes; None leaves a field out."""
    least = {"prompt": texts(b"sea", b"boat", b"bird"), "masks": masks(2), "height": integer(64), "width": integer(72)}
    return least | changes


REFUSED: list[tuple[Arrays, str, str]] = [
    ({"preview_every": integer(-1)}, "preview_every", "expected 0 to 100, found -1"),
    ({"deadline_s": real(0)}, "deadline_s", "expected a finite number above 0, found 0.0"),
    ({"deadline_s": real(math.nan)}, "deadline_s", "expected a finite number above 0, found nan"),
    ({"deadline_s": real(math.inf)}, "deadline_s", "expected a finite number above 0, found inf"),
    ({"prompt": None}, "prompt", "expected 1 to 4 regions, found 0"),
    ({"prompt": texts()}, "prompt", "expected 1 to 4 regions, found 0"),
    ({"prompt": texts(*[b"sea"] * 5)}, "prompt", "expected 1 to 4 regions, found 5"),
    ({"prompt": texts(b"sea", b"x" * 21, b"bird")}, "prompt[1]", "expected at most 20 bytes, found 21"),
    ({"prompt": texts(b"sea", b"boat", "é".encode() * 11)}, "prompt[2]", "expected at most 20 bytes, found 22"),
    ({"prompt": texts(b"se\xff", b"boat", b"bird")}, "prompt[0]", "expected UTF-8, found byte 0xff at position 2"),
    ({"negative_prompt": texts(b"x" * 21)}, "negative_prompt[0]", "expected at most 20 bytes, found 21"),
    ({"negative_prompt": texts(b"\xc3\x28")}, "negative_prompt[0]", "expected UTF-8, found byte 0xc3 at position 0"),
    ({"negative_prompt": texts(b"", b"")}, "negative_prompt", "expected 3 (one per region) or 1 for all, found 2"),
    ({"negative_prompt": texts(*[b""] * 4)}, "negative_prompt", "expected 3 (one per region) or 1 for all, found 4"),
    ({"scheduler": texts(b"\xff")}, "scheduler[0]", "expected UTF-8"),
    ({"height": None}, "height", "expected 64 to 4096, found nothing"),
    ({"width": None}, "width", "expected 64 to 4096, found nothing"),
    ({"height": integer(63)}, "height", "expected 64 to 4096, found 63"),
    ({"width": integer(-64)}, "width", "expected 64 to 4096, found -64"),
    ({"width": integer(4097)}, "width", "expected 64 to 4096, found 4097"),
    ({"height": integer(2**31 - 1)}, "height", "expected 64 to 4096, found 2147483647"),
    ({"height": integer(512), "width": integer(513)}, "height", "at most 262144 pixels in all, found 512 x 513"),
    ({"num_inference_steps": integer(0)}, "num_inference_steps", "expected 1 to 100, found 0"),
    ({"num_inference_steps": integer(101)}, "num_inference_steps", "expected 1 to 100, found 101"),
    ({"bootstrapping": integer(-1)}, "bootstrapping", "expected 0 to 100, found -1"),
    ({"bootstrapping": integer(101)}, "bootstrapping", "expected 0 to 100, found 101"),
    ({"guidance_scale": real(float("nan"))}, "guidance_scale", "expected 0 to 100, found nan"),
    ({"guidance_scale": real(float("inf"))}, "guidance_scale", "expected 0 to 100, found inf"),
    ({"guidance_scale": real(-0.5)}, "guidance_scale", "expected 0 to 100, found -0.5"),
    ({"guidance_scale": real(100.5)}, "guidance_scale", "expected 0 to 100, found 100.5"),
    ({"view_stride": integer(0)}, "view_stride", "expected 1 to 64, found 0"),
    ({"view_stride": integer(65)}, "view_stride", "expected 1 to 64, found 65"),
    (
        {"masks": None},
        "masks",
        "expected shape (2, 64, 72) (one per prompt after the first, height, width), found none",
    ),
    ({"masks": masks(1)}, "masks", "expected shape (2, 64, 72)"),
    ({"masks": masks(3)}, "masks", "found (3, 64, 72)"),
    ({"masks": masks(2, 72, 64)}, "masks", "found (2, 72, 64)"),
    ({"masks": masks(0, 0, 0)}, "masks", "found (0, 0, 0)"),
    ({"prompt": texts(b"sea")}, "masks", "expected shape (0, 64, 72)"),
]


@pytest.mark.parametrize(("changes", "field", "fragment"), REFUSED)
def test_what_a_field_may_not_be_is_refused_naming_field_expected_and_found(
    changes: Arrays, field: str, fragment: str
) -> None:
    check_refused(changes, field, fragment)


def check_refused(changes: Arrays, field: str, fragment: str) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        parse(request(**changes))
    assert refusal.value.field == field
    assert str(refusal.value).startswith(f"{field}: ")
    assert fragment in str(refusal.value)


ACCEPTED: list[tuple[Arrays, str, object]] = [
    ({}, "num_inference_steps", 50),
    ({}, "bootstrapping", 20),
    ({}, "guidance_scale", 7.5),
    ({}, "scheduler", "ddim"),
    ({}, "view_stride", 8),
    ({}, "progress", False),
    ({}, "return_latents", False),
    ({}, "negative_prompt", ("", "", "")),
    ({"prompt": texts(b"sea", "é".encode() * 10, b"")}, "prompt", ("sea", "é" * 10, "")),
    ({"negative_prompt": texts(b"blur")}, "negative_prompt", ("blur", "blur", "blur")),
    ({"negative_prompt": texts(b"", b"blur", b"night")}, "negative_prompt", ("", "blur", "night")),
    ({"num_inference_steps": integer(1)}, "num_inference_steps", 1),
    ({"num_inference_steps": integer(100)}, "num_inference_steps", 100),
    ({"bootstrapping": integer(0)}, "bootstrapping", 0),
    ({"guidance_scale": real(3.25)}, "guidance_scale", 3.25),
    ({"guidance_scale": real(100)}, "guidance_scale", 100.0),
    ({"guidance_scale": real(1)}, "guidance_scale", 1.0),
    ({"guidance_scale": real(0.5)}, "guidance_scale", 1.0),
    ({"guidance_scale": real(0)}, "guidance_scale", 1.0),
    ({"scheduler": texts(b"euler")}, "scheduler", "euler"),
    ({"view_stride": integer(64)}, "view_stride", 64),
    ({"progress": flag(True)}, "progress", True),
    ({"return_latents": flag(True)}, "return_latents", True),
]


@pytest.mark.parametrize(("changes", "field", "value"), ACCEPTED)
def test_what_a_field_may_be_is_taken_and_what_is_left_out_has_a_default(
    changes: Arrays, field: str, value: object
) -> None:
    assert getattr(parse(request(**changes)), field) == value


@pytest.mark.parametrize("seed", [0, 2**32, 2**63, 2**64 - 1])
def test_every_unsigned_seed_is_taken(seed: int) -> None:
    assert parse(request(seed=np.array([seed], dtype=np.uint64))).seed == seed


def test_seed_that_is_left_out_is_drawn() -> None:
    seeds = {parse(request()).seed for _ in range(4)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_fault_2_a_side_below_64_pixels_is_an_error_that_names_the_minimum() -> None:
    check_refused({"height": integer(63)}, "height", "expected 64 to 4096, found 63")


def test_fault_5_no_steps_at_all_are_refused() -> None:
    """The reference divides by zero."""
    check_refused({"num_inference_steps": integer(0)}, "num_inference_steps", "expected 1 to 100, found 0")


@pytest.mark.parametrize(
    ("changes", "field", "fragment"),
    [
        ({"masks": masks(1)}, "masks", "expected shape (2, 64, 72) (one per prompt after the first, height, width)"),
        ({"prompt": texts(b"sea", b"boat")}, "masks", "expected shape (1, 64, 72)"),
        ({"negative_prompt": texts(b"", b"")}, "negative_prompt", "expected 3 (one per region) or 1 for all, found 2"),
    ],
    ids=["masks", "prompts", "negative prompts"],
)
def test_fault_9_counts_that_differ_name_field_expected_and_found(changes: Arrays, field: str, fragment: str) -> None:
    """The reference fails in raw tensor errors."""
    check_refused(changes, field, fragment)


@pytest.mark.parametrize(
    ("guidance_scale", "negative", "warnings"),
    [
        (1.5, b"blur", ()),
        (1.0, b" ", ()),
        (1.0, b"blur", (("guidance_scale", "without guidance (1 or less) negative prompts have no effect"),)),
        (0.5, b"", (("guidance_scale", "0.5 is painted as 1, without guidance"),)),
        (0.9999999, b"", (("guidance_scale", "0.9999999 is painted as 1, without guidance"),)),
        (
            0.0,
            b"blur",
            (
                ("guidance_scale", "0 is painted as 1, without guidance"),
                ("guidance_scale", "without guidance (1 or less) negative prompts have no effect"),
            ),
        ),
    ],
)
def test_what_guidance_of_1_or_less_leaves_out_is_told(
    guidance_scale: float, negative: bytes, warnings: tuple[tuple[str, str], ...]
) -> None:
    parameters = parse(request(guidance_scale=real(guidance_scale), negative_prompt=texts(negative)))
    assert parameters.warnings == warnings
    assert parameters.guidance_scale == max(guidance_scale, 1.0)  # what is painted with, as diffusers has it


def test_fault_5_background_alone_needs_no_masks() -> None:
    for left_out in (None, masks(0)):
        parameters = parse(request(prompt=texts(b"sea"), masks=left_out))
        assert parameters.masks.shape == (0, HEIGHT, WIDTH)
        assert parameters.regions == 1


def test_pictures_may_be_as_large_as_the_limit_whatever_their_shape() -> None:
    for height, width in ((512, 512), (64, 4096), (4096, 64)):
        parameters = parse({"prompt": texts(b"sea"), "height": integer(height), "width": integer(width)})
        assert (parameters.height, parameters.width) == (height, width)


def test_summary_has_what_the_picture_depends_on_but_no_text_and_no_masks() -> None:
    assert parse(request(seed=np.array([7], dtype=np.uint64))).summary() == {
        "height": 64,
        "width": 72,
        "num_inference_steps": 50,
        "bootstrapping": 20,
        "guidance_scale": 7.5,
        "seed": 7,
        "scheduler": "ddim",
        "view_stride": 8,
        "regions": 3,
    }


@pytest.mark.parametrize("value", [7.3, 1.1, 0.3, 100.0])
def test_the_scale_is_told_as_it_was_asked_for(value: float) -> None:
    assert parse(request(guidance_scale=real(value))).guidance_scale == max(value, 1.0)


def scalars(dtype: type[np.generic], likely: st.SearchStrategy[Any]) -> st.SearchStrategy[npt.NDArray[Any] | None]:
    """One value that may well be right, or any of its type, or none."""
    any_array = arrays_of.arrays(dtype, 1)
    return st.none() | likely.map(lambda value: np.array([value], dtype=dtype)) | any_array


TEXTS = st.none() | st.lists(st.binary(max_size=22) | st.just(b"sea"), max_size=5).map(lambda values: texts(*values))
MASKS = arrays_of.arrays(np.uint8, arrays_of.array_shapes(min_dims=3, max_dims=3, min_side=0, max_side=3))
SIDES = scalars(np.int32, st.sampled_from([64, 65, 4096]))
REQUESTS = st.fixed_dictionaries(
    {
        "prompt": TEXTS,
        "negative_prompt": TEXTS,
        "masks": st.none() | MASKS | st.integers(0, 3).map(lambda count: masks(count, 64, 64)),
        "height": SIDES,
        "width": SIDES,
        "num_inference_steps": scalars(np.int32, st.integers(1, 100)),
        "bootstrapping": scalars(np.int32, st.integers(0, 100)),
        "guidance_scale": scalars(np.float32, st.floats(0, 100, width=32)),
        "seed": scalars(np.uint64, st.integers(0, 2**64 - 1)),
        "scheduler": st.none() | st.binary(max_size=22).map(texts),
        "view_stride": scalars(np.int32, st.integers(1, 64)),
        "progress": scalars(np.bool_, st.booleans()),
        "return_latents": scalars(np.bool_, st.booleans()),
    }
)


def parsed_or_refused(arrays: Arrays) -> Parameters | InvalidRequestError:
    try:
        return parse(arrays)
    except InvalidRequestError as refusal:
        return refusal


@settings(deadline=None)
@given(arrays=REQUESTS)
def test_any_arrays_of_the_contract_give_parameters_or_a_refusal_that_names_a_field(arrays: Arrays) -> None:
    outcome = parsed_or_refused(arrays)
    if isinstance(outcome, InvalidRequestError):
        assert outcome.field.split("[")[0] in arrays
    else:
        assert len(outcome.negative_prompt) == outcome.regions
        assert outcome.masks.shape == (outcome.regions - 1, outcome.height, outcome.width)
        assert 1 <= outcome.guidance_scale <= 100


def test_masks_beyond_the_pixels_of_all_are_refused() -> None:
    limits = LIMITS._replace(max_mask_pixels=2 * 64 * 64 - 1)
    arrays = {
        "prompt": np.array([b"a", b"b", b"c"], dtype=object),
        "masks": np.ones((2, 64, 64), np.uint8),
        "height": np.array([64], np.int32),
        "width": np.array([64], np.int32),
    }
    with pytest.raises(InvalidRequestError, match="masks: expected at most 8191 pixels in all, found 2 x 64 x 64"):
        parse_parameters(arrays, limits=limits, window=64, view_stride=8)


def bound(**changes: npt.NDArray[Any] | None) -> int:
    parameters = parse_parameters(request(**changes), limits=LIMITS, window=16, view_stride=8)
    return most_rows(parameters, window=16, cell=8)


def test_the_bound_of_a_requests_rows_is_the_published_methods_count() -> None:
    wide: Arrays = {"width": integer(256), "masks": masks(2, width=256)}
    assert bound(num_inference_steps=integer(5)) == 2 * 3 * 5  # one view of three regions
    assert bound(num_inference_steps=integer(5), **wide) == 3 * 2 * 3 * 5  # three views
    assert bound(num_inference_steps=integer(5), view_stride=integer(16), **wide) == 2 * 2 * 3 * 5
    assert bound(num_inference_steps=integer(5), guidance_scale=real(1)) == 3 * 5
