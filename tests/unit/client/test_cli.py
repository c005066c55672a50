"""The command line: what it sends, prints, writes, and how it ends."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from multsd_client import MultsdError, cli
from multsd_client.arguments import gather
from multsd_client.client import Client
from tests.unit.client.fakes import painted, refusal, service


class Service:
    """Takes the place of the service that the command would connect to."""

    def __init__(self) -> None:
        self.reply: httpx.Response | Exception = painted()
        self.bodies: list[dict[str, Any]] = []
        self.urls: list[str] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.urls.append(str(request.url))
        self.bodies.append(json.loads(request.content))
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply

    def connect(self, url: str, *, timeout: float) -> Client:
        return Client(url, timeout=timeout, transport=service(self.answer))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Service:
    fake = Service()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "Client", fake.connect)
    return fake


def run(*arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(cli.app, ["generate", *arguments], **options)


def test_stdout_holds_the_pictures_path_and_nothing_else(fake: Service) -> None:
    result = run("a beach", "-o", "out/beach.jpg")

    assert result.exit_code == 0
    assert result.stdout == "out/beach.jpg\n"
    assert Path("out/beach.jpg").read_bytes() == b"picture"
    assert "warning masks[0]: empty" in result.stderr
    assert "seed 7" in result.stderr
    assert fake.urls == ["http://127.0.0.1:5000/multsd/stream"]


def test_every_option_reaches_the_request(fake: Service) -> None:
    options = {
        "--negative": "blurry",
        "--width": "64",
        "--height": "128",
        "--steps": "35",
        "--bootstrapping": "0",
        "--guidance": "2.5",
        "--scheduler": "euler",
        "--seed": "0",
        "--output": "a.PNG",
    }

    assert run("a beach", *(part for option in options.items() for part in option)).exit_code == 0
    assert fake.bodies == [
        {
            "bg_prompt": "a beach",
            "bg_nprompt": "blurry",
            "fg_prompt": [],
            "fg_nprompt": [],
            "masks": [],
            "width": 64,
            "height": 128,
            "ddim_steps": 35,
            "bootstrapping": 0,
            "guidance_scale": 2.5,
            "scheduler": "euler",
            "seed": 0,
            "output_format": "png",
        }
    ]


def test_regions_are_files_or_boxes_with_one_or_two_prompts(fake: Service) -> None:
    Path("mask.png").write_bytes(b"image")

    result = run(
        "a beach", "--region", "mask.png", "a dog", "cartoon", "--region", "box:0,0,2,1", "a cat",
        "--width", "64", "--height", "64", "--negative", "blurry",
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    [body] = fake.bodies
    assert (body["fg_prompt"], body["fg_nprompt"]) == (["a dog", "a cat"], ["cartoon", "blurry"])
    assert base64.b64decode(body["masks"][0]) == b"image"
    box = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["masks"][1]))))
    assert box.shape == (64, 64)
    assert (box > 0).sum() == 2


def test_a_region_ends_at_the_next_option() -> None:
    assert gather(["--region", "m", "p", "-o", "x"]) == ["--region", '["m", "p"]', "-o", "x"]
    assert gather(["--region", "m", "p", "n", "extra"]) == ["--region", '["m", "p", "n"]', "extra"]
    assert gather(["--", "--region", "m"]) == ["--", "--region", "m"]


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_a_request_comes_from_a_file_or_stdin_and_options_win(fake: Service, source: str) -> None:
    text = '{"bg_prompt": "a\nbeach", "seed": "1", "width": "64"}'
    Path("request.json").write_text(text)

    result = run("--request", "-" if source == "stdin" else "request.json", "--seed", "2", input=text)

    assert result.exit_code == 0, result.output
    assert fake.bodies == [{"bg_prompt": "a\nbeach", "seed": 2, "width": "64", "output_format": "jpeg"}]


def test_the_environment_names_the_service(fake: Service) -> None:
    run("a beach", env={"MULTSD_URL": "http://elsewhere:1"})

    assert fake.urls == ["http://elsewhere:1/multsd/stream"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--seed", "1"],
        ["a", "--region", "nofile.png", "a dog"],
        ["a", "--region", "box:1,2,3", "a dog"],
        ["a", "--region", "box:600,0,700,10", "a dog"],
        ["a", "--region", "box:0,0,1,1"],
        ["a", "--region"],
        ["a", "--request", "request.json"],
        ["--request", "nofile.json"],
        ["--request", "list.json"],
        ["--request", "broken.json"],
        ["a", "--output", "picture.tiff"],
        ["a", "--width", "wide"],
        ["a", "--guidance", "nan"],
        ["a", "--url", "http://a:port"],
        ["a", "--url", "localhost:5000"],
        ["a", "--url", ""],
    ],
    ids=" ".join,
)
def test_bad_arguments_end_with_2_and_send_nothing(fake: Service, arguments: list[str]) -> None:
    Path("request.json").write_text("{}")
    Path("list.json").write_text("[]")
    Path("broken.json").write_text("{")

    result = run(*arguments)

    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert fake.bodies == []


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (refusal(400), 2),
        (refusal(503), 3),
        (httpx.ConnectError("refused"), 3),
        (refusal(504), 4),
        (httpx.ReadTimeout("slow"), 4),
        (refusal(500), 5),
        (httpx.Response(404, text="other service"), 5),
    ],
)
def test_exit_codes_tell_what_went_wrong(fake: Service, reply: httpx.Response | Exception, code: int) -> None:
    fake.reply = reply

    result = run("a beach")

    assert result.exit_code == code
    assert result.stdout == ""
    assert "error" in result.stderr
    assert not Path("multsd.jpg").exists()


def test_a_refusal_shows_each_field(fake: Service) -> None:
    fake.reply = refusal(400)

    assert "error width: expected 64, got 1" in run("a beach").stderr


def test_a_picture_that_cannot_be_written_ends_with_1(fake: Service) -> None:
    Path("file").write_text("")

    result = run("a beach", "-o", "file/picture.jpg")

    assert result.exit_code == 1
    assert result.stdout == ""
    assert fake.bodies


def test_exit_codes_cover_every_exception() -> None:
    assert set(cli.EXIT_CODES) == set(MultsdError.__subclasses__())
