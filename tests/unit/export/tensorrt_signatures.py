"""TensorRT's released Python bindings, and the signatures that they write in their docstrings."""

import ctypes
import importlib
import platform
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .empty_libraries import LIBRARIES, empty_library

ALIASES = {"IParserError": "ParserError"}  # a C++ name that the docstrings hold -> the class
OPENING, CLOSING = "[(<", "])>"


def released_bindings(folder: Path) -> ModuleType:
    """The bindings, imported with empty libraries behind them, which are written into `folder`."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip(f"the bindings are installed for Linux on x86-64 alone, this is {sys.platform}")
    for name in LIBRARIES:
        (folder / name).write_bytes(empty_library(name))
        ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
    return importlib.import_module("tensorrt_bindings")


@dataclass(frozen=True)
class Parameter:
    """One parameter, without `self`."""

    name: str
    kind: str  # the last part of its type's name: "IBuilderConfig"
    required: bool


@dataclass(frozen=True)
class Signature:
    """One overload of a function."""

    parameters: tuple[Parameter, ...]
    returned: str  # as `Parameter.kind`

    def takes(self, positional: int, keywords: Collection[str]) -> bool:
        """Whether a call with so many arguments and these keywords gives every parameter once that needs one."""
        names = [parameter.name for parameter in self.parameters]
        given = [*names[:positional], *keywords]
        required = {parameter.name for parameter in self.parameters if parameter.required}
        return (
            positional <= len(names)
            and len(given) == len(set(given))
            and set(given) <= set(names)
            and required <= set(given)
        )

    def __str__(self) -> str:
        named = ", ".join(each.name + ("" if each.required else "=") for each in self.parameters)
        return f"({named}) -> {self.returned}"


def signatures(function: Any) -> list[Signature]:
    """Every overload of a function or of a class's constructor, as pybind writes them in docstrings."""
    name = function.__name__
    if isinstance(function, type):
        function, name = vars(function)["__init__"], "__init__"
    lines = re.findall(rf"^(?:\d+\. )?{name}\((.*)\) -> (.*)$", function.__doc__, re.MULTILINE)
    return [
        Signature(tuple(each for each in map(_parameter, _split(inside)) if each.name != "self"), _kind(returned))
        for inside, returned in lines
    ]


def returned_class(trt: ModuleType, function: Any) -> Any:
    """The class of TensorRT that a function returns, None where it is another."""
    if isinstance(function, type):
        return function
    (kind,) = {each.returned for each in signatures(function)}
    found = getattr(trt, kind, None)
    return found if isinstance(found, type) else None  # `bool` is a data type there


def _parameter(text: str) -> Parameter:
    name, _, rest = text.partition(":")
    kind, default, _ = rest.partition(" = ")
    return Parameter(name.strip(), _kind(kind), not default)


def _kind(text: str) -> str:
    name = re.split(r"[.:]", text.partition("[")[0].strip())[-1]
    return ALIASES.get(name, name)


def _split(text: str) -> list[str]:
    """At commas outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in OPENING) - (character in CLOSING)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]
