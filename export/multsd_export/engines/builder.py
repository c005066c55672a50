"""Build one engine with TensorRT 11: the only module that uses its builder and its parser.

Networks are strongly typed: the engine computes in what the graph says, so precision is decided in the ONNX file.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from multsd_export.engines.machine import import_tensorrt
from multsd_export.engines.progress import PhaseTree
from multsd_export.engines.settings import EngineSettings
from multsd_export.engines.shapes import ShapeRange
from multsd_export.engines.stop import Stop, noted_signals
from multsd_export.errors import EngineError

MIB = 2**20
logger = logging.getLogger(__name__)


def build_engine(
    onnx_file: Path,
    plan: Path,
    ranges: Mapping[str, ShapeRange],
    settings: EngineSettings,
    timing_cache: Path,
    progress: Callable[[float], None],
) -> None:
    """Write the engine of an ONNX file to `plan`.

    Args:
        ranges: of every input.
        timing_cache: what kernels took in earlier builds on this machine; read where it is there, and written
            when the build ends, however it does.

    Raises:
        EngineError: TensorRT does not take the graph, or finds no engine; the message holds all that it says.
        KeyboardInterrupt: Ctrl-C or SIGTERM came, and no engine is written.
    """
    trt = import_tensorrt()
    messages = _logger(trt)
    with noted_signals() as stop:
        with _refusals(f"{onnx_file}: TensorRT's builder cannot be made", messages):
            builder = trt.Builder(messages)
            network = builder.create_network()
            parser = trt.OnnxParser(network, messages)
            config = builder.create_builder_config()
        _parse(parser, messages, onnx_file)
        stop.check()
        with _refusals(f"{onnx_file}: TensorRT refuses the settings", messages):
            _configure(trt, config, settings)
            _add_optimization_profile(builder, config, ranges)
            _attach_timing_cache(config, timing_cache)
        monitor = _monitor(trt, PhaseTree(progress), stop)
        config.progress_monitor = monitor
        try:
            with _refusals(f"{onnx_file}: TensorRT finds no engine", messages):
                serialized = builder.build_serialized_network(network, config)
        finally:
            _keep_timing_cache(config, timing_cache)
        stop.check()
        if serialized is None:
            raise _error(f"{onnx_file}: TensorRT finds no engine", messages.errors)
        plan.write_bytes(serialized)


def _error(what: str, details: Sequence[str]) -> EngineError:
    return EngineError("\n  ".join([f"{what}:", *details]) if details else f"{what}.")


@contextmanager
def _refusals(what: str, messages: Any) -> Iterator[None]:
    """What the bindings raise, and they raise a TypeError too where TensorRT gives nothing, as one kind of error."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        raise _error(what, [*messages.errors, str(error)]) from error


def _parse(parser: Any, messages: Any, onnx_file: Path) -> None:
    what = f"{onnx_file}: TensorRT's parser refuses the graph"
    with _refusals(what, messages):
        parsed = parser.parse_from_file(str(onnx_file))  # by name: weights may lie in a file beside it
    if not parsed:
        errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
        raise _error(what, errors or messages.errors)


def _parser_error(error: Any) -> str:
    functions = error.local_function_stack()
    return (
        f"node {error.node()} {error.node_name()!r} ({error.node_operator()}): {error.desc()} "
        f"[{error.code()} in {error.func()}, {error.file()}:{error.line()}]"
        + (f" in the graph's functions {', '.join(functions)}" if functions else "")
    )


def _configure(trt: Any, config: Any, settings: EngineSettings) -> None:
    config.builder_optimization_level = settings.optimization_level
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * MIB)
    config.clear_flag(trt.BuilderFlag.TF32)  # a network in full precision is there because it needs it


def _add_optimization_profile(builder: Any, config: Any, ranges: Mapping[str, ShapeRange]) -> None:
    profile = builder.create_optimization_profile()
    for name, shapes in ranges.items():
        try:
            profile.set_shape(name, min=shapes.min, opt=shapes.opt, max=shapes.max)
        except (ValueError, RuntimeError) as error:  # releases differ
            raise ValueError(f"{name} from {shapes.min} to {shapes.max}: {error}") from error
    if config.add_optimization_profile(profile) < 0:
        raise ValueError("the ranges of shapes do not fit the graph")


def _attach_timing_cache(config: Any, file: Path) -> None:
    """Use the file's cache, or a new one where there is none that this machine can use."""
    kept = file.read_bytes() if file.is_file() else b""
    if kept and _takes_timing_cache(config, kept):
        return
    if kept:
        logger.warning("%s is damaged or of another machine and is not used", file)
    if not _takes_timing_cache(config, b""):
        raise ValueError("a new timing cache is not taken")


def _takes_timing_cache(config: Any, content: bytes) -> bool:
    cache = config.create_timing_cache(content)
    return cache is not None and bool(config.set_timing_cache(cache, ignore_mismatch=False))


def _keep_timing_cache(config: Any, file: Path) -> None:
    """Of builds that ended early too; an engine is not lost for want of it."""
    cache = config.get_timing_cache()
    serialized = None if cache is None else cache.serialize()
    if serialized is None:
        return
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_bytes(serialized)
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        logger.warning("what kernels took is not kept: %s", error)


def _logger(trt: Any) -> Any:
    """TensorRT's messages in Python's log; its errors are kept too, for it returns None where it fails."""

    class Messages(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity == trt.ILogger.Severity.VERBOSE and not logger.isEnabledFor(logging.DEBUG):
                return  # thousands
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(msg)
            else:
                logger.debug("TensorRT: %s", msg)

    return Messages()


def _monitor(trt: Any, tree: PhaseTree, stop: Stop) -> Any:
    """TensorRT's progress, told to a tree; it ends the build at the next step after a stop was requested."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            tree.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            tree.complete(phase_name, step)
            return not stop.requested

        def phase_finish(self, phase_name: str) -> None:
            tree.finish(phase_name)

    return Monitor()
