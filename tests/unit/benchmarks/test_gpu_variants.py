"""What `make bench-gpu-variants` measures: each variant's runner, as Triton would load it, beside eager."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from multsd_export.profiles import TORCH_VARIANTS
from tests.benchmarks import gpu_variants_run
from tests.benchmarks.gpu_cases import Size, subjects
from tests.benchmarks.gpu_run import Progress, Row
from tests.benchmarks.processes import CallError, call_apart

CPU = torch.device("cpu")
SUBJECT = subjects(Size.TINY)[0]
FACTS: Row = {"machine": "none", "checkpoint": SUBJECT.name, "torch": torch.__version__}


def test_every_variant_of_the_profile_is_known_and_compiled_ones_come_last() -> None:
    assert set(gpu_variants_run.VARIANTS) == {"default", *TORCH_VARIANTS}
    assert gpu_variants_run.VARIANTS[0] == "eager"
    assert all("compile" in name for name in gpu_variants_run.VARIANTS[-2:])


def test_each_is_measured_and_one_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faster = {"unet": 'parameters { key: "execution" value { string_value: "faster" } }'}
    monkeypatch.setitem(TORCH_VARIANTS, "broken", faster)

    def variants_apart(function: Any, *arguments: Any, seconds: float | None = None) -> Any:
        """The others here: each process takes seconds to begin."""
        apart = function is gpu_variants_run.measure_variant
        return call_apart(function, *arguments, seconds=seconds) if apart else function(*arguments)

    monkeypatch.setattr(gpu_variants_run, "call_apart", variants_apart)
    progress = Progress(Console(quiet=True), tmp_path / "variants.json", {**FACTS, "variants": {}})
    chosen = ["broken", "default"]
    folder = tmp_path / "composed"
    gpu_variants_run.measure(SUBJECT, chosen, CPU, folder, progress, row_counts=(1, 2), timed_calls=1)
    written = json.loads(progress.file.read_text())["variants"]
    assert list(written) == chosen
    assert "execution: expected one of" in written["broken"]["error"]
    rows = written["default"]["rows"]
    assert [row["rows"] for row in rows] == [1, 2]
    assert all(row["apart"] < 1e-5 and row["seconds"] > 0 and row["tflops"] > 0 for row in rows)
    assert gpu_variants_run.table(progress.results).row_count == 3


def test_one_whose_process_ends_is_told_and_the_next_one_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def call_apart(function: Any, *arguments: Any, seconds: float | None = None) -> Any:  # noqa: ARG001
        called.append(function.__name__)
        if len(called) == 3:
            raise CallError("its process was ended by signal 9")
        return "checkpoint" if function.__name__ == "compose" else {"load_seconds": 1.0, "chosen": [], "rows": []}

    called: list[str] = []
    monkeypatch.setattr(gpu_variants_run, "call_apart", call_apart)
    monkeypatch.setattr(gpu_variants_run, "row_flops", lambda _: 1)
    progress = Progress(Console(quiet=True), tmp_path / "variants.json", {**FACTS, "variants": {}})
    gpu_variants_run.measure(SUBJECT, ["cuda_graphs", "eager"], CPU, tmp_path, progress)
    assert called == ["compose", "eager_outputs", "measure_variant", "measure_variant"], "all apart"
    written = json.loads(progress.file.read_text())["variants"]
    assert written["cuda_graphs"] == {"error": "its process was ended by signal 9"}
    assert written["eager"]["load_seconds"] == 1.0


def test_what_was_measured_before_is_kept_for_the_same_machine_alone(tmp_path: Path) -> None:
    file = tmp_path / "variants.json"
    assert gpu_variants_run.measured_before(file, FACTS) == {}
    file.write_text(json.dumps({**FACTS, "tflop_per_row": 1, "variants": {"eager": {"rows": []}}}))
    assert gpu_variants_run.measured_before(file, FACTS) == {"eager": {"rows": []}}
    assert gpu_variants_run.measured_before(file, {**FACTS, "machine": "another"}) == {}
