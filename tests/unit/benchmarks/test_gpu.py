"""What `make bench-gpu` compares is one picture: on the same modules the published loop paints the orchestrator's."""

import asyncio
import json
from collections import Counter
from dataclasses import replace
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode

from checkpoint_files import load_checkpoint
from cuda_graphs import _describe
from multsd_export.checkpoint import read_checkpoint
from multsd_export.networks import networks_of
from multsd_export.profiles import Device, torch_profile
from multsd_export.verify.picture import TorchNetworks
from multsd_export.verify.reference import Reference
from pipeline import Observer, paint, prepare
from row_plan import count_reference_rows, make_plan
from tests.benchmarks import gpu_run
from tests.benchmarks.gpu_cases import Size, Subject, subjects
from tests.benchmarks.gpu_published import eager_networks, row_flops
from tests.benchmarks.published import NETWORKS, paint_published
from tests.benchmarks.request_cases import Case
from tests.unit.repository.test_row_plan import regions_of

CPU = torch.device("cpu")


@pytest.mark.parametrize("subject", subjects(Size.TINY), ids=lambda subject: subject.name)
def test_the_published_loop_paints_the_orchestrators_picture(subject: Subject, tmp_path: Path) -> None:
    case = replace(subject.cases()[:2][-1], steps=2, bootstrapping=1)
    exported = gpu_run.compose(subject, torch_profile(Device.CPU), gpu_run.DEFAULT, tmp_path, CPU)
    checkpoint = load_checkpoint(tmp_path / "repository" / "multidiffusion" / "1" / "checkpoint")
    parameters = replace(case.parameters(checkpoint.view_stride), return_latents=True)
    served = TorchNetworks(Reference(networks_of(exported), CPU), 16)
    picture = asyncio.run(paint(parameters, checkpoint=checkpoint, networks=served, observer=Observer()))
    loop = paint_published(prepare(parameters, checkpoint), checkpoint, eager_networks(exported, CPU))
    assert gpu_run.latents_apart(picture.latents[None].numpy(), loop.latents.numpy()) < 1e-4
    assert picture.report["unet_rows"] < loop.rows


def test_the_published_loop_tells_the_share_of_backgrounds_and_texts(tmp_path: Path) -> None:
    """With nothing else of a GPU's work in it: waited for before and after each."""
    subject = subjects(Size.TINY)[0]
    exported = gpu_run.compose(subject, torch_profile(Device.CPU), gpu_run.DEFAULT, tmp_path, CPU)
    bench = gpu_run.Bench(subject, exported, tmp_path / "repository", "", CPU, flops=1)
    networks = eager_networks(exported, CPU)
    done: list[str] = []
    networks.wait = lambda: done.append("wait")
    for name in NETWORKS:
        setattr(networks, name, partial(noted, done, name, getattr(networks, name)))
    measured, _ = gpu_run.published_loop(bench, networks, replace(subject.cases()[0], steps=2, bootstrapping=2))
    encoded = ["wait", "vae_encoder", "vae_encoder", "wait"]
    assert done == ["wait", "text_encoder", "wait", *encoded, *["unet"] * done.count("unet"), "vae_decoder"]
    assert measured["background_share"] > 0
    assert measured["text_share"] > 0
    assert measured["background_share"] + measured["text_share"] < 1


def noted(done: list[str], name: str, network: Any, *inputs: torch.Tensor) -> Any:
    done.append(name)
    return network(*inputs)


def composed_by_nobody(subject: Subject, *_: Any) -> str:
    return subject.name


def test_all_are_composed_in_processes_that_are_gone_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: Any) -> list[str]:
        return []

    def measure(subject: Subject, checkpoint: str, *_: Any) -> None:
        assert not active_children()
        measured.append((subject.name, checkpoint))

    measured: list[tuple[str, str]] = []
    stand_ins = {"compose": composed_by_nobody, "measure": measure, "tables": nothing, "too_far_apart": nothing}
    for name, value in {**stand_ins, "ROOT": tmp_path, "RESULTS": tmp_path}.items():
        monkeypatch.setattr(gpu_run, name, value)
    gpu_run.main(size=Size.TINY, runs=1)
    assert measured == [(name, name) for name in ("sd2-tiny", "sdxl-tiny")]


class Casts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often each tensor is cast."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of: Counter[int] = Counter()  # by where it lies

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default:
            self.of[args[0].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


def test_the_published_loop_casts_each_weight_once_as_its_authors_do(tmp_path: Path) -> None:
    """Cast in every call they would be hundreds of kernels more, and ours would seem faster than it is."""
    subject = subjects(Size.TINY)[0]
    exported = gpu_run.compose(subject, torch_profile(Device.CPU), gpu_run.DEFAULT, tmp_path, CPU)
    checkpoint = load_checkpoint(tmp_path / "repository" / "multidiffusion" / "1" / "checkpoint")
    networks = eager_networks(exported, CPU)
    networks.steps = partial(torch.autocast, "cpu", torch.bfloat16)  # on a GPU that of CUDA
    case = replace(subject.cases()[0], steps=3, bootstrapping=1)
    with Casts() as casts:
        paint_published(prepare(case.parameters(checkpoint.view_stride), checkpoint), checkpoint, networks)
    weights = [casts.of[weight.data_ptr()] for weight in networks.unet.parameters()]  # type: ignore[attr-defined]
    assert set(weights) == {0, 1}, "those of normalisation stay in float32"


def rows_of(case: Case, *, window: int, stride: int) -> tuple[int, int]:
    """Ours, and the published method's."""
    boxes = [(top, left, bottom, right) for left, top, right, bottom in case.boxes]
    regions = regions_of(case.height, case.width, boxes, window=window, stride=stride)
    ours = make_plan(regions).total(num_inference_steps=case.steps, bootstrapping=case.bootstrapping)
    return ours, count_reference_rows(regions, num_inference_steps=case.steps)


def test_requests_have_the_proportions_and_costs_that_are_published() -> None:
    sizes = {
        subject.family: [(case.width, case.height, len(case.boxes), case.steps) for case in subject.cases()]
        for subject in subjects(Size.TRUE)
    }
    assert sizes == {
        "sd2": [(512, 512, 1, 35), (512, 768, 3, 50), (2048, 512, 4, 50)],
        "sdxl": [(1024, 1024, 3, 50)],
    }
    costs = {
        subject.family: [rows_of(case, window=subject.window, stride=subject.window // 8) for case in subject.cases()]
        for subject in subjects(Size.TRUE)
    }
    assert costs == {"sd2": [(125, 140), (1060, 2000), (4880, 12500)], "sdxl": [(310, 400)]}


def test_a_rows_operations_are_counted_for_one_row(tmp_path: Path) -> None:
    subject = subjects(Size.TINY)[0]
    subject.write_checkpoint(tmp_path / "checkpoint")
    checkpoint = read_checkpoint(tmp_path / "checkpoint")
    flops = row_flops(checkpoint)
    (unet,) = (network for network in networks_of(checkpoint) if network.name == "unet")
    weights = sum(parameter.numel() for parameter in unet.load(torch.float32).parameters())
    assert weights < flops < weights * 2 * subject.window**2, "at most every weight at every cell, multiplied and added"


@pytest.mark.parametrize(("counted_late", "counted_too_late"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_the_unet_by_itself_takes_the_seconds_of_the_calls_that_were_counted(
    counted_late: int, counted_too_late: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton may count a call only after the statistics were asked for: before the timed ones, and after them."""

    class Server:
        def __init__(self, *_: Any) -> None:
            self.calls = self.asked = 0

        def infer(self, name: str, inputs: Any, outputs: Any) -> None:  # noqa: ARG002
            self.calls += 1

        def compute_time(self, name: str) -> tuple[int, float]:  # noqa: ARG002
            late = (counted_late, counted_too_late)[self.asked % 2]
            self.asked += 1
            return self.calls - late, (self.calls - late) * 0.25

    subject = subjects(Size.TINY)[0]
    subject.write_checkpoint(tmp_path / "checkpoint")
    bench = gpu_run.Bench(subject, read_checkpoint(tmp_path / "checkpoint"), tmp_path, "", CPU, flops=10**12)
    monkeypatch.setattr(gpu_run, "Server", Server)
    rows = gpu_run.unet_rows(bench)
    assert [row["seconds"] for row in rows] == [0.25] * len(gpu_run.ROW_COUNTS)
    assert [row["tflops"] for row in rows] == [4 * count for count in gpu_run.ROW_COUNTS]


def test_results_are_written_whenever_a_stage_ends(tmp_path: Path) -> None:
    results: gpu_run.Row = {"subjects": {}}
    progress = gpu_run.Progress(Console(quiet=True), tmp_path / "new" / "eager.json", results)

    def fail() -> None:
        with progress.stage("alone"):
            results["subjects"]["sd2"] = {"cases": [{"seconds": 1.5}]}
            raise RuntimeError("Triton has ended")

    with pytest.raises(RuntimeError):
        fail()
    assert json.loads(progress.file.read_text()) == results


def test_pictures_that_differ_are_named_and_so_are_those_that_are_no_numbers() -> None:
    rows = [{"case": str(apart), "latents_apart": apart, "latents_limit": 0.05} for apart in (0.01, 0.5, float("nan"))]
    found = gpu_run.too_far_apart({"subjects": {"sd2": {"cases": rows}}})
    assert found == ["sd2, 0.5 (0.5, limit 0.05)", "sd2, nan (nan, limit 0.05)"]


def test_what_the_runners_chose_is_read_from_tritons_log(tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    before = "I1127 19:26:52.557975 29627"
    told = _describe(torch.channels_last, {1: (0.0091, 0.055), 2: (0.01, 0.055)}, replayed=2, memory=0, taken=9.3)
    replayed = f"unet: {told}"
    eager = "text_encoder_2: eager, without CUDA graphs: OutOfMemoryError: 2 GiB"
    log.write_text(
        f'{before} model.py:86] "{replayed}"\n'
        f"{before} model_lifecycle.cc:839] \"successfully loaded 'unet'\"\n"
        f'{before} model.py:86] "{eager}"\n'
    )
    assert gpu_run.chosen_ways(log) == [replayed, eager]
