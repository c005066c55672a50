"""The faults that a verification is to find, shown by servers that have them. A real Triton is in tests/integration."""

import json
import math
import re
import shlex
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

from multsd_export.checkpoint import read_checkpoint
from multsd_export.cli import app
from multsd_export.engines.machine import Machine
from multsd_export.engines.record import Rebuild
from multsd_export.errors import NoAnswerError, ServerError, TorchError
from multsd_export.modules import Wrapper
from multsd_export.networks import Network, networks_of
from multsd_export.profiles import Device, Precision
from multsd_export.verify import networks, run
from multsd_export.verify.networks import OwnTime, ServedNetwork, network_batches, verify_network
from multsd_export.verify.picture import psnr, verify_graphs_picture
from multsd_export.verify.reference import ACTIVATION_BYTES, Reference, choose_device
from multsd_export.verify.report import Check, Report, Speed
from multsd_export.verify.run import Session, Verification
from multsd_export.verify.server import Server

Array = npt.NDArray[Any]
README = Path(__file__).parents[3] / "export" / "README.md"
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


REFERENCE = Reference([NETWORK], torch.device("cpu"))


def failures(server: Server) -> set[str]:
    rows = {"sample": np.arange(1, 3 * BATCH + 1, dtype=np.float32).reshape(BATCH, 3)}
    checks, speeds = verify_network(ServedNetwork(NETWORK, REFERENCE, server, BATCH), [rows])
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


def consistency(server: Server, *, every_size: bool) -> Check:
    rows = {"sample": np.arange(1, 3 * BATCH + 1, dtype=np.float32).reshape(BATCH, 3)}
    served = ServedNetwork(NETWORK, REFERENCE, server, BATCH, every_size=every_size)
    (check,) = (each for each in verify_network(served, [rows])[0] if each.name == CONSISTENT)
    return check


def test_where_there_may_be_cuda_graphs_every_batch_size_is_asked_for_its_previous_result() -> None:
    check = consistency(StaleGraphOfThreeRows(), every_size=True)
    assert (check.subject, check.passed) == ("network", False)
    assert check.detail == "B is answered with A's result (batch of 3)"
    assert consistency(DoublingServer(), every_size=True).passed
    assert consistency(StaleGraphOfThreeRows(), every_size=False).passed, "three is neither the least nor the most"


@pytest.mark.parametrize(
    ("execution", "graphs", "every_size"),
    [(None, False, False), ("eager", False, False), ("cuda-graphs", True, True), ("autotune", False, True)],
)
def test_what_a_server_does_with_cuda_graphs_is_read_from_its_configuration(
    execution: str | None, graphs: bool, every_size: bool
) -> None:
    config = model_config_pb2.ModelConfig(name="unet")
    if execution:
        config.parameters["execution"].string_value = execution

    class Configured(Server):
        def __init__(self) -> None:
            """No connection."""

        def _config(self, model: str) -> Any:
            assert model == "unet"
            return config

    assert run._cuda_graphs(Configured(), "unet") == (graphs, every_size)


def test_a_server_whose_configuration_is_closed_is_not_known_to_have_any() -> None:
    class Closed(Server):
        def __init__(self) -> None:
            """No connection."""

        def _config(self, model: str) -> Any:
            raise ServerError(f"{model}: closed")

    assert run._cuda_graphs(Closed(), "unet") == (False, False)


def test_a_is_asked_once_more_after_everything_else() -> None:
    rows = {"sample": np.arange(1, 3 * BATCH + 1, dtype=np.float32).reshape(BATCH, 3)}
    served = ServedNetwork(NETWORK, REFERENCE, ForgetsTheFirst(), BATCH)
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
    manifest = {"device": device, "profile": "torch", "checkpoint": {"digest": "sha256:1"}}
    (check,) = run._graphs_checks(manifest, graphs)
    assert (check.passed, check.detail) == (passed, detail)
    (of_engines,) = run._graphs_checks({**manifest, "profile": "tensorrt"}, graphs)
    assert of_engines.passed == passed
    assert of_engines.detail == detail + (run.UNSEEN_CAPTURES if passed else "")


def test_speeds_with_and_without_cuda_graphs_are_told_apart() -> None:
    rows = {"sample": np.ones((1, 3), np.float32)}
    speeds = [
        networks._speed(served, OwnTime(served), rows)
        for served in (
            ServedNetwork(NETWORK, REFERENCE, DoublingServer(), BATCH, cuda_graphs=graphs) for graphs in (False, True)
        )
    ]
    report = Report({}, speeds=speeds)
    told = ["network", "network, CUDA graphs"]
    assert [(each["subject"], each["network"]) for each in report.as_json()["speeds"]] == [
        (subject, "network") for subject in told
    ]
    _, table = report.tables()
    assert list(table.columns[0].cells) == told


# Every line of Triton's TensorRT backend for an engine that has no CUDA graph (src/instance_state.cc, July 2026).
FAILED_CAPTURES = """\
W1128 10:00:00.000000 1 instance_state.cc:3878] "Detected shape tensor, CUDA graph is not captured forunet_0_0"
E1128 10:00:00.000000 1 instance_state.cc:3893] "Failed to set cuda graph shape for unet_0_0trt failed to set input"
W1128 10:00:00.000000 1 instance_state.cc:3917] "unable to record CUDA graph for unet_0_0"
E1128 10:00:00.000000 1 instance_state.cc:3939] "unable to start CUDA graph for unet_0_0: out of memory"
E1128 10:00:00.000000 1 instance_state.cc:3979] "unable to finish CUDA graph for unet_0_0: out of memory"
E1128 10:00:00.000000 1 instance_state.cc:3995] "unable to instantiate CUDA graph for unet_0_0: out of memory"
"""
LOADED = "I1128 10:00:00.000000 1 model_lifecycle.cc:849] \"successfully loaded 'unet'\"\n"


@pytest.mark.parametrize("text", [run.UNSEEN_CAPTURES, README.read_text()], ids=["report", "README"])
def test_the_command_that_is_named_finds_every_capture_that_failed(text: str) -> None:
    (command,) = re.findall(r'grep [^"`]*"cuda graph"', text, re.IGNORECASE)
    found = subprocess.run(shlex.split(command), input=LOADED + FAILED_CAPTURES, capture_output=True, text=True)
    assert found.stdout == FAILED_CAPTURES


def test_a_picture_with_cuda_graphs_is_held_to_the_one_without() -> None:
    right = verify_graphs_picture(Serving(), Serving(graphs=True), NETWORK, 16, 3)
    assert [check.passed for check in right] == [True, True]
    wrong = verify_graphs_picture(Serving(), Serving(graphs=True, brightness=1.1), NETWORK, 16, 3)
    assert {check.name for check in wrong if not check.passed} == {"has the latents of the first server"}
    assert {check.subject for check in (*right, *wrong)} == {"picture, CUDA graphs"}


def engines_check(checkpoint_folder: Path) -> Check:
    record = {"tensorrt": "11.4.0.106", "compute_capability": "9.0", "gpu": "NVIDIA H100 80GB HBM3"}
    verification = Verification(Path("repository"), read_checkpoint(checkpoint_folder), "localhost:8001", 3, 60)
    rebuild = Rebuild("/checkpoint", "tensorrt", "fp16", [], "/contracts", "/kept", 3, None)
    return run._engines_check(verification, {"engines": {"unet": record}, "rebuild": asdict(rebuild)})


def test_engines_of_another_machine_fail_with_the_command_that_builds_them_again(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "import_tensorrt", lambda: None)
    monkeypatch.setattr(run, "this_machine", lambda: Machine("11.4.0.106", "NVIDIA L4", "8.9"))
    check = engines_check(checkpoint_folder)
    assert not check.passed
    assert f"multsd-export --checkpoint {checkpoint_folder} --output repository --profile tensorrt " in check.detail
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
    assert report.verdict() == "failed: 1 of 2 checks\n  vae_decoder: is right: 0.3 apart"
    assert report.as_json()["verdict"] == report.verdict()


def test_a_verdict_is_short_and_tells_a_reason_once_where_the_report_has_it_whole() -> None:
    reason = "unet: the server answers StatusCode.INTERNAL " + "INVALID_ARGUMENT : Got invalid dimensions " * 20
    checks = [Check("unet", name, False, reason) for name in (TORCH, CONSISTENT, ROWS)]
    command = Check("repository", "engines belong", False, "TensorRT differs\nbuild them again: multsd-export")
    report = Report({}, [*checks, command, Check("repository", "is fast", None, reason)])
    first, *lines = report.verdict().splitlines()
    assert first.startswith("failed: 4 of 4 checks; 1 not looked at: repository: is fast: unet: the server answers ")
    assert lines == [
        f"  unet: {TORCH}: {reason[:118]} …",
        f"  unet: {CONSISTENT}: see unet: {TORCH}",
        f"  unet: {ROWS}: see unet: {TORCH}",
        "  repository: engines belong: TensorRT differs build them again: multsd-export",
    ]
    assert all(len(line) < 200 for line in (first, *lines))
    assert [check["detail"] for check in report.as_json()["checks"][:3]] == [reason] * 3


def test_a_report_without_checks_has_not_passed() -> None:
    skipped = Check("repository", "is fast", None, "no clock")
    assert not Report({}).passed
    assert not Report({}, [skipped]).passed
    passed = Report({}, [skipped, Check("unet", "is right", True, "0")])
    assert passed.passed
    assert passed.verdict() == "passed: 1 checks; 1 not looked at: repository: is fast: no clock"


def test_an_error_that_ends_it_is_told_with_what_was_found_before() -> None:
    found = [Check("unet", "is right", True, "0"), Check("vae_decoder", "is right", False, "0.3 apart")]
    report = Report({}, found, unfinished="picture could not be finished: RuntimeError out of luck")
    assert not report.passed
    assert report.verdict() == (
        "failed: picture could not be finished: RuntimeError out of luck; before it 1 of 2 checks failed\n"
        "  vae_decoder: is right: 0.3 apart"
    )
    assert report.as_json()["unfinished"] == report.unfinished
    assert not Report({}, found[:1], unfinished="picture could not be finished: no luck").passed


class SlowOnce(DoublingServer):
    """One call of the network takes much longer than the others."""

    def compute_time(self, model: str) -> tuple[int, float]:  # noqa: ARG002
        return self.calls, self.calls * 0.001 + (0.1 if self.calls > 1 else 0)


class ToldLate(DoublingServer):
    """A millisecond a row; a call is counted once the statistics have been asked for after it."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = 0
        self.computed: list[float] = []  # seconds

    def answer(self, sample: Array) -> Array:
        self.computed.append(len(sample) * 0.001)
        return super().answer(sample)

    def compute_time(self, model: str) -> tuple[int, float]:  # noqa: ARG002
        counted, self.counted = self.counted, self.calls
        return counted, sum(self.computed[:counted])


class LosesACall(DoublingServer):
    """Its second call is never counted."""

    asked = 0

    def compute_time(self, model: str) -> tuple[int, float]:  # noqa: ARG002
        self.asked += 1
        counted = self.calls - (self.calls > 1)
        return counted, counted * 0.001


class OtherClients(DoublingServer):
    """Somebody else's call is counted with the second."""

    asked = 0

    def compute_time(self, model: str) -> tuple[int, float]:  # noqa: ARG002
        self.asked += 1
        counted = self.calls + (self.calls > 1)
        return counted, counted * 0.001


class ClosedStatistics(DoublingServer):
    """As Triton with `--grpc-restricted-protocol=statistics:KEY=VALUE`."""

    def compute_time(self, model: str) -> tuple[int, float]:
        raise ServerError(f"{model}: statistics: the server answers This protocol is restricted")


def speed(server: Server) -> Speed:
    rows = {"sample": np.ones((1, 3), np.float32)}
    served = ServedNetwork(NETWORK, REFERENCE, server, BATCH)
    return networks._speed(served, OwnTime(served), rows)


def test_the_networks_share_of_a_call_is_a_median_as_the_call_is() -> None:
    assert speed(SlowOnce()).server_seconds == pytest.approx(0.001)


def test_a_call_is_told_its_own_seconds_where_triton_counts_it_after_the_answer() -> None:
    rows = {"sample": np.arange(1, 3 * BATCH + 1, dtype=np.float32).reshape(BATCH, 3)}
    server = ToldLate()
    served = ServedNetwork(NETWORK, REFERENCE, server, BATCH)
    own_time = OwnTime(served)
    served.call(rows)
    first = networks._timed(served, own_time, {"sample": rows["sample"][:1]})
    assert first[1] == pytest.approx(0.001), "not those of the large call before it"
    _, speeds = verify_network(ServedNetwork(NETWORK, REFERENCE, server, BATCH), [rows])
    assert [each.server_seconds for each in speeds] == pytest.approx([0.001, 0.002, 0.003, 0.004])


@pytest.mark.parametrize("server", [LosesACall(), OtherClients()], ids=lambda value: type(value).__name__)
def test_seconds_that_may_be_another_calls_are_left_out_and_no_further_call_is_waited_for(
    server: LosesACall | OtherClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "SETTLING_SECONDS", 0.05)
    rows = {"sample": np.ones((1, 3), np.float32)}
    served = ServedNetwork(NETWORK, REFERENCE, server, BATCH)
    own_time = OwnTime(served)
    assert networks._timed(served, own_time, rows)[1] == pytest.approx(0.001)
    assert networks._timed(served, own_time, rows)[1] is None
    asked = server.asked
    assert networks._timed(served, own_time, rows)[1] is None
    assert server.asked == asked


def test_where_statistics_are_closed_the_speed_is_the_clients_alone_and_the_report_says_so() -> None:
    server = ClosedStatistics()
    found = speed(server)
    assert found.seconds > 0
    assert found.server_seconds is None
    (check,) = run._statistics_checks(server)
    assert (check.subject, check.passed) == ("speed", None)
    assert "This protocol is restricted" in check.detail
    assert run._statistics_checks(DoublingServer()) == []
    report = Report({}, [check], [found])
    assert report.as_json()["speeds"][0]["server_seconds"] is None
    _, speeds = report.tables()
    assert list(speeds.columns[4].cells) == ["-"]


def test_a_configuration_that_is_closed_is_not_looked_at() -> None:
    class Closed(DoublingServer):
        def parameter(self, model: str, key: str) -> str:  # noqa: ARG002
            raise ServerError(f"{model}: configuration: the server answers This protocol is restricted")

    check = run._served_check(Closed(), "sha256:1")
    assert check.passed is None
    assert check.detail == "multidiffusion: configuration: the server answers This protocol is restricted"


class Client:
    """In place of tritonclient's: every call fails with one status."""

    def __init__(self, status: str) -> None:
        self.status = status
        self.timeouts: list[float] = []

    def __getattr__(self, _name: str) -> Callable[..., Any]:
        def call(*_arguments: Any, client_timeout: float, **_options: Any) -> Any:
            self.timeouts.append(client_timeout)
            raise InferenceServerException("the reason", status=self.status)

        return call


def ask_all(client: Client, error: type[Exception]) -> list[str]:
    """What is said of every call, with a time limit of seven seconds."""
    server = Server("localhost:8001", 7)
    server._client = client
    calls: list[Callable[[], Any]] = [
        lambda: server.infer("unet", {"sample": np.ones((1, 3), np.float32)}, ["out_sample"]),
        lambda: server.compute_time("unet"),
        lambda: server.parameter("unet", "key"),
        lambda: server.replays_cuda_graphs("unet"),
    ]
    told = []
    for call in calls:
        with pytest.raises(error) as raised:
            call()
        told.append(str(raised.value))
    return told


def test_whatever_the_server_refuses_is_told_in_its_words() -> None:
    for text in ask_all(Client("StatusCode.UNAVAILABLE"), ServerError):
        assert text.startswith("unet: ")
        assert text.endswith("the server answers StatusCode.UNAVAILABLE the reason")


def test_a_call_without_an_answer_ends_in_time_and_says_how_to_wait_longer() -> None:
    client = Client("StatusCode.DEADLINE_EXCEEDED")
    for text in ask_all(client, NoAnswerError):
        assert text.endswith("no answer from localhost:8001 within 7 s; --timeout gives it more.")
    assert client.timeouts == [7] * 4


class Full(Wrapper):
    """A network for which the device has no room."""

    def __init__(self) -> None:
        super().__init__(None)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.5 GiB.")


def test_a_device_without_room_fails_the_comparison_in_plain_words() -> None:
    full = replace(NETWORK, load=lambda _dtype: Full())
    rows = {"sample": np.arange(1, 3 * BATCH + 1, dtype=np.float32).reshape(BATCH, 3)}
    served = ServedNetwork(full, Reference([full], torch.device("cpu")), DoublingServer(), BATCH)
    checks, _ = verify_network(served, [rows])
    assert {check.name: check.detail for check in checks if not check.passed} == {
        TORCH: "torch has too little memory on cpu for network."
    }


def test_one_network_at_a_time_takes_memory() -> None:
    alive: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()

    def load(_dtype: torch.dtype) -> Wrapper:
        module = Doubling()
        alive.add(module)
        return module

    loading = [replace(NETWORK, name=name, load=load) for name in ("unet", "vae_decoder")]
    reference = Reference(loading, torch.device("cpu"))
    for name in ("unet", "unet", "vae_decoder"):
        (doubled,) = reference.run(name, torch.ones(1, 3))
        assert doubled.tolist() == [[2, 2, 2]]
        assert len(alive) == 1
    reference.release()
    assert not alive


def test_a_gpu_is_taken_where_it_has_room_beside_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters, needed = 1000, 4000 + ACTIVATION_BYTES
    assert choose_device(Device.CPU, parameters).type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(None, parameters).type == "cpu"
    with pytest.raises(TorchError, match="torch sees no GPU here"):
        choose_device(Device.GPU, parameters)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for free, found in ((needed, "cuda"), (needed - 1, "cpu")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 80 * 2**30))
        assert choose_device(None, parameters).type == found
        assert choose_device(Device.GPU, parameters).type == "cuda"


def session_of(folder: Path) -> Session:
    """A verification of one network; what the repository says of itself is looked at first."""
    verification = Verification(folder, read_checkpoint(folder), "localhost:8001", 3, 60)
    digest = verification.checkpoint.digest
    manifest = {"checkpoint": {"digest": digest}, "files": {}, "engines": {}, "device": "cpu"}
    return Session(verification, manifest, (NETWORK,), [Serving(digest=digest)], REFERENCE, Report({}))


@pytest.mark.parametrize(
    ("made_from", "served", "failed"),
    [("sha256:2", "sha256:2", "is made from this checkpoint"), (None, "sha256:2", "is what Triton serves")],
    ids=["another checkpoint", "another repository in Triton"],
)
def test_nothing_is_compared_with_another_checkpoint(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch, made_from: str | None, served: str, failed: str
) -> None:
    compared: list[str] = []
    monkeypatch.setattr(run, "_verify_network", lambda _session, network: compared.append(network.name))
    monkeypatch.setattr(run, "_verify_pictures", lambda _session: compared.append("picture"))
    session = session_of(checkpoint_folder)
    run.verify(session, lambda _stage, _share: None)
    assert compared == ["network", "picture"]
    compared.clear()
    manifest = {**session.manifest, "checkpoint": {"digest": made_from or session.manifest["checkpoint"]["digest"]}}
    other = replace(session, manifest=manifest, servers=[Serving(digest=served)], report=Report({}))
    run.verify(other, lambda _stage, _share: None)
    assert compared == []
    assert not other.report.passed
    assert [check.name for check in other.report.failures] == [failed]
    assert other.report.verdict().startswith(
        "failed: networks and picture were not compared, since they are of another checkpoint; before it 1 of 3 checks "
    )


def test_the_models_that_have_to_be_ready_are_those_of_the_repository(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a checkpoint of another family is told to be another one, and no model to be missing."""
    networks = {name: {"parameters": 1} for name in ("text_encoder", "text_encoder_2", "unet")}
    manifest = {"precision": "fp32", "profile": "cpu", "device": "cpu", "checkpoint": {}, "engines": {}}
    manifest["networks"] = networks
    required: list[str] = []
    monkeypatch.setattr(run, "composed_manifest", lambda _folder: manifest)
    monkeypatch.setattr(Server, "require", lambda _server, models: required.extend(models))
    session = run.begin(session_of(checkpoint_folder).verification)
    assert [network.name for network in session.networks] == ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    assert required == [*networks, "multidiffusion", "multidiffusion_unary"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NoAnswerError("no answer within 60 s."), "no answer within 60 s"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError division by zero"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_whatever_ends_a_verification_the_report_has_what_was_found_before(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, told: str
) -> None:
    def fail(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(run, "_verify_network", fail)
    session = session_of(checkpoint_folder)
    with nullcontext() if isinstance(error, NoAnswerError) else pytest.raises(type(error)):
        run.verify(session, lambda _stage, _share: None)
    assert session.report.unfinished == f"network could not be finished: {told}"
    assert {check.subject for check in session.report.checks} == {"repository"}


def test_the_report_is_written_and_the_tables_printed_when_an_error_ends_it(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(run, "_verify_network", fail)
    monkeypatch.setattr(run, "begin", lambda _verification: session_of(checkpoint_folder))
    file = tmp_path / "report.json"
    arguments = ["verify", str(tmp_path), "--checkpoint", str(checkpoint_folder), "--report", str(file)]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ZeroDivisionError)
    assert "is made from this" in result.output
    verdict = json.loads(file.read_text())["verdict"]
    assert verdict.startswith("failed: network could not be finished: ZeroDivisionError division by zero; before it 0 ")
    assert result.output.endswith(f"{verdict}\n")


def test_psnr_of_a_known_error() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black + np.uint8(51), black) == pytest.approx(20 * math.log10(5))
    assert psnr(black, black) == math.inf


def test_a_repository_without_a_manifest_is_refused(checkpoint_folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(tmp_path), "--checkpoint", str(checkpoint_folder)])
    assert result.exit_code == 1
    assert "expected a composed repository with manifest.json, found none" in result.output
