"""The bound of a request's UNet rows: the model's own."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import parameters
from multsd_gateway.cost import Tritons, most_rows, tritons
from multsd_gateway.inference import ModelDescription
from multsd_gateway.schema import read_request
from tests.unit.gateway.fakes import seed_request

CONFIG = Path(__file__).parents[3] / "model_repository" / "multidiffusion" / "config.pbtxt"
LIMITS = parameters.Limits(
    max_pixels=2**24,
    max_regions=33,
    max_mask_pixels=2**30,
    max_steps=1000,
    max_prompt_bytes=1000,
    max_running=1,
    max_waiting=1,
    max_waiting_rows=1,
)


def _model(**told: int) -> ModelDescription:
    return ModelDescription(frozenset(), {name: str(value) for name, value in told.items()})


def _by_the_model(
    window: int, own_stride: int, numbers: Mapping[str, int], optional: Mapping[str, float | None]
) -> int:
    shape = (numbers["regions"], numbers["height"], numbers["width"])
    arrays = {
        "masks": np.broadcast_to(np.uint8(0), shape),
        "prompt": np.array([b"a"] * (numbers["regions"] + 1), dtype=object),
        "height": np.array([numbers["height"]], np.int32),
        "width": np.array([numbers["width"]], np.int32),
        "num_inference_steps": np.array([numbers["steps"]], np.int32),
        **{name: np.array([value]) for name, value in optional.items() if value is not None},
    }
    parsed = parameters.parse_parameters(arrays, limits=LIMITS, window=window, view_stride=own_stride)
    return parameters.most_rows(parsed, window=window, cell=8)


def test_the_bound_is_the_models_for_any_request() -> None:
    draw = random.Random(1)  # noqa: S311 - for a test
    for _ in range(300):
        window = draw.choice([8, 64, 96, 128])
        numbers = {
            "width": draw.randint(64, 2100),
            "height": draw.randint(64, 2100),
            "regions": draw.randint(0, 32),
            "steps": draw.randint(1, 200),
        }
        optional = {
            "view_stride": draw.choice([None, draw.randint(1, window)]),
            "guidance_scale": draw.choice([None, 0.0, 1.0, 1.5, 7.5]),
        }
        request = read_request(
            {
                "bg_prompt": "a",
                "fg_prompt": ["b"] * numbers["regions"],
                "width": numbers["width"],
                "height": numbers["height"],
                "ddim_steps": numbers["steps"],
                **optional,
            },
            strict=True,
        ).request

        found = most_rows(request, [_model(window=window, view_stride=window // 8)])

        assert found == _by_the_model(window, window // 8, numbers, optional), (numbers, optional)


@pytest.mark.parametrize(
    ("models", "rows"),
    [
        ((), 1 * 2 * 2 * 35),  # as Stable Diffusion 1 and 2
        ([_model(window=8)], 1 * 2 * 2 * 35),
        ([_model(window=4, view_stride=4)], 4 * 2 * 2 * 35),
        ([_model(window=64), _model(window=4, view_stride=1)], 25 * 2 * 2 * 35),
    ],
    ids=["not told", "no stride", "a smaller window", "the highest of several"],
)
def test_what_a_model_does_not_tell_is_the_usual(models: list[ModelDescription], rows: int) -> None:
    assert most_rows(read_request(seed_request(), strict=True).request, models) == rows


def test_tritons_paint_and_take_together_what_each_tells() -> None:
    assert tritons([]) == Tritons(1, 8, 40)
    models = [_model(max_running=8, max_waiting=32), _model(max_running=4, max_waiting=0), _model()]
    assert tritons(models) == Tritons(3, 20, 40 + 4 + 40)


def test_what_is_taken_for_granted_of_a_model_is_in_its_configuration() -> None:
    config = CONFIG.read_text()
    assert 'key: "max_running" value { string_value: "8" }' in config
    assert 'key: "max_waiting" value { string_value: "32" }' in config
