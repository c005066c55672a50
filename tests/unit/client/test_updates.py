"""What is told before the picture is there: to callbacks, and by the command in a terminal."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from multsd_client import AsyncClient, Client, Preview, Progress, ProtocolError, Queued, cli, pictures
from multsd_client.display import in_blocks, progress_bar
from multsd_client.listening import Listener
from tests.unit.client.fakes import RESULT, STEPS, events, service

URL = "http://gateway"
IMAGE = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 8, 7]], [[1, 2, 3], [4, 5, 6]]], np.uint8)
PREVIEW = ("preview", {"image": base64.b64encode(pictures.encode(IMAGE, "png")).decode(), "media_type": "image/png"})
QUEUED = [("queued", {"position": position}) for position in (2, 0)]


def _blocking(reply: httpx.Response, **callbacks: Any) -> None:
    with Client(URL, transport=service(lambda _request: reply)) as client:
        client.generate({"bg_prompt": "a"}, **callbacks)


def _awaited(reply: httpx.Response, **callbacks: Any) -> None:
    async def once() -> None:
        async with AsyncClient(URL, transport=service(lambda _request: reply)) as client:
            await client.generate({"bg_prompt": "a"}, **callbacks)

    asyncio.run(once())


@pytest.fixture(params=[_blocking, _awaited])
def generate(request: pytest.FixtureRequest) -> Callable[..., None]:
    chosen: Callable[..., None] = request.param
    return chosen


def test_each_callback_is_told_its_own_in_order(generate: Callable[..., None]) -> None:
    told: list[Any] = []
    reply = events(*QUEUED, STEPS[0], PREVIEW, STEPS[1], ("result", RESULT))

    generate(reply, on_queued=told.append, on_progress=told.append, on_preview=told.append)

    assert told[:3] == [Queued(2), Queued(0), Progress(1, 2)]
    assert isinstance(told[3], Preview)
    np.testing.assert_array_equal(told[3].image, IMAGE)
    assert told[4:] == [Progress(2, 2)]


def test_what_nobody_listens_to_is_passed_over(generate: Callable[..., None]) -> None:
    told: list[Progress] = []
    generate(events(*QUEUED, PREVIEW, *STEPS, ("result", RESULT)), on_progress=told.append)
    assert told == [Progress(1, 2), Progress(2, 2)]
    assert not Listener().hears


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("queued", {}),
        ("queued", {"position": "[/]"}),
        ("progress", {"step": 1, "num_inference_steps": None}),
        ("progress", {"step": True, "num_inference_steps": 2}),
        ("preview", {}),
        ("preview", {"image": "???"}),
        ("preview", {"image": "AAAA"}),
    ],
)
def test_an_update_that_cannot_be_read_is_a_protocol_error(
    generate: Callable[..., None], name: str, data: dict[str, Any]
) -> None:
    with pytest.raises(ProtocolError, match=f"^{name} event: "):
        generate(events((name, data), ("result", RESULT)))


def terminal(**options: Any) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=80, **options)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_terminal_shows_the_place_in_the_queue_then_the_steps() -> None:
    console = terminal(color_system=None)
    with progress_bar(console) as listener:
        listener.tell(Queued(3))
        console.print("a")  # whatever is printed shows the bar anew
        listener.tell(Queued(0))
        console.print("b")
        listener.tell(Progress(4, 20))
        console.print("c")
    text = shown(console)
    assert text.index("waiting, 3 before this one") < text.index("next") < text.index("painting") < text.index("4/20")


def test_a_terminal_of_colours_shows_previews() -> None:
    console = terminal(color_system="truecolor")
    with progress_bar(console) as listener:
        listener.tell(Preview(IMAGE))
        console.print("a")
    assert "\x1b[38;2;255;0;0;48;2;0;0;255m\u2580" in shown(console)  # red above blue


def test_where_nobody_looks_nothing_is_shown() -> None:
    console = Console(file=io.StringIO())
    with progress_bar(console) as listener:
        assert not listener.hears
    assert shown(console) == ""


def test_a_preview_is_no_wider_than_the_terminal_and_no_row_is_lost() -> None:
    assert in_blocks(IMAGE, width=80).plain == "\u2580\u2580\n\u2580\u2580"  # three rows of pixels, two of characters
    wide = in_blocks(np.zeros((64, 200, 3), np.uint8), width=80).plain.splitlines()
    assert {len(line) for line in wide} == {67}
    assert len(wide) == 11


def test_the_command_asks_for_previews_and_sends_a_deadline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []

    def reply(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return events(*QUEUED, PREVIEW, *STEPS, ("result", RESULT))

    monkeypatch.setattr(cli, "Client", lambda url, **options: Client(url, transport=service(reply), **options))
    output = tmp_path / "beach.jpg"
    arguments = ["generate", "a beach", "--preview-every", "5", "--deadline", "2.5", "-o", str(output)]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    assert (bodies[0]["preview_every"], bodies[0]["deadline_s"]) == (5, 2.5)
    assert output.read_bytes() == b"picture"
