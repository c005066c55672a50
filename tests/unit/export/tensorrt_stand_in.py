"""A TensorRT that builds nothing: it takes the calls that the released bindings take, and records them.

Which classes, methods, properties and parameters there are is read from the bindings themselves, so a name or an
argument that they do not have fails here too. Classes that Python derives from, and enumerations, are the bindings'.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from .tensorrt_signatures import Parameter, Signature, signatures

CONSTRUCTED = {"Builder", "OnnxParser"}  # they call the library that is not there
# What a parameter of a Python type takes; others take objects of their class.
TAKES: Mapping[str, type | tuple[type, ...]] = {
    "str": str,
    "bool": bool,
    "SupportsInt": int,
    "Buffer": (bytes, memoryview),
    "Dims": tuple,
}
DEFAULTS: Mapping[str, Any] = {"None": None, "bool": True, "int": 0}


@dataclass(frozen=True)
class Call:
    """A call, or a property that was set, with its value as the one argument."""

    path: str  # "IBuilderConfig.clear_flag"
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]


class Made:
    """An object of one of TensorRT's classes."""

    def __init__(self, trt: "StandIn", kind: str) -> None:
        vars(self).update(_trt=trt, _kind=kind)

    def __getattr__(self, name: str) -> Any:
        member, path = getattr(getattr(self._trt.released, self._kind), name), f"{self._kind}.{name}"
        if isinstance(member, property):
            return self._trt.answers[path]
        return partial(self._trt.call, path, member)

    def __setattr__(self, name: str, value: Any) -> None:
        member = getattr(getattr(self._trt.released, self._kind), name)
        if not isinstance(member, property) or member.fset is None:
            raise AttributeError(f"{self._kind}.{name} cannot be set")
        self._trt.calls.append(Call(f"{self._kind}.{name}", (value,), {}))


class StandIn:
    """The bindings' module.

    Args:
        answers: of methods and properties that shall not answer as if all were well; functions are called.
    """

    def __init__(self, released: ModuleType, answers: Mapping[str, Any]) -> None:
        self.released = released
        self.answers = dict(answers)
        self.calls: list[Call] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.released, name)
        return partial(self.call, name, found) if name in CONSTRUCTED else found

    def of(self, path: str) -> list[Call]:
        """The calls of one method."""
        return [call for call in self.calls if call.path == path]

    def call(self, path: str, function: Any, *arguments: Any, **keywords: Any) -> Any:
        """Record a call that the bindings would take, and answer it."""
        fitting = [each for each in signatures(function) if self._fits(each, arguments, keywords)]
        if not fitting:
            raise TypeError(f"{path}(): incompatible function arguments")
        self.calls.append(Call(path, arguments, keywords))
        if path in self.answers:
            answer = self.answers[path]
            return answer(*arguments, **keywords) if callable(answer) else answer
        if path in CONSTRUCTED:
            return Made(self, path)
        kind = fitting[0].returned
        return DEFAULTS[kind] if kind in DEFAULTS else Made(self, kind)

    def _fits(self, signature: Signature, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> bool:
        if not signature.takes(len(arguments), keywords):
            return False
        named = {each.name: each for each in signature.parameters}
        given = [*zip(signature.parameters, arguments, strict=False)]
        given += [(named[name], value) for name, value in keywords.items()]
        return all(self._is_taken(parameter, value) for parameter, value in given)

    def _is_taken(self, parameter: Parameter, value: Any) -> bool:
        if isinstance(value, Made):
            return bool(value._kind == parameter.kind)
        return isinstance(value, TAKES.get(parameter.kind) or getattr(self.released, parameter.kind))
