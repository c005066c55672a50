"""Everything that the engine builder uses of TensorRT is in the released bindings, by name and by keyword."""

import ast
import ctypes
import importlib
import inspect
import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from multsd_export.engines import builder
from multsd_export.engines.machine import OLDEST
from multsd_export.engines.progress import PhaseTree

from .empty_libraries import LIBRARIES, empty_library

SOURCE = Path(builder.__file__)
# The names under which the builder's source holds TensorRT's objects; what a call returns is followed from there.
VARIABLES = {
    "trt": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "parser": "OnnxParser",
    "error": "ParserError",
}
SUBCLASSES = {"ILogger": {"log"}, "IProgressMonitor": {"phase_start", "step_complete", "phase_finish"}}
ELSEWHERE = {"errors", "interrupted"}  # attributes of the builder's own subclasses


@pytest.fixture(scope="module")
def trt(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The released bindings."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip(f"the bindings are installed for Linux on x86-64 alone, this is {sys.platform}")
    folder = tmp_path_factory.mktemp("libraries")
    for name in LIBRARIES:
        (folder / name).write_bytes(empty_library(name))
        ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
    return importlib.import_module("tensorrt_bindings")


@dataclass(frozen=True)
class Use:
    """One attribute of TensorRT in the source: the path to it, and the call's arguments where it is called."""

    path: str  # "IBuilderConfig.clear_flag"
    line: int
    positional: int | None  # None: not called
    keywords: tuple[str, ...]
    assigned: bool

    def __str__(self) -> str:
        return f"{self.path} in line {self.line}"


def uses(source: str) -> Iterator[Use]:
    """Every attribute of a TensorRT object that the source names."""
    tree = ast.parse(source)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        path = _path(node) if isinstance(node, ast.Attribute) and id(node) not in inner else None
        if path is not None and isinstance(node, ast.Attribute):
            call = calls.get(id(node))
            keywords = tuple(each.arg for each in call.keywords if each.arg) if call else ()
            yield Use(path, node.lineno, len(call.args) if call else None, keywords, isinstance(node.ctx, ast.Store))


def _path(node: ast.expr) -> str | None:
    """`config.clear_flag` -> "IBuilderConfig.clear_flag"; a call in between by what it returns."""
    if isinstance(node, ast.Name):
        return VARIABLES.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _path(node.value)
        return None if owner is None else f"{owner}.{node.attr}".lstrip(".")
    if isinstance(node, ast.Call) and (called := _path(node.func)) is not None:
        return f"{called}()"
    return None


def find(trt: ModuleType, path: str) -> Any:
    """What a path leads to; `f()` is the class that f's signature says it returns."""
    found: Any = trt
    for part in path.split("."):
        found = getattr(found, part.removesuffix("()"))
        if part.endswith("()") and not isinstance(found, type):
            returned = re.search(r"-> [\w.]*\b(\w+)$", found.__doc__.splitlines()[0])
            assert returned, f"{path}: what it returns is not said"
            found = getattr(trt, returned[1])
    return found


def signatures(function: Any) -> list[list[str]]:
    """The parameters of every overload, without self, as pybind writes them in docstrings."""
    name = function.__name__
    if isinstance(function, type):
        function, name = vars(function)["__init__"], "__init__"
    lines = re.findall(rf"^(?:\d+\. )?{name}\((.*)\) -> ", function.__doc__, re.MULTILINE)
    parameters = [re.findall(r"(\w+): ", line) for line in lines]
    return [[each for each in names if each != "self"] for names in parameters]


def accepts(function: Any, use: Use) -> bool:
    """Whether an overload takes the call's arguments."""
    assert use.positional is not None
    positional = use.positional - use.path.endswith("__init__")  # called on the class: self is one of them
    return any(
        positional + len(use.keywords) <= len(names) and set(use.keywords) <= set(names[positional:])
        for names in signatures(function)
    )


USES = [use for use in uses(SOURCE.read_text()) if not ELSEWHERE & set(use.path.split("."))]


def test_the_walk_finds_what_the_builder_is_known_to_use() -> None:
    found = {use.path for use in USES}
    assert {
        "Builder",
        "Builder.build_serialized_network",
        "Builder.create_network",
        "BuilderFlag.TF32",
        "IBuilderConfig.builder_optimization_level",
        "IBuilderConfig.get_timing_cache().serialize",
        "IBuilderConfig.progress_monitor",
        "IBuilderConfig.set_timing_cache",
        "ILogger.Severity.INTERNAL_ERROR",
        "IOptimizationProfile.set_shape",
        "IProgressMonitor.__init__",
        "MemoryPoolType.WORKSPACE",
        "OnnxParser.num_errors",
        "OnnxParser.parse_from_file",
        "ParserError.desc",
    } <= found
    assert len(USES) >= 30


@pytest.mark.parametrize("use", USES, ids=str)
def test_it_is_in_the_released_bindings(use: Use, trt: ModuleType) -> None:
    found = find(trt, use.path)
    if use.assigned:
        assert isinstance(found, property)
        assert found.fset is not None
    if use.positional is not None:
        assert accepts(found, use), f"{use}: {signatures(found)}"


def _subclasses(trt: ModuleType) -> dict[str, Any]:
    return {"ILogger": builder._logger(trt), "IProgressMonitor": builder._monitor(trt, PhaseTree(print))}


@pytest.mark.parametrize("base", SUBCLASSES)
def test_what_tensorrt_calls_is_overridden_with_its_own_parameters(base: str, trt: ModuleType) -> None:
    instance = _subclasses(trt)[base]
    assert isinstance(instance, getattr(trt, base))
    for method in SUBCLASSES[base]:
        (expected,) = signatures(getattr(getattr(trt, base), method))
        assert list(inspect.signature(getattr(instance, method)).parameters) == expected


def test_the_bindings_hold_no_other_method_that_has_to_be_overridden(trt: ModuleType) -> None:
    def methods(base: str) -> set[str]:
        return {
            name
            for name, value in vars(getattr(trt, base)).items()
            if not name.startswith("_") and isinstance(value, Callable) and not isinstance(value, type)  # type: ignore[arg-type]
        }

    assert {base: methods(base) for base in SUBCLASSES} == SUBCLASSES


def test_errors_are_kept_and_the_rest_is_logged(trt: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    messages = builder._logger(trt)
    with caplog.at_level("DEBUG"):
        messages.log(trt.ILogger.Severity.WARNING, "slow")
        messages.log(trt.ILogger.Severity.ERROR, "no kernel")
        messages.log(trt.ILogger.Severity.INTERNAL_ERROR, "worse")
    assert messages.errors == ["no kernel", "worse"]
    assert caplog.messages == ["TensorRT: slow"]


def test_an_interrupt_stops_the_build_at_its_next_step(trt: ModuleType) -> None:
    def interrupted(_share: float) -> None:
        raise KeyboardInterrupt

    monitor = builder._monitor(trt, PhaseTree(interrupted))
    monitor.phase_start("Building", None, 4)
    assert monitor.step_complete("Building", 0) is False
    assert monitor.interrupted


def test_the_version_is_where_it_is_read(trt: ModuleType) -> None:
    assert int(trt.__version__.partition(".")[0]) == OLDEST


def test_a_name_of_an_older_version_would_be_found(trt: ModuleType) -> None:
    (use,) = uses("trt.BuilderFlag.FP16")
    with pytest.raises(AttributeError, match="FP16"):
        find(trt, use.path)
    (use,) = uses("profile.set_shape('x', low=1, opt=1, max=1)")
    assert not accepts(find(trt, use.path), use)
