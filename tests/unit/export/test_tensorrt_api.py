"""Everything that the engine builder uses of TensorRT is in the released bindings, by name and by argument."""

import ast
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from multsd_export.engines import builder
from multsd_export.engines.machine import OLDEST
from multsd_export.engines.progress import PhaseTree
from multsd_export.engines.stop import Stop

from .tensorrt_signatures import released_bindings, returned_class, signatures

SOURCE = Path(builder.__file__).read_text()
# The names under which the builder's source holds TensorRT's objects; what a call returns is followed from there.
VARIABLES = {
    "trt": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "parser": "OnnxParser",
    "error": "ParserError",
    "cache": "ITimingCache",
    "serialized": "IHostMemory",
    "severity": "ILogger.Severity",
}
OWN = {"messages"}  # of the builder's own subclasses
SUBCLASSES = {"ILogger": {"log"}, "IProgressMonitor": {"phase_start", "step_complete", "phase_finish"}}


@pytest.fixture(scope="module")
def trt(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The released bindings."""
    return released_bindings(tmp_path_factory.mktemp("libraries"))


@dataclass(frozen=True)
class Use:
    """One attribute of TensorRT in the source: the path to it, and the call's arguments where it is called."""

    path: str  # "IBuilderConfig.clear_flag"
    line: int
    call: ast.Call | None
    assigned: bool


def uses(tree: ast.AST) -> Iterator[Use]:
    """Every attribute of a TensorRT object that the source names."""
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        path = _path(node) if isinstance(node, ast.Attribute) and id(node) not in inner else None
        if path is not None and isinstance(node, ast.Attribute):
            yield Use(path, node.lineno, calls.get(id(node)), isinstance(node.ctx, ast.Store))


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


def results(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """Every name that is given what a call returns: the name, the call's path, the line."""
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr | ast.For | ast.comprehension):
            targets = [node.target]
        elif isinstance(node, ast.withitem) and node.optional_vars:
            targets = [node.optional_vars]
        value = next((getattr(node, key) for key in ("value", "iter", "context_expr") if hasattr(node, key)), None)
        if not isinstance(value, ast.expr):
            continue
        for target in targets:
            paths = [path for each in _choices(value) if isinstance(each, ast.Call) and (path := _path(each))]
            for name in (each for each in ast.walk(target) if isinstance(each, ast.Name)):
                yield from ((name.id, path, name.lineno) for path in paths)


def _choices(value: ast.expr) -> list[ast.expr]:
    """What an expression may be."""
    if isinstance(value, ast.IfExp):
        return _choices(value.body) + _choices(value.orelse)
    if isinstance(value, ast.BoolOp):
        return [choice for each in value.values for choice in _choices(each)]
    if isinstance(value, ast.Tuple):
        return [choice for each in value.elts for choice in _choices(each)]
    return [value]


def find(trt: ModuleType, path: str) -> Any:
    """What a path leads to; `f()` is the class that f's signature says it returns."""
    found: Any = trt
    for part in path.split("."):
        found = getattr(found, part.removesuffix("()"))
        if part.endswith("()"):
            found = returned_class(trt, found)
    return found


def faults(trt: ModuleType, source: str) -> list[str]:
    """What the source uses that the bindings do not have, and what it uses without this test seeing it."""
    tree = ast.parse(source)
    found = [f"line {use.line}: {fault}" for use in uses(tree) if (fault := _fault(trt, use))]
    for name, path, line in results(tree):
        try:
            returned = find(trt, path)
        except AttributeError:
            continue  # told already
        if returned is not None and returned is not (name in VARIABLES and find(trt, VARIABLES[name])):
            found.append(f"line {line}: {name} is {returned.__name__}, VARIABLES says {VARIABLES.get(name)}")
    untyped = [each for each in ast.walk(tree) if isinstance(each, ast.arg) and _is_any(each)]
    return found + [
        f"line {each.lineno}: what is {each.arg}? VARIABLES does not say"
        for each in untyped
        if each.arg not in VARIABLES.keys() | OWN
    ]


def _is_any(argument: ast.arg) -> bool:
    return isinstance(argument.annotation, ast.Name) and argument.annotation.id == "Any"


def _fault(trt: ModuleType, use: Use) -> str | None:
    try:
        found = find(trt, use.path)
    except AttributeError as error:
        return f"{use.path}: {error}"
    if use.assigned and not (isinstance(found, property) and found.fset):
        return f"{use.path} cannot be set"
    if use.call is None:
        return None
    keywords = [each.arg for each in use.call.keywords if each.arg]
    if len(keywords) < len(use.call.keywords) or any(isinstance(each, ast.Starred) for each in use.call.args):
        return f"{use.path}: arguments that cannot be seen"
    positional = len(use.call.args) - use.path.endswith("__init__")  # called on the class: self is one of them
    overloads = signatures(found)
    if any(each.takes(positional, keywords) for each in overloads):
        return None
    return f"{use.path} takes {' or '.join(map(str, overloads))}"


def test_the_walk_finds_what_the_builder_is_known_to_use() -> None:
    found = {use.path for use in uses(ast.parse(SOURCE))}
    assert {
        "Builder",
        "Builder.build_serialized_network",
        "Builder.create_network",
        "BuilderFlag.TF32",
        "IBuilderConfig.builder_optimization_level",
        "IBuilderConfig.progress_monitor",
        "IBuilderConfig.set_timing_cache",
        "ILogger.Severity.INTERNAL_ERROR",
        "IOptimizationProfile.set_shape",
        "IProgressMonitor.__init__",
        "ITimingCache.serialize",
        "MemoryPoolType.WORKSPACE",
        "OnnxParser.num_errors",
        "OnnxParser.parse_from_file",
        "ParserError.desc",
        "ParserError.local_function_stack",
    } <= found
    assert len(found) >= 30


def test_everything_that_the_builder_uses_is_in_the_released_bindings(trt: ModuleType) -> None:
    assert faults(trt, SOURCE) == []


SET_SHAPE = "IOptimizationProfile.set_shape takes (input, min, opt, max) -> None"


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("trt.BuilderFlag.FP16", "BuilderFlag.FP16: type object"),
        ("trt.Bilder(messages)", "Bilder: module"),
        ("config.progres_monitor = 1", "IBuilderConfig.progres_monitor: type object"),
        ("parser.num_errors = 1", "OnnxParser.num_errors cannot be set"),
        ("profile.set_shape('x', low=1, opt=1, max=1)", SET_SHAPE),
        ("profile.set_shape('x', min=1)", SET_SHAPE),
        ("profile.set_shape('x', 1, 1, 1, max=1)", SET_SHAPE),
        ("profile.set_shape('x', **shapes)", "IOptimizationProfile.set_shape: arguments that cannot be seen"),
        ("config.set_timing_cache(x)", "IBuilderConfig.set_timing_cache takes (cache, ignore_mismatch) -> bool"),
        ("config.set_memory_pool_limit()", "IBuilderConfig.set_memory_pool_limit takes (pool, pool_size) -> None"),
        ("cache.serialise()", "ITimingCache.serialise: type object"),
        ("serialized.nbytess", "IHostMemory.nbytess: type object"),
        ("severity.ALARM", "ILogger.Severity.ALARM: type object"),
        ("config.get_timing_cache().serialise()", "IBuilderConfig.get_timing_cache().serialise: type object"),
        ("runtime = trt.Runtime(messages)", "runtime is Runtime, VARIABLES says None"),
        ("plan = None if x else config.get_timing_cache()", "plan is ITimingCache, VARIABLES says None"),
        ("if plan := builder.build_serialized_network(network, config): ...", "plan is IHostMemory"),
        ("config = builder.create_network()", "config is INetworkDefinition, VARIABLES says IBuilderConfig"),
        ("def load(runtime: Any): runtime.deserialise_cuda_engine(x)", "what is runtime? VARIABLES does not say"),
    ],
)
def test_what_the_bindings_do_not_have_or_the_walk_does_not_see_is_a_fault(
    trt: ModuleType, source: str, fault: str
) -> None:
    (found,) = faults(trt, source)
    assert found.startswith(f"line 1: {fault}")


@pytest.mark.parametrize(
    "source",
    [
        "network = builder.create_network()",  # its flags have a default
        "serialized = builder.build_serialized_network(network, config, text)",
        "index = config.add_optimization_profile(profile)",
    ],
)
def test_what_the_bindings_take_is_none(trt: ModuleType, source: str) -> None:
    assert faults(trt, source) == []


def _subclasses(trt: ModuleType) -> dict[str, Any]:
    return {"ILogger": builder._logger(trt), "IProgressMonitor": builder._monitor(trt, PhaseTree(print), Stop())}


@pytest.mark.parametrize("base", SUBCLASSES)
def test_what_tensorrt_calls_is_overridden_with_its_own_parameters(base: str, trt: ModuleType) -> None:
    instance = _subclasses(trt)[base]
    assert isinstance(instance, getattr(trt, base))
    for method in SUBCLASSES[base]:
        (expected,) = signatures(getattr(getattr(trt, base), method))
        names = [parameter.name for parameter in expected.parameters]
        assert list(inspect.signature(getattr(instance, method)).parameters) == names


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


def test_the_version_is_where_it_is_read(trt: ModuleType) -> None:
    assert int(trt.__version__.partition(".")[0]) == OLDEST
