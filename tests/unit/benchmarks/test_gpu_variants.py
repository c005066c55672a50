"""What `make bench-gpu-variants` measures: each variant's runner, as Triton would load it, beside eager."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from multsd_export.profiles import TORCH_VARIANTS
from tests.benchmarks import gpu_variants_run
from tests.benchmarks.gpu_cases import Size, subjects
from tests.benchmarks.gpu_run import Progress, Row

CPU = torch.device("cpu")
SUBJECT = subjects(Size.TINY)[0]
FACTS: Row = {"machine": "none", "checkpoint": SUBJECT.name, "torch": torch.__version__}


def test_every_variant_of_the_profile_is_known_and_compiled_ones_come_last() -> None:
    assert set(gpu_variants_run.VARIANTS) == {"default", *TORCH_VARIANTS}
    assert gpu_variants_run.VARIANTS[0] == "eager"
    assert all("compile" in name for name in gpu_variants_run.VARIANTS[-2:])


def test_each_is_measured_and_one_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_variants_run, "TIMED_CALLS", 1)
    monkeypatch.setattr(gpu_variants_run, "ROW_COUNTS", (1, 2))
    faster = {"unet": 'parameters { key: "execution" value { string_value: "faster" } }'}
    monkeypatch.setitem(TORCH_VARIANTS, "broken", faster)
    progress = Progress(Console(quiet=True), tmp_path / "variants.json", {**FACTS, "variants": {}})
    chosen = ["eager", "default", "broken", "channels_last"]
    gpu_variants_run.measure(SUBJECT, chosen, CPU, tmp_path / "composed", progress)
    written = json.loads(progress.file.read_text())["variants"]
    assert list(written) == chosen
    assert "execution: expected one of" in written["broken"]["error"]
    for name in ("eager", "default", "channels_last"):
        rows = written[name]["rows"]
        assert [row["rows"] for row in rows] == [1, 2]
        assert all(row["apart"] < 1e-5 and row["seconds"] > 0 and row["tflops"] > 0 for row in rows)
    assert gpu_variants_run.table(progress.results).row_count == 7


def test_what_was_measured_before_is_kept_for_the_same_machine_alone(tmp_path: Path) -> None:
    file = tmp_path / "variants.json"
    assert gpu_variants_run.measured_before(file, FACTS) == {}
    file.write_text(json.dumps({**FACTS, "tflop_per_row": 1, "variants": {"eager": {"rows": []}}}))
    assert gpu_variants_run.measured_before(file, FACTS) == {"eager": {"rows": []}}
    assert gpu_variants_run.measured_before(file, {**FACTS, "machine": "another"}) == {}
