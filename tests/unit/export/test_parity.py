"""An exported network that computes something else than torch does not pass."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from multsd_export.checkpoint import read_checkpoint
from multsd_export.errors import ParityError
from multsd_export.networks import networks_of
from multsd_export.parity import Array, measure_parity, relative_error

from .conftest import Exported


def array(values: list[Any]) -> Array:
    return np.array(values, dtype=np.float32)


def test_relative_error_is_the_largest_difference_over_the_largest_value() -> None:
    expected = np.array([[1.0, -4.0], [2.0, 0.0]], dtype=np.float32)
    actual = expected + np.array([[0.0, 0.5], [0.25, 0.0]], dtype=np.float32)
    assert relative_error(actual, expected) == 0.5 / 4.0


@pytest.mark.parametrize(
    "actual", [array([[1, 2, 3]]), array([1, np.nan]), array([1, np.inf])], ids=["shape", "nan", "inf"]
)
def test_other_shapes_and_values_that_are_not_finite_are_infinitely_wrong(actual: Array) -> None:
    assert relative_error(actual, array([1, 2])) == np.inf


def test_an_output_of_zeros_proves_nothing() -> None:
    assert relative_error(np.zeros(2, np.float32), np.zeros(2, np.float32)) == np.inf


def compare_text_encoder(exported: Exported, file: Path) -> None:
    network = networks_of(read_checkpoint(exported.options.checkpoint))[0]
    batches = network.draw(torch.Generator().manual_seed(1))
    measure_parity(network, network.load(torch.float32), file, batches)


def test_a_tampered_network_fails_naming_network_figure_and_limit(exported: Exported, tmp_path: Path) -> None:
    file = exported.options.work_dir / "text_encoder" / "model.onnx"
    compare_text_encoder(exported, file)
    tampered = onnx.load(file)
    weights = max(tampered.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(1.01), weights.name))
    onnx.save(tampered, tmp_path / "model.onnx")
    with pytest.raises(ParityError, match=r"^text_encoder: .* differs from torch by \S+ .* the limit is 0.0001\.$"):
        compare_text_encoder(exported, tmp_path / "model.onnx")


@pytest.mark.parametrize(("window", "side"), [(16, 16), (64, 64), (128, 64)])
def test_a_vae_is_compared_at_a_whole_window_where_its_sums_are_large(
    checkpoint_folder: Path, window: int, side: int
) -> None:
    """At 64 cells at most: beyond, the comparison would take longer than the export."""
    checkpoint = replace(read_checkpoint(checkpoint_folder), window=window)
    networks = {network.name: network for network in networks_of(checkpoint)}
    for name, cell in (("vae_decoder", 1), ("vae_encoder", 8)):
        sides = [inputs[0].shape[2:] for inputs in networks[name].draw(torch.Generator().manual_seed(0))]
        assert (side * cell, side * cell) in sides
