"""Many requests, a few at once: lines of JSON in, a picture file and a line of results for each.

A line of results is {"line", "key", "file", "seed", "seconds", "warnings"}, or {"line", "key", "error"}. The key is a
digest of the request, and the stem of its picture's name: wherever a request moves to in its file, its picture is still
its own, and only what is new or changed is painted.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
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
    """One line of a batch; line: counted from 1; text: the request's JSON; key: tells the request from all others."""

    line: int
    text: str
    key: str

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
    """The jobs of a file's lines; empty ones are none. A request that comes again is a job of its own."""
    jobs: list[Job] = []
    seen: Counter[str] = Counter()
    for number, line in enumerate(lines, start=1):
        if text := line.strip():
            digest = hashlib.sha256(_canonical(text).encode(errors="surrogatepass")).hexdigest()[:16]
            seen[digest] += 1
            jobs.append(Job(number, text, digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"))
    return jobs


def finished(results: Path, folder: Path) -> dict[str, Mapping[str, Any]]:
    """The last result of each key that an earlier run has painted, where its picture is still there.

    A line cut by a crash is passed over.
    """
    if not results.exists():
        return {}
    return {
        result["key"]: result
        for result in _objects(results.read_text(encoding="utf-8").split("\n"))
        if isinstance(result.get("file"), str) and (folder / result["file"]).is_file()
    }


def moved(jobs: Iterable[Job], done: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The results of jobs that are done and stand in another line than they did."""
    return [
        {**done[job.key], "line": job.line} for job in jobs if job.key in done and done[job.key]["line"] != job.line
    ]


async def run(client: AsyncClient, jobs: Iterable[Job], *, at_once: int, folder: Path, on_result: OnResult) -> None:
    """Paint every job into `folder`, `at_once` at a time; on_result is told each as it ends. Raises OSError."""
    waiting = iter(jobs)

    async def worker() -> None:
        for job in waiting:
            on_result(await _paint(client, job, folder))

    await asyncio.gather(*(worker() for _ in range(at_once)))


async def _paint(client: AsyncClient, job: Job, folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = {"line": job.line, "key": job.key}
    try:
        result = await client.generate(job.body())
    except (MultsdError, ValueError) as error:
        return {**told, "error": f"{type(error).__name__}: {error}"}
    return {
        **told,
        "file": _write(result, folder, job.key),
        "seed": result.seed,
        "seconds": result.timings.get("total"),
        "warnings": [str(warning) for warning in result.warnings],
    }


def _write(result: GenerationResult, folder: Path, key: str) -> str:
    """Whole or not at all, so that a file that is there can be trusted by the next run."""
    name = f"{key}{SUFFIXES.get(result.media_type, '.bin')}"
    partial = folder / f".{name}.partial"
    partial.write_bytes(result.image)
    partial.replace(folder / name)
    return name


def _canonical(text: str) -> str:
    """The same for the same request, however its JSON is laid out; the text itself where it is no JSON."""
    try:
        return json.dumps(json.loads(text, strict=False), sort_keys=True)
    except (ValueError, RecursionError):
        return text


def _objects(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and {"line", "key"} <= value.keys():
            yield value
