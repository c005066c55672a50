"""Calls in processes of their own: what one has taken of a GPU, or broken on it, is gone when it ends."""

import os
import traceback
from collections.abc import Callable
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")
SPAWN = get_context("spawn")  # a fork has no use of the GPU that its parent uses
EXIT_SECONDS = 10  # for what a process does after its result is there


class CallError(Exception):
    """The function has raised, or its process has ended or taken too long."""


class Apart(Generic[Result]):
    """A call of a module's function, begun in a process that is new; a context manager, at whose end that is gone.

    It ends with the process that has begun it, too, however that ends.
    """

    def __init__(self, function: Callable[..., Result], *arguments: Any) -> None:
        self._receiver, sender = SPAWN.Pipe(duplex=False)
        self._process = SPAWN.Process(target=_answer, args=(sender, function, arguments), daemon=True)
        self._process.start()
        sender.close()

    def __enter__(self) -> "Apart[Result]":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._receiver.close()

    def result(self, seconds: float | None = None) -> Result:
        """What the function returns, when its process has ended. Raises CallError, also after so many seconds."""
        if not self._receiver.poll(seconds):
            raise CallError(f"no result within {seconds:g} s")
        try:
            value, error = self._receiver.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode or 0
            raise CallError(f"its process was ended by {f'signal {-code}' if code < 0 else f'exit({code})'}") from None
        self._process.join(EXIT_SECONDS)
        if error:
            raise CallError(error)
        result: Result = value
        return result


def call_apart(function: Callable[..., Result], *arguments: Any, seconds: float | None = None) -> Result:
    """A function of a module, called in a process of its own: see `Apart`."""
    with Apart(function, *arguments) as call:
        return call.result(seconds)


def _answer(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        sender.send((function(*arguments), ""))
    except Exception as error:
        traceback.print_exc()
        sender.send((None, f"{type(error).__name__}: {error}"))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent:
        parent.join()
        os._exit(1)
