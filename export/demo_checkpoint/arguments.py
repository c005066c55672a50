"""Values of command lines: each raises argparse's error, which names the option, with what was expected and found."""

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

import torch


def at_least(least: int) -> Callable[[str], int]:
    """Whole numbers from least on."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise ArgumentTypeError(f"expected a whole number of at least {least}, found {text!r}")
        return value

    return number


def device(text: str) -> torch.device:
    """The processor or a GPU that torch finds."""
    gpus = torch.cuda.device_count()
    expected = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{number}" for number in range(gpus))]
    if text not in expected:
        raise ArgumentTypeError(f"expected {' or '.join(expected)}, which is what torch finds here, found {text!r}")
    return torch.device(text)


def folder_with(*names: str) -> Callable[[str], Path]:
    """Folders that have such folders in them."""

    def folder(text: str) -> Path:
        path = Path(text)
        if missing := [name for name in names if not (path / name).is_dir()]:
            found = f"{text} without {', '.join(missing)}" if path.is_dir() else f"no folder {text}"
            raise ArgumentTypeError(f"expected a folder with {', '.join(names)}, found {found}")
        return path

    return folder
