"""One value of the request's JSON to one Python value: numbers, also as numeric strings; texts; lists; masks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from multsd_client.shapes import Box, Polygon, RunLengths
from multsd_gateway.wording import found

MaskSource = str | Box | Polygon | RunLengths
N = TypeVar("N", int, float)

MAX_ITEMS = 1000
EXACT_FLOAT = 2**53
FARTHEST = 100_000  # pixels, of any coordinate or side

_INTEGER = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]{1,20}(\.[0-9]{0,20})?|\.[0-9]{1,20})([eE][+-]?[0-9]{1,3})?", re.ASCII)


def read_integer(value: object) -> int:
    """A whole number, as a JSON number or a numeric string. Raises ValueError."""
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT_FLOAT:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"expected a whole number, found {found(value)}")


def read_number(value: object) -> float:
    """A finite number, as a JSON number or a numeric string. Raises ValueError."""
    number = math.nan
    if isinstance(value, str):
        if _NUMBER.fullmatch(value.strip()):
            number = float(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if EXACT_FLOAT < abs(value) < math.inf:  # an integer may be too large for a float
            raise ValueError(f"expected a number of at most {EXACT_FLOAT:.0f}, found {found(value)}")
        number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, found {found(value)}")
    return number


def read_pixel(value: object) -> int:
    """A whole number of pixels along a side. Raises ValueError."""
    return _bounded(value, FARTHEST)


def read_count(value: object) -> int:
    """A whole number of pixels of an area. Raises ValueError."""
    return _bounded(value, FARTHEST**2)


def _bounded(value: object, most: int) -> int:
    number = read_integer(value)
    if not 0 <= number <= most:
        raise ValueError(f"expected 0 to {most}, found {found(value)}")
    return number


def read_coordinate(value: object) -> float:
    """A number of pixels, on the canvas or not too far from it. Raises ValueError."""
    number = read_number(value)
    if abs(number) > FARTHEST:
        raise ValueError(f"expected -{FARTHEST} to {FARTHEST}, found {found(value)}")
    return number


def read_text(value: object) -> str:
    """A string that UTF-8 can hold. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"expected a string, found {found(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"expected valid Unicode, found half a surrogate pair in {found(value)}") from None
    return value


def read_mask(value: object) -> MaskSource:
    """A mask: a string with an image, or an object with a box, a polygon or run lengths. Raises ValueError."""
    if isinstance(value, str):
        return read_text(value)
    if not isinstance(value, dict):
        raise ValueError(f"expected an image or an object, found {found(value)}")
    kinds = [kind for kind in _SHAPES if kind in value]
    if len(kinds) != 1:
        expected = ", ".join(f'"{kind}"' for kind in _SHAPES)
        raise ValueError(f"expected an image or an object with one of {expected}, found an object with {len(kinds)}")
    [kind] = kinds
    names = {"size", "counts"} if kind == "counts" else {kind}
    if unknown := value.keys() - names:
        raise ValueError(f"{kind}: expected no other names, found {found(min(unknown))}")
    return _SHAPES[kind](value)


def _box(value: Mapping[str, Any]) -> Box:
    return Box(*_numbers("box", value["box"], read_pixel, exactly=4))


def _polygon(value: Mapping[str, Any]) -> Polygon:
    points = value["polygon"]
    if not isinstance(points, list):
        raise ValueError(f"polygon: expected a list of points, found {found(points)}")
    read = [_numbers(f"polygon[{i}]", point, read_coordinate, exactly=2) for i, point in enumerate(points)]
    return Polygon(tuple((x, y) for x, y in read))


def _run_lengths(value: Mapping[str, Any]) -> RunLengths:
    height, width = _numbers("size", value.get("size"), read_pixel, exactly=2)
    return RunLengths((height, width), tuple(_numbers("counts", value["counts"], read_count)))


def _numbers(name: str, value: object, read: Callable[[object], N], *, exactly: int | None = None) -> list[N]:
    if not isinstance(value, list):
        raise ValueError(f"{name}: expected a list of numbers, found {found(value)}")
    if exactly is not None and len(value) != exactly:
        raise ValueError(f"{name}: expected {exactly} numbers, found {len(value)}")
    try:
        return [read(item) for item in value]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


_SHAPES: Mapping[str, Callable[[Mapping[str, Any]], MaskSource]] = {
    "box": _box,
    "polygon": _polygon,
    "counts": _run_lengths,
}


def read_list(value: object) -> object:
    """A list of a bounded number of items, which are checked afterwards. Raises ValueError."""
    if not isinstance(value, list):
        raise ValueError(f"expected a list, found {found(value)}")
    if len(value) > MAX_ITEMS:
        raise ValueError(f"expected at most {MAX_ITEMS} items, found {len(value)}")
    return value
