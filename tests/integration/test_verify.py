"""`multsd-export verify` on real Tritons: it passes the demo checkpoint, and names what is broken of a small one."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tritonclient.grpc import InferenceServerClient as Client
from typer.testing import CliRunner

from multsd_export import artefacts, build, compose, pipeline
from multsd_export.cli import app
from multsd_export.digests import file_digest
from multsd_export.engines import artefact
from multsd_export.engines.machine import Machine
from multsd_export.json_files import write_json
from multsd_export.onnx_export import form_of
from multsd_export.pipeline import Options, export
from multsd_export.profiles import CPU, CUDA_GRAPHS, TENSORRT, Precision, Served
from multsd_export.verify import networks
from tests.integration.conftest import REPOSITORY, ROOT, serve
from tests.integration.test_tensorrt_profile import replace_engines, write_plan
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


@pytest.fixture
def for_engines(exported: Options, tmp_path: Path) -> Options:
    """The same composed for engines, which are replaced by graphs for ONNX Runtime: nothing is exported anew.

    The VAE's largest tile, which a verification for a GPU asks for, takes a processor seconds a call: a smaller one.
    """
    work_dir, repository = tmp_path / "work", tmp_path / "repository"
    shutil.copytree(exported.work_dir, work_dir)
    options = replace(exported, output=repository, work_dir=work_dir, profile=TENSORRT, precision=Precision.FP32)
    quiet: Callable[[str, float], None] = lambda _stage, _share: None  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artefacts, "form_of", lambda network, _served: form_of(network, Served.ONNX))
        for module in (build, compose):
            patch.setattr(module, "VAE_TILE", 24)
        patch.setattr(artefact, "build_engine", write_plan)
        patch.setattr(pipeline, "this_machine", lambda: Machine("11.4.0.106", "NVIDIA H100 80GB HBM3", "9.0"))
        assert export(options, quiet)
    replace_engines(options)
    files = [file for file in repository.rglob("*") if file.is_file() and file != repository / "manifest.json"]
    manifest = json.loads((repository / "manifest.json").read_text())
    manifest["files"] = {str(file.relative_to(repository)): file_digest(file) for file in files}
    write_json(repository / "manifest.json", manifest)
    return options


def verify(repository: Path, checkpoint: Path, url: str, report: Path, *options: str) -> tuple[int, str, Any]:
    """Exit code, what is printed, and the report."""
    arguments = ["verify", str(repository), "--checkpoint", str(checkpoint), "--url", url, "--steps", str(STEPS)]
    arguments += options
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


def test_the_demo_checkpoint_passes_every_check_as_it_is_served_and_its_speed_is_told(
    triton_grpc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "TIMED_CALLS", 2)  # of true size, each takes a processor up to seconds
    checkpoint = ROOT / "export" / "demo_checkpoint" / "checkpoint"
    code, output, report = verify(REPOSITORY, checkpoint, triton_grpc, tmp_path / "report.json")
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
    pictures = {tuple(speed["shape"]) for speed in report["speeds"] if speed["network"] == "vae_decoder"}
    assert pictures == {(4, 64, 64), (4, 64, 96)}, "of true size"


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


def test_a_second_triton_with_cuda_graphs_is_held_to_torch_and_to_the_first(
    for_engines: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Configured as for CUDA graphs; here nothing is replayed."""
    monkeypatch.setattr(networks, "TIMED_CALLS", 1)
    repository, checkpoint = for_engines.output, for_engines.checkpoint
    with ExitStack() as tritons, ThreadPoolExecutor() as threads:  # both at once: each takes ten seconds to start
        started = [
            threads.submit(tritons.enter_context, serve(repository, tmp_path / name, config_name))
            for name, config_name in (("plain", None), ("graphs", CUDA_GRAPHS))
        ]
        url, graphs_url = (each.result() for each in started)
        with Client(graphs_url) as client:
            unet = client.get_model_config("unet").config
        code, output, report = verify(repository, checkpoint, url, tmp_path / "report.json", "--graphs-url", graphs_url)
    assert unet.optimization.cuda.graphs
    assert [graph.batch_size for graph in unet.optimization.cuda.graph_spec] == list(range(1, 17))
    assert code == 0, output
    passed = {(check["subject"], check["name"]) for check in report["checks"] if check["passed"]}
    batched = ("equals torch at every batch size", "answers A, B, A consistently", "computes identical rows alike")
    of_graphs = {(f"{name}, CUDA graphs", check) for name in ("text_encoder", "unet") for check in batched}
    assert passed >= of_graphs | {
        ("repository", "is served with CUDA graphs too"),
        ("picture, CUDA graphs", "has the latents of the first server"),
        ("picture, CUDA graphs", "answers A, B, A consistently"),
    }
    unet_speeds = [speed["subject"] for speed in report["speeds"] if speed["network"] == "unet"]
    assert unet_speeds == ["unet"] * 16 + ["unet, CUDA graphs"] * 16


def test_a_server_that_is_not_there_is_one_sentence(exported: Options, tmp_path: Path) -> None:
    code, output, report = verify(exported.output, exported.checkpoint, "127.0.0.1:9", tmp_path / "report.json")
    assert code == 1
    assert report is None
    assert output.strip().startswith("multsd-export: no Triton answers at 127.0.0.1:9 (")
    assert output.strip().endswith("name another: --url.")
