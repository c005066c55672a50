"""Many requests, a few at once: lines of JSON in, a picture file and a line of results for each.

A line of results is {"line", "digest", "file", "seed", "seconds", "warnings"}, or {"line", "digest", "error"}. The
digest is that of the request's line: a line that was changed since is painted anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multsd_client.client import AsyncClient
from multsd_client.errors import MultsdError
from multsd_client.result import GenerationResult

SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}

OnResult = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One line of a batch; line: counted from 1; text: the request's JSON."""

    line: int
    text: str

    @property
    def digest(self) -> str:
        """Of the text, so that a result can be told to be this line's."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def body(self) -> dict[str, Any]:
        """The request. Raises ValueError."""
        try:
            body = json.loads(self.text, strict=False)
        except ValueError as error:
            raise ValueError(f"expected JSON, found an error: {error}") from None
        except RecursionError:
            raise ValueError("expected JSON, found it nested too deep") from None
        if not isinstance(body, dict):
            raise ValueError(f"expected a JSON object, found {type(body).__name__}")
        return body


def read_jobs(lines: Iterable[str]) -> list[Job]:
    """The jobs of a file's lines; empty ones are none."""
    return [Job(number, text) for number, line in enumerate(lines, start=1) if (text := line.strip())]


def finished(results: Path, folder: Path) -> set[tuple[int, str]]:
    """Line and digest of what an earlier run has painted , still there; a line cut by a crash is passed over."""
    if not results.exists():
        return set()
    return {
        (result["line"], result["digest"])
        for result in _objects(results.read_text(encoding="utf-8").splitlines())
        if isinstance(result.get("file"), str) and (folder / result["file"]).is_file()
    }


async def run(client: AsyncClient, jobs: Iterable[Job], *, at_once: int, folder: Path, on_result: OnResult) -> None:
    """Paint every job into `folder`, `at_once` at a time; on_result is told each as it ends. Raises OSError."""
    waiting = iter(jobs)

    async def worker() -> None:
        for job in waiting:
            on_result(await _paint(client, job, folder))

    await asyncio.gather(*(worker() for _ in range(at_once)))


async def _paint(client: AsyncClient, job: Job, folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = {"line": job.line, "digest": job.digest}
    try:
        result = await client.generate(job.body())
    except (MultsdError, ValueError) as error:
        return {**told, "error": f"{type(error).__name__}: {error}"}
    return {
        **told,
        "file": _write(result, folder, job.line),
        "seed": result.seed,
        "seconds": result.timings.get("total"),
        "warnings": [str(warning) for warning in result.warnings],
    }


def _write(result: GenerationResult, folder: Path, line: int) -> str:
    """Whole or not at all, so that a file that is there can be trusted by the next run."""
    name = f"{line:06d}{SUFFIXES.get(result.media_type, '.bin')}"
    partial = folder / f".{name}.partial"
    partial.write_bytes(result.image)
    partial.replace(folder / name)
    return name


def _objects(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and {"line", "digest"} <= value.keys():
            yield value
