"""The faults that a verification is to find, shown by servers that have them. A real Triton is in tests/integration."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from typer.testing import CliRunner

from multsd_export.checkpoint import read_checkpoint
from multsd_export.cli import app
from multsd_export.engines.machine import Machine
from multsd_export.errors import ServerError
from multsd_export.modules import Wrapper
from multsd_export.networks import Network, networks_of
from multsd_export.profiles import Precision
from multsd_export.verify import networks, run
from multsd_export.verify.networks import Served, network_batches, verify_network
from multsd_export.verify.picture import psnr, verify_graphs_picture
from multsd_export.verify.report import Check, Report
from multsd_export.verify.run import Verification
from multsd_export.verify.server import Server

Array = npt.NDArray[Any]
BATCH = 4
TORCH, CONSISTENT, ROWS = (
    "equals torch at every batch size",
    "answers A, B, A consistently",
    "computes identical rows alike",
)


class Doubling(Wrapper):
    """What the network computes in torch."""

    def __init__(self) -> None:
        super().__init__(None)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return sample * 2


class DoublingServer(Server):
    """A server of the same, without Triton."""

    def __init__(self) -> None:
        self.calls = 0

    def infer(self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:  # noqa: ARG002
        self.calls += 1
        return dict.fromkeys(outputs, self.answer(inputs["sample"]))

    def answer(self, sample: Array) -> Array:
        return sample * 2

    def compute_time(self, model: str) -> tuple[int, float]:  # noqa: ARG002
        return self.calls, self.calls * 0.001


class WrongFromThreeRows(DoublingServer):
    def answer(self, sample: Array) -> Array:
        return sample * (2 if len(sample) < 3 else 2.1)


class LastRowDiffers(DoublingServer):
    """As TensorRT's open fault: equal rows of one batch, unequal results, each within the limit of torch."""

    def answer(self, sample: Array) -> Array:
        factors = np.full((len(sample), 1), 2, np.float32)
        factors[-1] += 1e-4 * (len(sample) > 1)
        return sample * factors


class PreviousResult(DoublingServer):
    """As Triton with CUDA graphs: a request is answered with the one before it, where shapes are equal."""

    last: Array | None = None

    def answer(self, sample: Array) -> Array:
        last, self.last = self.last, sample * 2
        return self.last if last is None or last.shape != sample.shape else last


class OneResult(DoublingServer):
    def answer(self, sample: Array) -> Array:
        return np.ones_like(sample)


class Down(DoublingServer):
    def answer(self, sample: Array) -> Array:  # noqa: ARG002
        raise ServerError("network: the server answers UNAVAILABLE")


NETWORK = Network(
    name="network",
    component="network",
    inputs={"sample": {0: "batch"}},
    outputs=("out_sample",),
    wrapper=Doubling,
    load=lambda _dtype: Doubling(),
    draw=lambda generator: iter([(torch.rand(BATCH, 3, generator=generator),)]),
    batched=True,
    takes_lora=False,
    precision=Precision.FP32,
    islands=frozenset(),
)


def failures(server: Server) -> set[str]:
    rows = {"sample": np.arange(1, 3 * BATCH + 1, dtype=np.float32).reshape(BATCH, 3)}
    checks, speeds = verify_network(Served(NETWORK, Doubling(), torch.device("cpu"), server, BATCH), [rows])
    assert [speed.batch_size for speed in speeds] == ([] if isinstance(server, Down) else [1, 2, 3, 4])
    return {check.name for check in checks if check.passed is False}


@pytest.mark.parametrize(
    ("server", "found"),
    [
        (DoublingServer(), set()),
        (WrongFromThreeRows(), {TORCH}),
        (LastRowDiffers(), {ROWS}),
        (PreviousResult(), {CONSISTENT}),
        (OneResult(), {TORCH, CONSISTENT}),
        (Down(), {TORCH, CONSISTENT, ROWS}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Server) else "",
)
def test_each_fault_fails_the_check_that_is_meant_for_it(server: Server, found: set[str]) -> None:
    assert failures(server) == found


class StaleGraphOfThreeRows(DoublingServer):
    """As Triton where one batch size's CUDA graph is not given its input."""

    stale: Array | None = None

    def answer(self, sample: Array) -> Array:
        if len(sample) != 3:
            return sample * 2
        self.stale = sample * 2 if self.stale is None else self.stale
        return self.stale


class ForgetsTheFirst(DoublingServer):
    """Right for A, B, A of one size after the other, wrong when A comes once more after all of it."""

    def answer(self, sample: Array) -> Array:
        return sample * (2 if self.calls <= 6 else 3)


def consistency(server: Server, *, cuda_graphs: bool) -> Check:
    rows = {"sample": np.arange(1, 3 * BATCH + 1, dtype=np.float32).reshape(BATCH, 3)}
    served = Served(NETWORK, Doubling(), torch.device("cpu"), server, BATCH, cuda_graphs)
    (check,) = (each for each in verify_network(served, [rows])[0] if each.name == CONSISTENT)
    return check


def test_with_cuda_graphs_every_batch_size_is_asked_for_its_previous_result() -> None:
    check = consistency(StaleGraphOfThreeRows(), cuda_graphs=True)
    assert (check.subject, check.passed) == ("network, CUDA graphs", False)
    assert check.detail == "B is answered with A's result (batch of 3)"
    assert consistency(DoublingServer(), cuda_graphs=True).passed


def test_a_is_asked_once_more_after_everything_else() -> None:
    rows = {"sample": np.arange(1, 3 * BATCH + 1, dtype=np.float32).reshape(BATCH, 3)}
    served = Served(NETWORK, Doubling(), torch.device("cpu"), ForgetsTheFirst(), BATCH)
    check = networks._consistent(served, [rows])
    assert (check.passed, check.detail) == (False, "A's last answer differs (batch of 1)")


class Serving(DoublingServer):
    """What a server says of itself, and how it paints."""

    def __init__(self, *, digest: str = "sha256:1", graphs: bool = False, brightness: float = 1.0) -> None:
        super().__init__()
        self.digest, self.graphs, self.brightness = digest, graphs, brightness

    def parameter(self, model: str, key: str) -> str:  # noqa: ARG002
        return self.digest

    def replays_cuda_graphs(self, model: str) -> bool:  # noqa: ARG002
        return self.graphs

    def infer(self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:  # noqa: ARG002
        value = np.float32(len(inputs["prompt"][1]) * self.brightness)
        latents, image = np.full((4, 2, 3), value), np.full((16, 24, 3), value, np.uint8)
        return {"latents": latents, "image": image}


@pytest.mark.parametrize(
    ("device", "graphs", "passed", "detail"),
    [
        ("cpu", [], None, "not applicable, the networks run on the processor"),
        ("gpu", [], None, "no server was named (--graphs-url)"),
        ("gpu", [Serving(graphs=True)], True, "the same checkpoint"),
        ("gpu", [Serving(graphs=False)], False, "without: --model-config-name=cuda_graphs is missing"),
        ("gpu", [Serving(graphs=True, digest="sha256:2")], False, "another checkpoint"),
    ],
    ids=["cpu", "not named", "right", "without", "another"],
)
def test_a_report_says_what_is_known_of_cuda_graphs(
    device: str, graphs: list[Server], passed: bool | None, detail: str
) -> None:
    (check,) = run._graphs_checks({"device": device, "checkpoint": {"digest": "sha256:1"}}, graphs)
    assert (check.passed, check.detail) == (passed, detail)


def test_a_picture_with_cuda_graphs_is_held_to_the_one_without() -> None:
    right = verify_graphs_picture(Serving(), Serving(graphs=True), NETWORK, 16, 3)
    assert [check.passed for check in right] == [True, True]
    wrong = verify_graphs_picture(Serving(), Serving(graphs=True, brightness=1.1), NETWORK, 16, 3)
    assert {check.name for check in wrong if not check.passed} == {"has the latents of the server without"}
    assert {check.subject for check in (*right, *wrong)} == {"picture, CUDA graphs"}


def engines_check(checkpoint_folder: Path) -> Check:
    record = {"tensorrt": "11.4.0.106", "compute_capability": "9.0", "gpu": "NVIDIA H100 80GB HBM3"}
    verification = Verification(Path("repository"), read_checkpoint(checkpoint_folder), "localhost:8001", 3)
    return run._engines_check(verification, {"engines": {"unet": record}, "profile": "tensorrt"})


def test_engines_of_another_machine_fail_with_the_command_that_builds_them_again(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "import_tensorrt", lambda: None)
    monkeypatch.setattr(run, "this_machine", lambda: Machine("11.4.0.106", "NVIDIA L4", "8.9"))
    check = engines_check(checkpoint_folder)
    assert not check.passed
    assert check.detail.endswith(
        f"multsd-export --checkpoint {checkpoint_folder} --output repository --profile tensorrt"
    )
    monkeypatch.setattr(run, "this_machine", lambda: Machine("11.4.0.106", "NVIDIA H100 80GB HBM3", "9.0"))
    assert engines_check(checkpoint_folder).passed


def test_engines_are_not_compared_where_tensorrts_package_is_missing(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    check = engines_check(checkpoint_folder)
    assert check.passed is None
    assert check.detail == "TensorRT's package is not here; Triton has loaded them"


def test_inputs_fill_a_batch_and_a_vaes_pictures_stay_within_its_engine(checkpoint_folder: Path) -> None:
    checkpoint = read_checkpoint(checkpoint_folder)
    shapes = {
        network.name: [
            next(iter(batch.values())).shape
            for batch in network_batches(network, checkpoint, 16, tile=32, largest=True)
        ]
        for network in networks_of(checkpoint)
    }
    assert shapes == {
        "text_encoder": [(16, 77)],
        "unet": [(16, 4, 16, 16)],
        "vae_decoder": [(1, 4, 16, 16), (1, 4, 16, 24), (1, 4, 32, 32)],
        "vae_encoder": [(1, 3, 128, 128), (1, 3, 128, 192), (1, 3, 256, 256)],
    }


def test_the_verdict_names_every_check_that_failed() -> None:
    report = Report({}, [Check("unet", "is right", True, "0"), Check("vae_decoder", "is right", False, "0.3 apart")])
    assert not report.passed
    assert report.verdict() == "failed: 1 of 2 checks: vae_decoder: is right: 0.3 apart"
    assert report.as_json()["verdict"] == report.verdict()


def test_a_report_without_checks_has_not_passed() -> None:
    skipped = Check("repository", "is fast", None, "no clock")
    assert not Report({}).passed
    assert not Report({}, [skipped]).passed
    passed = Report({}, [skipped, Check("unet", "is right", True, "0")])
    assert passed.passed
    assert passed.verdict() == "passed: 1 checks; 1 not looked at: repository: is fast: no clock"


def test_psnr_of_a_known_error() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black + np.uint8(51), black) == pytest.approx(20 * math.log10(5))
    assert psnr(black, black) == math.inf


def test_a_repository_without_a_manifest_is_refused(checkpoint_folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(tmp_path), "--checkpoint", str(checkpoint_folder)])
    assert result.exit_code == 1
    assert "expected a composed repository with manifest.json, found none" in result.output
