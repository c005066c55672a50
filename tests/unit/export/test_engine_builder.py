"""One engine's build, whole, with a TensorRT that takes the released bindings' calls and builds nothing."""

import ctypes
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from multsd_export import pipeline
from multsd_export.digests import file_digest
from multsd_export.engines import builder
from multsd_export.engines.machine import Machine
from multsd_export.engines.settings import EngineSettings
from multsd_export.engines.shapes import ShapeRange
from multsd_export.engines.stop import noted_signals
from multsd_export.errors import EngineError
from multsd_export.manifest import read_manifest
from multsd_export.pipeline import export

from .conftest import Exported
from .tensorrt_signatures import released_bindings
from .tensorrt_stand_in import StandIn

RANGES = {"x": ShapeRange((1, 4), (2, 4), (8, 4)), "t": ShapeRange((1,), (2,), (8,))}
BUILD = "Builder.build_serialized_network"
H100 = Machine("11.4.0.106", "NVIDIA H100 80GB HBM3", "9.0")


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The released bindings."""
    return released_bindings(tmp_path_factory.mktemp("libraries"))


@pytest.fixture
def heeded_interrupts() -> Iterator[None]:
    """SIGINT as a terminal's programs have it; what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Building:
    """A build of `model.onnx` in a folder; `answers` may be changed before it runs."""

    def __init__(self, released: ModuleType, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "timings.cache"
        self.shares: list[float] = []
        self.trt = StandIn(released, {BUILD: memoryview(b"plan"), "ITimingCache.serialize": memoryview(b"timings")})
        self.answers = self.trt.answers

    def run(self, settings: EngineSettings | None = None) -> None:
        builder.build_engine(
            self.folder / "model.onnx",
            self.folder / "model.plan",
            RANGES,
            settings or EngineSettings(),
            self.cache,
            self.shares.append,
        )

    def refused(self) -> str:
        """What a build that ends with an error says, after the file's name."""
        with pytest.raises(EngineError) as refused:
            self.run()
        assert not (self.folder / "model.plan").exists()
        return str(refused.value).removeprefix(f"{self.folder / 'model.onnx'}: ")

    def log(self, severity: str, message: str) -> None:
        """As TensorRT does it, through the bindings."""
        released = self.trt.released
        messages = self.trt.of("Builder")[0].arguments[0]
        released.ILogger.log(messages, getattr(released.ILogger.Severity, severity), message)

    def monitor(self, method: str, *arguments: Any) -> Any:
        """A call of the progress monitor, through the bindings as well."""
        (call,) = self.trt.of("IBuilderConfig.progress_monitor")
        return getattr(self.trt.released.IProgressMonitor, method)(call.arguments[0], *arguments)

    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def building(released: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Building:
    made = Building(released, tmp_path)
    monkeypatch.setattr(builder, "import_tensorrt", lambda: made.trt)
    return made


def test_a_build_asks_for_what_its_settings_and_ranges_say(building: Building, released: ModuleType) -> None:
    building.run(EngineSettings(optimization_level=4, workspace_mib=100))
    asked = [(call.path, call.arguments, dict(call.keywords)) for call in building.trt.calls]
    assert asked[4:8] == [
        ("OnnxParser.parse_from_file", (str(building.folder / "model.onnx"),), {}),
        ("IBuilderConfig.builder_optimization_level", (4,), {}),
        ("IBuilderConfig.set_memory_pool_limit", (released.MemoryPoolType.WORKSPACE, 100 * 2**20), {}),
        ("IBuilderConfig.clear_flag", (released.BuilderFlag.TF32,), {}),
    ]
    assert [(call.arguments, call.keywords) for call in building.trt.of("IOptimizationProfile.set_shape")] == [
        ((name,), {"min": shapes.min, "opt": shapes.opt, "max": shapes.max}) for name, shapes in RANGES.items()
    ]
    paths = [call.path for call in building.trt.calls]
    assert paths[-3:] == [BUILD, "IBuilderConfig.get_timing_cache", "ITimingCache.serialize"]
    before = ("IBuilderConfig.add_optimization_profile", "IBuilderConfig.set_timing_cache")
    assert all(path in paths for path in before)
    assert (building.folder / "model.plan").read_bytes() == b"plan"
    assert building.files() == {"model.plan", "timings.cache"}


def test_all_of_the_gpus_memory_may_be_used_where_no_limit_is_set(building: Building) -> None:
    building.run()
    assert building.trt.of("IBuilderConfig.set_memory_pool_limit") == []


def test_a_builds_progress_is_told(building: Building) -> None:
    def build(_network: Any, _config: Any) -> bytes:
        building.monitor("phase_start", "Building", None, 2)
        assert building.monitor("step_complete", "Building", 0) is True
        building.monitor("phase_finish", "Building")
        return b"plan"

    building.answers[BUILD] = build
    building.run()
    assert building.shares == [0.5, 1.0]


def test_what_kernels_took_is_used_in_the_next_build(building: Building) -> None:
    building.run()
    building.run()
    caches = [call.arguments for call in building.trt.of("IBuilderConfig.create_timing_cache")]
    assert caches == [(b"",), (b"timings",)]
    assert all(
        call.keywords == {"ignore_mismatch": False} for call in building.trt.of("IBuilderConfig.set_timing_cache")
    )


@pytest.mark.parametrize(
    "answers",
    [
        {"IBuilderConfig.create_timing_cache": "damaged"},
        {"IBuilderConfig.set_timing_cache": "another machine"},
    ],
    ids=["damaged", "of another machine"],
)
def test_a_timing_cache_that_cannot_be_used_is_replaced_by_a_new_one(
    building: Building, answers: Mapping[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    building.cache.write_bytes(b"old")
    contents: list[bytes] = []
    create = building.trt.released.IBuilderConfig.create_timing_cache

    def created(content: bytes) -> Any:
        contents.append(content)
        damaged = content and "IBuilderConfig.create_timing_cache" in answers
        return None if damaged else building.trt.call("a new one", create, content)

    building.answers["IBuilderConfig.create_timing_cache"] = created
    if "IBuilderConfig.set_timing_cache" in answers:
        building.answers["IBuilderConfig.set_timing_cache"] = lambda *_, **__: contents[-1] == b""
    building.run()
    assert contents == [b"old", b""]
    assert caplog.messages == [f"{building.cache} is damaged or of another machine and is not used"]
    assert building.cache.read_bytes() == b"timings"


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_args: Any, **_keywords: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("path", "answer", "message"),
    [
        (
            "Builder",
            failing(TypeError("pybind11::init(): factory function returned nullptr")),
            "TensorRT's builder cannot be made:\n  pybind11::init(): factory function returned nullptr",
        ),
        (
            "IOptimizationProfile.set_shape",
            failing(ValueError("inconsistent")),
            "TensorRT refuses the settings:\n  x from (1, 4) to (8, 4): inconsistent",
        ),
        (
            "IOptimizationProfile.set_shape",
            failing(RuntimeError("inconsistent")),
            "TensorRT refuses the settings:\n  x from (1, 4) to (8, 4): inconsistent",
        ),
        (
            "IBuilderConfig.add_optimization_profile",
            -1,
            "TensorRT refuses the settings:\n  the ranges of shapes do not fit the graph",
        ),
        (
            "IBuilderConfig.create_timing_cache",
            None,
            "TensorRT refuses the settings:\n  a new timing cache is not taken",
        ),
        (BUILD, failing(RuntimeError("out of memory")), "TensorRT finds no engine:\n  out of memory"),
        (BUILD, None, "TensorRT finds no engine."),
        (
            "OnnxParser.parse_from_file",
            failing(RuntimeError("no file")),
            "TensorRT's parser refuses the graph:\n  no file",
        ),
    ],
)
def test_what_tensorrt_refuses_is_said_in_plain_words(building: Building, path: str, answer: Any, message: str) -> None:
    building.answers[path] = answer
    assert building.refused() == message


def test_an_engine_that_is_not_found_comes_with_all_that_tensorrt_says(building: Building) -> None:
    def build(_network: Any, _config: Any) -> None:
        building.log("VERBOSE", "a kernel was tried")
        building.log("ERROR", "no kernel")
        building.log("INTERNAL_ERROR", "worse")

    building.answers[BUILD] = build
    assert building.refused() == "TensorRT finds no engine:\n  no kernel\n  worse"
    assert building.cache.read_bytes() == b"timings"


def parser_error(index: int, functions: list[str]) -> Any:
    facts = {
        "node": index,
        "node_name": f"node_{index}",
        "node_operator": "Einsum",
        "desc": f"fault {index}",
        "code": "UNSUPPORTED_NODE",
        "func": "parseNode",
        "file": "ModelImporter.cpp",
        "line": 7,
        "local_function_stack": functions,
    }
    return SimpleNamespace(**{name: lambda value=value: value for name, value in facts.items()})


def test_every_error_of_the_parser_is_shown_whole(building: Building) -> None:
    errors = [parser_error(0, []), parser_error(1, ["Attention", "Softmax"])]
    building.answers |= {
        "OnnxParser.parse_from_file": False,
        "OnnxParser.num_errors": len(errors),
        "OnnxParser.get_error": lambda index: errors[index],
    }
    assert building.refused().splitlines() == [
        "TensorRT's parser refuses the graph:",
        "  node 0 'node_0' (Einsum): fault 0 [UNSUPPORTED_NODE in parseNode, ModelImporter.cpp:7]",
        "  node 1 'node_1' (Einsum): fault 1 [UNSUPPORTED_NODE in parseNode, ModelImporter.cpp:7] in the graph's "
        "functions Attention, Softmax",
    ]
    assert building.trt.of(BUILD) == []


@pytest.mark.usefixtures("heeded_interrupts")
@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("within", ["log", "phase_start", "phase_finish", "the build itself"])
def test_a_signal_ends_the_build_at_its_next_step_wherever_it_lands(
    building: Building, asked: signal.Signals, within: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    class Tree:
        """In place of the real one: the signal comes while Python runs for TensorRT."""

        def __init__(self, _report: Any) -> None: ...

        def start(self, *_: Any) -> None:
            if within == "phase_start":
                signal.raise_signal(asked)

        def complete(self, *_: Any) -> None: ...

        def finish(self, *_: Any) -> None:
            if within == "phase_finish":
                signal.raise_signal(asked)

    def build(_network: Any, _config: Any) -> None:
        if within == "the build itself":
            signal.raise_signal(asked)
        building.monitor("phase_start", "Building", None, 2)
        building.monitor("phase_finish", "Building")
        building.log("INFO", "a kernel was tried")
        assert building.monitor("step_complete", "Building", 1) is False

    if within == "log":
        monkeypatch.setattr(builder.logger, "debug", lambda *_: signal.raise_signal(asked))
    monkeypatch.setattr(builder, "PhaseTree", Tree)
    building.answers[BUILD] = build
    with pytest.raises(KeyboardInterrupt):
        building.run()
    assert building.files() == {"timings.cache"}  # of the kernels that were timed until then
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.usefixtures("heeded_interrupts")
@pytest.mark.parametrize("parsed", [True, False])
def test_a_signal_while_the_graph_is_parsed_begins_no_build(building: Building, parsed: bool) -> None:
    def parse(_file: str) -> bool:
        signal.raise_signal(signal.SIGINT)
        return parsed

    building.answers |= {"OnnxParser.parse_from_file": parse, "OnnxParser.num_errors": 0}
    with pytest.raises(KeyboardInterrupt):
        building.run()
    assert building.trt.of(BUILD) == []
    assert building.files() == set()


def call_in_a_foreign_thread(function: Callable[[], None]) -> None:
    """Call it from a thread of the C library's, while this thread is in its `pthread_join`, which no signal ends."""
    library = ctypes.CDLL(None)
    routine = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda _: function())
    thread = ctypes.c_ulong()
    assert library.pthread_create(ctypes.byref(thread), None, routine, None) == 0
    assert library.pthread_join(thread, None) == 0


@pytest.mark.usefixtures("heeded_interrupts")
@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_build_at_the_next_step_that_a_thread_of_tensorrts_own_tells(
    building: Building, asked: signal.Signals
) -> None:
    went_on: list[bool] = []

    def work() -> None:
        building.monitor("phase_start", "Building", None, 3)
        went_on.append(building.monitor("step_complete", "Building", 0))
        signal.raise_signal(asked)
        went_on.append(building.monitor("step_complete", "Building", 1))
        went_on.append(building.monitor("step_complete", "Building", 2))

    building.answers[BUILD] = lambda *_: call_in_a_foreign_thread(work)
    with pytest.raises(KeyboardInterrupt):
        building.run()
    assert went_on == [True, False, False]
    assert building.files() == {"timings.cache"}


@pytest.mark.usefixtures("heeded_interrupts")
def test_other_signals_end_no_build(building: Building) -> None:
    went_on: list[bool] = []

    def work() -> None:
        signal.raise_signal(signal.SIGUSR1)
        went_on.append(building.monitor("step_complete", "Building", 0))

    def build(_network: Any, _config: Any) -> bytes:
        call_in_a_foreign_thread(work)
        return b"plan"

    building.answers[BUILD] = build
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        building.run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert went_on == [True]
    assert (building.folder / "model.plan").read_bytes() == b"plan"


@pytest.mark.usefixtures("heeded_interrupts")
def test_where_the_numbers_of_signals_went_before_they_go_again() -> None:
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno())
        try:
            with pytest.raises(KeyboardInterrupt), noted_signals():
                signal.raise_signal(signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            assert reader.recv(10) == bytes([signal.SIGINT])
        finally:
            signal.set_wakeup_fd(before)


def test_signals_that_are_ignored_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with noted_signals() as stop:
            signal.raise_signal(signal.SIGINT)
        assert not stop.requested
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_engine_is_built_outside_the_main_thread_too(building: Building) -> None:
    thread = threading.Thread(target=building.run)
    thread.start()
    thread.join()
    assert (building.folder / "model.plan").read_bytes() == b"plan"


def test_an_engine_is_not_lost_where_what_kernels_took_cannot_be_kept(
    building: Building, caplog: pytest.LogCaptureFixture
) -> None:
    building.cache = building.folder / "no such folder" / "timings.cache"
    building.run()
    assert (building.folder / "model.plan").read_bytes() == b"plan"
    assert caplog.messages[0].startswith("what kernels took is not kept: ")


def test_nothing_half_is_left_where_what_kernels_took_cannot_take_its_name(
    building: Building, caplog: pytest.LogCaptureFixture
) -> None:
    building.cache.mkdir()
    building.run()
    assert building.files() == {"model.plan", "timings.cache"}
    assert caplog.messages[0].startswith("what kernels took is not kept: ")


def test_no_cache_is_kept_where_tensorrt_gives_none(building: Building) -> None:
    building.answers["IBuilderConfig.get_timing_cache"] = None
    building.run()
    assert building.files() == {"model.plan"}


@pytest.fixture
def options(exported_for_engines: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pipeline.Options:
    """An export to engines whose ONNX files are there already."""
    monkeypatch.setattr(pipeline, "this_machine", lambda: H100)
    return replace(exported_for_engines.copy(tmp_path), output=tmp_path / "engines")


def test_an_export_builds_every_engine_and_records_its_plan(
    building: Building, options: pipeline.Options, progress: Callable[[str, float], None]
) -> None:
    assert export(options, progress)
    manifest = read_manifest(options.output) or {}
    assert len(building.trt.of(BUILD)) == len(manifest["engines"]) == 4
    plan = options.output / "unet" / "1" / "model.plan"
    assert plan.read_bytes() == b"plan"
    assert manifest["files"]["unet/1/model.plan"] == file_digest(plan)
    asked = {call.arguments[0]: dict(call.keywords) for call in building.trt.of("IOptimizationProfile.set_shape")}
    recorded = manifest["engines"]["unet"]["shapes"]["timestep"]
    assert {key: list(shape) for key, shape in asked["timestep"].items()} == recorded
    assert len(list(options.work_dir.glob("timings-*.cache"))) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_plan_that_is_not_written_whole_is_not_kept(
    building: Building,
    options: pipeline.Options,
    progress: Callable[[str, float], None],
    error: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = Path.write_bytes

    def half(file: Path, content: bytes) -> int:
        if file.name != "model.plan":
            return write(file, content)
        write(file, content[:2])
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        with pytest.raises(error):
            export(options, progress)
    assert not list(options.work_dir.rglob("model.plan"))
    assert not options.output.exists()
    assert list(options.work_dir.glob("timings-*.cache"))
    assert export(options, progress)
    assert len(building.trt.of(BUILD)) == 5
