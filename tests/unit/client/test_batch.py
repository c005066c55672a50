"""Batches: each line its picture and its result, a few at once, and a second run that goes on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from multsd_client import AsyncClient, batch
from tests.unit.client.fakes import painted, refusal, service


def _run(lines: list[str], folder: Path, reply: Any = None, *, at_once: int = 2) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []

    async def scenario() -> None:
        transport = service(reply or (lambda _request: painted()))
        async with AsyncClient("http://service", transport=transport) as client:
            jobs = batch.read_jobs(lines)
            await batch.run(
                client, jobs, at_once=at_once, folder=folder, on_result=lambda each: told.append(dict(each))
            )

    asyncio.run(scenario())
    return sorted(told, key=lambda each: each["line"])


def test_every_line_becomes_a_file_and_a_result(tmp_path: Path) -> None:
    first, second = _run(['{"bg_prompt": "a"}', "", '{"bg_prompt": "b"}'], tmp_path)

    assert (first["line"], first["file"], first["seed"]) == (1, f"{first['key']}.jpg", 7)
    assert (second["line"], second["file"]) == (3, f"{second['key']}.jpg")
    assert (tmp_path / second["file"]).read_bytes() == b"picture"
    assert {path.name for path in tmp_path.iterdir()} == {first["file"], second["file"]}


def test_a_line_that_fails_does_not_keep_the_others_from_being_painted(tmp_path: Path) -> None:
    def reply(request: httpx.Request) -> httpx.Response:
        return refusal(400) if b"bad" in request.content else painted()

    results = _run(["{", '{"bg_prompt": "bad"}', "[]", '{"bg_prompt": "good"}'], tmp_path, reply)

    assert ["error" in each for each in results] == [True, True, True, False]
    assert results[0]["error"].startswith("ValueError: expected JSON")
    assert results[1]["error"] == "InvalidRequestError: no"
    assert results[2]["error"] == "ValueError: expected a JSON object, found list"


@pytest.mark.parametrize("at_once", [1, 3])
def test_no_more_are_asked_for_at_once_than_wanted(tmp_path: Path, at_once: int) -> None:
    running = most = 0

    async def reply(_request: httpx.Request) -> httpx.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1
        return painted()

    _run(['{"bg_prompt": "a"}'] * 8, tmp_path, reply, at_once=at_once)
    assert most == at_once


def test_finished_are_the_requests_whose_files_are_there(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    told = _run(['{"bg_prompt": "a"}', '{"bg_prompt": "b"}', "{"], tmp_path)
    results.write_text("\n".join(map(json.dumps, told)) + '\n{"line": 9, "k')
    (tmp_path / told[1]["file"]).unlink()

    assert batch.finished(results, tmp_path) == {told[0]["key"]: told[0]}
    assert batch.finished(tmp_path / "nowhere", tmp_path) == {}


def test_a_request_is_told_by_its_content_wherever_it_stands() -> None:
    one, other = batch.read_jobs(['{"seed": 1, "width": 64}', '{"seed": 2}'])
    changed, *_, moved = batch.read_jobs(['{"seed": 3}', "{", '{"width": 64,  "seed": 1}'])

    assert len({one.key, other.key, changed.key}) == 3
    assert (moved.key, moved.line) == (one.key, 3)


def test_a_request_that_stands_there_twice_is_two_pictures(tmp_path: Path) -> None:
    results = _run(['{"bg_prompt": "a"}'] * 3, tmp_path)

    assert len({each["file"] for each in results}) == len(list(tmp_path.iterdir())) == 3


def test_results_whose_lines_hold_other_separators_are_found(tmp_path: Path) -> None:
    [told] = _run(['{"bg_prompt": "a"}'], tmp_path)
    told["warnings"] = ["prompt: expected a\u2028b"]
    (tmp_path / "results.jsonl").write_text(json.dumps(told, ensure_ascii=False) + "\n", encoding="utf-8")

    assert batch.finished(tmp_path / "results.jsonl", tmp_path) == {told["key"]: told}
