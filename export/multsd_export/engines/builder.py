"""Build one engine with TensorRT 11: the only module that uses its builder and its parser.

Networks are strongly typed: the engine computes in what the graph says, so precision is decided in the ONNX file.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from multsd_export.engines.machine import import_tensorrt
from multsd_export.engines.progress import PhaseTree
from multsd_export.engines.settings import EngineSettings
from multsd_export.engines.shapes import ShapeRange
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
        timing_cache: what kernels took in earlier builds on this machine; read where it is there, written at the end.

    Raises:
        EngineError: TensorRT does not take the graph, or finds no engine; the message holds all that it says.
    """
    trt = import_tensorrt()
    messages = _logger(trt)
    builder = trt.Builder(messages)
    network = builder.create_network()
    _parse(trt, network, messages, onnx_file)
    config = builder.create_builder_config()
    config.builder_optimization_level = settings.optimization_level
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * MIB)
    config.clear_flag(trt.BuilderFlag.TF32)  # a network in full precision is there because it needs it
    config.add_optimization_profile(_optimization_profile(builder, ranges))
    _attach_timing_cache(config, timing_cache)
    monitor = _monitor(trt, PhaseTree(progress))
    config.progress_monitor = monitor
    serialized = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if serialized is None:
        raise EngineError("\n  ".join([f"{onnx_file}: TensorRT finds no engine:", *messages.errors]))
    plan.write_bytes(serialized)
    _keep_timing_cache(config, timing_cache)


def _parse(trt: Any, network: Any, messages: Any, onnx_file: Path) -> None:
    parser = trt.OnnxParser(network, messages)
    if not parser.parse_from_file(str(onnx_file)):  # by name: weights may lie in a file beside it
        errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
        raise EngineError("\n  ".join([f"{onnx_file}: TensorRT's parser refuses the graph:", *errors]))


def _parser_error(error: Any) -> str:
    return (
        f"node {error.node()} {error.node_name()!r} ({error.node_operator()}): {error.desc()} "
        f"[{error.code()} in {error.func()}, {error.file()}:{error.line()}]"
    )


def _optimization_profile(builder: Any, ranges: Mapping[str, ShapeRange]) -> Any:
    profile = builder.create_optimization_profile()
    for name, shapes in ranges.items():
        profile.set_shape(name, min=shapes.min, opt=shapes.opt, max=shapes.max)
    return profile


def _attach_timing_cache(config: Any, file: Path) -> None:
    """Use the file's cache, or a new one where there is none that belongs to this machine."""
    kept = file.read_bytes() if file.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(kept), ignore_mismatch=False):
        logger.warning("%s is of another machine and is not used", file)
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _keep_timing_cache(config: Any, file: Path) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_bytes(config.get_timing_cache().serialize())
    partial.replace(file)


def _logger(trt: Any) -> Any:
    """TensorRT's messages in Python's log; its errors are kept too, for it returns None where it fails."""

    class Messages(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(msg)
            else:
                logger.debug("TensorRT: %s", msg)

    return Messages()


def _monitor(trt: Any, tree: PhaseTree) -> Any:
    """TensorRT's progress, told to a tree; Ctrl-C during the build stops it at the next step."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            tree.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                tree.complete(phase_name, step)
            except KeyboardInterrupt:  # it must not pass through TensorRT
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            tree.finish(phase_name)

    return Monitor()
