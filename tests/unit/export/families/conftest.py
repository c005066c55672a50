"""Exports of every supported structure: minutes, in a folder of their own so that they run beside the other tests."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from multsd_export.pipeline import Options, export
from multsd_export.profiles import CPU, Precision
from tests.small_checkpoints import STRUCTURES, kept_onnx

from ..conftest import REPOSITORY, quiet


@dataclass(frozen=True)
class Family:
    """One structure of `small_checkpoints` and its export in one precision."""

    structure: str
    options: Options


def export_family(small_checkpoints: Path, structure: str, precision: Precision) -> Family:
    """Composed beside the checkpoint."""
    folder = small_checkpoints / f"{structure}-{precision}"
    work_dir = kept_onnx(structure)
    options = Options(small_checkpoints / structure, folder, REPOSITORY, work_dir, CPU, precision=precision)
    assert export(options, quiet)
    return Family(structure, options)


@pytest.fixture(scope="session", params=list(STRUCTURES))
def family(request: pytest.FixtureRequest, small_checkpoints: Path) -> Family:
    """Every structure in full precision. Read only."""
    return export_family(small_checkpoints, request.param, Precision.FP32)


@pytest.fixture(scope="session", params=["sd2_768", "sdxl"])
def half_family(request: pytest.FixtureRequest, small_checkpoints: Path) -> Family:
    """Structures in half precision. Read only."""
    return export_family(small_checkpoints, request.param, Precision.FP16)
