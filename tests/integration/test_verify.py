"""`multsd-export verify` on a real Triton: it passes the demo checkpoint, and names what is broken of a small one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from multsd_export.cli import app
from multsd_export.digests import file_digest
from multsd_export.json_files import write_json
from multsd_export.pipeline import Options, export
from multsd_export.profiles import CPU
from tests.integration.conftest import REPOSITORY, ROOT, serve
from tests.small_checkpoints import kept_onnx, write_small_checkpoint

STEPS = 3
NETWORKS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Read only."""
    folder = tmp_path_factory.mktemp("verify")
    checkpoint = write_small_checkpoint(folder / "checkpoint", "sd1")
    options = Options(checkpoint, folder / "repository", ROOT / "model_repository", kept_onnx("sd1"), CPU)
    quiet: Callable[[str, float], None] = lambda _stage, _share: None  # noqa: E731
    assert export(options, quiet)
    return options


def verify(repository: Path, checkpoint: Path, url: str, report: Path) -> tuple[int, str, Any]:
    """Exit code, what is printed, and the report."""
    arguments = ["verify", str(repository), "--checkpoint", str(checkpoint), "--url", url, "--steps", str(STEPS)]
    result = CliRunner().invoke(app, [*arguments, "--report", str(report)])
    return result.exit_code, result.output, json.loads(report.read_text()) if report.is_file() else None


def break_network(repository: Path, name: str) -> None:
    """Negate the largest weight of a graph, and the manifest with it: only its values tell."""
    file = repository / name / "1" / "model.onnx"
    model = onnx.load(file)
    largest = max(model.graph.initializer, key=lambda each: int(np.prod(each.dims)))
    largest.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(largest) * np.float32(-1), largest.name))
    onnx.save(model, file)
    manifest = json.loads((repository / "manifest.json").read_text())
    manifest["files"][f"{name}/1/model.onnx"] = file_digest(file)
    write_json(repository / "manifest.json", manifest)


def failed(report: Any) -> set[tuple[str, str]]:
    return {(check["subject"], check["name"]) for check in report["checks"] if check["passed"] is False}


def test_what_is_right_passes_every_check_and_its_speed_is_told(exported: Options, tmp_path: Path) -> None:
    with serve(exported.output, tmp_path) as url:
        code, output, report = verify(exported.output, exported.checkpoint, url, tmp_path / "report.json")
    assert code == 0, output
    assert output.splitlines()[-1] == (
        f"passed: {len(report['checks']) - 1} checks; 1 not looked at: repository: is served with CUDA graphs too: "
        "not applicable, the networks run on the processor"
    )
    assert report["passed"]
    batched = {"equals torch at every batch size", "answers A, B, A consistently", "computes identical rows alike"}
    for name in ("text_encoder", "unet"):
        assert {check["name"] for check in report["checks"] if check["subject"] == name} == batched
    assert {check["subject"] for check in report["checks"]} == {*NETWORKS, "picture", "repository"}
    unet = [speed for speed in report["speeds"] if speed["network"] == "unet"]
    assert [speed["batch_size"] for speed in unet] == list(range(1, 17))
    assert all(speed["server_seconds"] > 0 and speed["rows_per_second"] > 0 for speed in report["speeds"])


def test_the_demo_checkpoint_passes_as_it_is_served(triton_grpc: str, tmp_path: Path) -> None:
    """Its VAE normalises pictures of true size."""
    checkpoint = ROOT / "export" / "demo_checkpoint" / "checkpoint"
    code, output, report = verify(REPOSITORY, checkpoint, triton_grpc, tmp_path / "report.json")
    assert code == 0, output
    pictures = {tuple(speed["shape"]) for speed in report["speeds"] if speed["network"] == "vae_decoder"}
    assert pictures == {(4, 64, 64), (4, 64, 96)}


def test_a_broken_network_fails_and_is_named(exported: Options, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(exported.output, repository)
    break_network(repository, "unet")
    with serve(repository, tmp_path) as url:
        code, output, report = verify(repository, exported.checkpoint, url, tmp_path / "report.json")
    assert code == 1
    assert not report["passed"]
    assert failed(report) - {("picture", "looks like torch's")} == {
        ("unet", "equals torch at every batch size"),
        ("picture", "has torch's latents"),
    }
    assert "\n  unet: equals torch at every batch size: at most" in output


def test_a_server_that_is_not_there_is_one_sentence(exported: Options, tmp_path: Path) -> None:
    code, output, report = verify(exported.output, exported.checkpoint, "127.0.0.1:9", tmp_path / "report.json")
    assert code == 1
    assert report is None
    assert output.strip().startswith("multsd-export: no Triton answers at 127.0.0.1:9 (")
    assert output.strip().endswith("name another: --url.")
