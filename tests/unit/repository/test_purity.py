"""The method's modules know neither Triton nor settings nor files: all that they import, directly or not, is listed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import pipeline

FOLDER = Path(pipeline.__file__).parent
ADAPTERS = {"model", "background", "checkpoint_files"}  # Triton's, its thread, and the reader of the checkpoint's files
PURE = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ADAPTERS)

# Of the standard library: nothing that reads files, the environment, the network or other processes.
STANDARD = {
    *("asyncio", "collections", "collections.abc", "contextlib", "dataclasses", "functools", "inspect", "itertools"),
    *("math", "re", "secrets", "time", "typing"),
}
RELEASED = {"diffusers", "numpy", "numpy.typing", "tokenizers", "torch"}
READS_OR_WRITES = {"open", "print", "input", "exec", "eval", "__import__", "breakpoint"}
METHODS = {"read_text", "read_bytes", "write_text", "write_bytes", "from_file", "from_pretrained", "load_file", "save"}


@cache
def syntax(module: str) -> ast.Module:
    return ast.parse((FOLDER / f"{module}.py").read_text())


def imports(module: str) -> Iterator[str]:
    """The modules that a module names, wherever in it."""
    for node in ast.walk(syntax(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield str(node.module)


def reached(module: str) -> set[str]:
    """The modules that are imported with a module, of the method's own through all that they import."""
    found, left = set[str](), [module]
    while left:
        for name in imports(left.pop()):
            if name not in found and (FOLDER / f"{name}.py").exists():
                left.append(name)
            found.add(name)
    return found


def test_the_method_is_most_of_the_modules() -> None:
    assert {"batching", "pipeline", "regions", "row_plan", "sampling", "schedulers", "views"} <= set(PURE)


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_imports_nothing_but_arithmetic_and_pure_modules(module: str) -> None:
    assert reached(module) <= STANDARD | RELEASED | set(PURE)


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_reads_and_writes_nothing(module: str) -> None:
    calls = [node.func for node in ast.walk(syntax(module)) if isinstance(node, ast.Call)]
    named = {call.id for call in calls if isinstance(call, ast.Name)}
    methods = {call.attr for call in calls if isinstance(call, ast.Attribute)}
    assert not named & READS_OR_WRITES
    assert not methods & METHODS


@pytest.mark.parametrize("module", sorted(ADAPTERS))
def test_an_adapter_is_told_from_a_pure_module(module: str) -> None:
    assert not reached(module) <= STANDARD | RELEASED | set(PURE)


ALONE = """
import sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"triton_python_backend_utils", "tritonclient", *ADAPTERS}:
            raise AssertionError(name)

ADAPTERS = set(sys.argv[2].split(","))
sys.meta_path.insert(0, Nowhere())
sys.path.insert(0, sys.argv[1])
import pipeline, batching, admission, embedding_cache
"""


def test_the_method_is_imported_where_there_is_no_triton() -> None:
    command = [sys.executable, "-c", ALONE, str(FOLDER), ",".join(ADAPTERS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
