"""The command line: what it sends, prints, writes, and how it ends."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from multsd_client import AsyncClient, MultsdError, batch, batch_command, cli, pictures, replay
from multsd_client.arguments import gather
from multsd_client.client import Client
from tests.unit.client.fakes import RESULT, events, painted, refusal, service


class Service:
    """Takes the place of the service that the command would connect to."""

    def __init__(self) -> None:
        self.reply: httpx.Response | Exception = painted()
        self.bodies: list[dict[str, Any]] = []
        self.urls: list[str] = []
        self.tokens: list[str | None] = []
        self.told: dict[str, httpx.Response] = {}

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.urls.append(str(request.url))
        self.tokens.append(request.headers.get("Authorization"))
        if request.method == "GET":
            return self.told[request.url.path]
        self.bodies.append(json.loads(request.content))
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply

    def connect(self, url: str, **options: Any) -> Client:
        return Client(url, transport=service(self.answer), **options)


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
    assert body["masks"][1] == {"box": [0, 0, 2, 1]}


def test_a_region_ends_at_the_next_option() -> None:
    assert gather(["--region", "m", "p", "-o", "x"]) == ["--region", '["m", "p"]', "-o", "x"]
    assert gather(["--region", "m", "p", "n", "extra"]) == ["--region", '["m", "p", "n"]', "extra"]
    assert gather(["--", "--region", "m"]) == ["--", "--region", "m"]


def test_a_prompt_may_begin_with_a_dash(fake: Service) -> None:
    result = run("a beach", "--region", "box:0,0,9,9", "-3 degrees, snow", "- text", "--region=box:0,0,9,9", "a cat")

    assert result.exit_code == 0, result.output
    [body] = fake.bodies
    assert (body["fg_prompt"], body["fg_nprompt"]) == (["-3 degrees, snow", "a cat"], ["- text", ""])


@pytest.mark.parametrize(
    "arguments", [["m.png", "-dark"], ["m.png", "--dark"], ["m.png"], [], ["m.png", "--seed", "1"]]
)
def test_a_region_without_a_prompt_is_refused_in_one_sentence(fake: Service, arguments: list[str]) -> None:
    result = run("a beach", "--region", *arguments)

    assert result.exit_code == 2
    assert "expected MASK PROMPT [NEGATIVE], found" in " ".join(result.stderr.replace("\u2502", " ").split())
    assert fake.bodies == []


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_a_request_comes_from_a_file_or_stdin_and_options_win(fake: Service, source: str) -> None:
    text = '{"bg_prompt": "a\nbeach", "seed": "1", "width": "64"}'
    Path("request.json").write_text(text)

    result = run("--request", "-" if source == "stdin" else "request.json", "--seed", "2", input=text)

    assert result.exit_code == 0, result.output
    assert fake.bodies == [{"bg_prompt": "a\nbeach", "seed": 2, "width": "64", "output_format": "jpeg"}]


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_a_request_is_utf8_in_any_locale_with_or_without_a_byte_order_mark(fake: Service, source: str) -> None:
    content = "\ufeff" + json.dumps({"bg_prompt": "m\u00f6wen"}, ensure_ascii=False)
    Path("request.json").write_bytes(content.encode())

    result = CliRunner(charset="latin-1").invoke(
        cli.app, ["generate", "--request", "-" if source == "stdin" else "request.json"], input=content.encode()
    )

    assert result.exit_code == 0, result.output
    assert fake.bodies == [{"bg_prompt": "m\u00f6wen", "output_format": "jpeg"}]


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_a_request_that_is_no_utf8_is_refused(fake: Service, source: str) -> None:
    Path("request.json").write_bytes(b'{"bg_prompt": "m\xf6wen"}')
    result = CliRunner().invoke(
        cli.app,
        ["generate", "--request", "-" if source == "stdin" else "request.json"],
        input=Path("request.json").read_bytes(),
    )
    assert result.exit_code == 2
    assert fake.bodies == []


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
        ["a", "--output", "-.png/-"],
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


def test_a_file_that_is_not_there_is_told_once_and_in_words(fake: Service) -> None:
    for command in (["generate", "--request", "none.json"], ["replay", "none.json"], ["batch", "none.json"]):
        result = CliRunner().invoke(cli.app, command)
        assert result.exit_code == 2
        assert result.stderr.endswith(": none.json: No such file or directory\n")
    assert fake.bodies == []


def test_a_picture_for_stdout_is_there_alone_in_the_requests_own_format(fake: Service) -> None:
    Path("request.json").write_text('{"bg_prompt": "a", "output_format": "webp"}')
    _carrying("picture.png", {"bg_prompt": "b", "output_format": "png"})

    for command in (["generate", "--request", "request.json"], ["generate", "c"], ["replay", "picture.png"]):
        result = CliRunner().invoke(cli.app, [*command, "-o", "-"])
        assert (result.exit_code, result.stdout_bytes) == (0, b"picture"), result.stderr
    assert [body.get("output_format") for body in fake.bodies] == ["webp", None, "png"]
    assert not Path("-").exists()


def test_a_picture_is_not_thrown_at_a_terminal(fake: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    with pytest.raises(typer.BadParameter, match="found a terminal"):
        cli.generate("a", output=cli.STDOUT)
    assert fake.bodies == []


@pytest.mark.parametrize("command", ["generate", "replay", "batch", "health"])
def test_help_shows_every_default(command: str) -> None:
    text = " ".join(CliRunner().invoke(cli.app, [command, "--help"]).stdout.split())

    assert "[default: the variable MULTSD_TOKEN]" in text
    assert command != "generate" or "Pixels. [default: 512]" in text


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

    assert "error width: expected 64, found 1" in run("a beach").stderr


def test_a_picture_that_cannot_be_written_ends_with_1(fake: Service) -> None:
    Path("file").write_text("")

    result = run("a beach", "-o", "file/picture.jpg")

    assert result.exit_code == 1
    assert result.stdout == ""
    assert fake.bodies


def test_exit_codes_cover_every_exception() -> None:
    assert set(cli.EXIT_CODES) == set(MultsdError.__subclasses__())


def test_the_token_comes_from_a_file_or_the_environment(fake: Service) -> None:
    Path("token").write_text("from-a-file\n")

    run("a", "--token-file", "token", env={"MULTSD_TOKEN": "from-the-environment"})
    run("a", env={"MULTSD_TOKEN": "from-the-environment"})
    run("a")

    assert fake.tokens == ["Bearer from-a-file", "Bearer from-the-environment", None]


def _carrying(name: str, request: dict[str, Any]) -> None:
    record = {"multsd": 1, "request": request, "checkpoint": {"digest": "d"}}
    Path(name).write_bytes(pictures.encode(np.zeros((8, 8, 3), np.uint8), "png", text=replay.to_text(record)))


def test_replay_sends_what_the_picture_carries(fake: Service) -> None:
    _carrying("picture.png", {"bg_prompt": "a beach", "seed": 5, "output_format": "png"})

    result = CliRunner().invoke(cli.app, ["replay", "picture.png"])

    assert result.exit_code == 0, result.output
    assert result.stdout == "replay.png\n"
    assert fake.bodies == [{"bg_prompt": "a beach", "seed": 5, "output_format": "png"}]
    assert "another checkpoint" in result.stderr, "the fake's has no digest"


def test_replay_of_a_picture_without_parameters_ends_with_2(fake: Service) -> None:
    Path("plain.png").write_bytes(pictures.encode(np.zeros((8, 8, 3), np.uint8), "png"))

    for name in ("plain.png", "nowhere.png"):
        result = CliRunner().invoke(cli.app, ["replay", name])
        assert result.exit_code == 2
        assert fake.bodies == []


def test_health_tells_what_the_service_paints_with(fake: Service) -> None:
    fake.told = {
        "/readyz": httpx.Response(200, json={}),
        "/limits": httpx.Response(
            200,
            json={
                "checkpoint": {"name": "demo", "digest": "sha256:1", "family": None},
                "schedulers": ["ddim", "lcm"],
                "limits": {"max_pixels": 4096, "max_steps": 200},
            },
        ),
    }

    result = CliRunner().invoke(cli.app, ["health"])

    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "http://127.0.0.1:5000: ready",
        "checkpoint: demo, sha256:1",
        "samplers: ddim, lcm",
        "at most: 4096 pixels, 200 steps",
    ]


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (httpx.Response(503, json={"message": "not ready: unet", "missing": ["unet"]}), "not ready: unet"),
        (httpx.Response(502, text="proxy"), "not ready: HTTP 502"),
    ],
)
def test_health_of_a_service_that_is_not_ready_ends_with_3(fake: Service, reply: httpx.Response, told: str) -> None:
    fake.told = {"/readyz": reply}

    result = CliRunner().invoke(cli.app, ["health"])

    assert (result.exit_code, result.stdout) == (3, f"http://127.0.0.1:5000: {told}\n")


@pytest.mark.parametrize(
    ("reply", "code", "told"),
    [
        (httpx.Response(401, json={"message": "expected a bearer token"}), 2, "expected a bearer token"),
        (httpx.Response(404, text="<html>"), 5, "expected the multsd API, found HTTP 404"),
    ],
    ids=["token", "another service"],
)
def test_health_of_what_tells_nothing_of_readiness_ends_as_other_commands(
    fake: Service, reply: httpx.Response, code: int, told: str
) -> None:
    fake.told = {"/readyz": reply}

    result = CliRunner().invoke(cli.app, ["health"])

    assert (result.exit_code, result.stdout) == (code, "")
    assert told in result.stderr


# A title, a cleared screen, the eight-bit introducer, text that runs backwards; and the markup of this command's own.
HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e[/] [link=http://elsewhere]here[/link]"
SPELT_OUT = r"\x1b]0;title\x07\x1b[2J\x9b31m\u202e[/] [link=http://elsewhere]here[/link]"


def _hostile_replies() -> dict[str, httpx.Response]:
    refused = {"message": HOSTILE, "errors": [{"field": "width", "message": HOSTILE}]}
    warned = {**RESULT, "warnings": [{"field": HOSTILE, "message": "no"}]}
    return {
        "errors": httpx.Response(400, json=refused),
        "a message": httpx.Response(500, json={"message": HOSTILE}),
        "a request id": httpx.Response(500, json={"message": "no", "request_id": HOSTILE}),
        "a warning": events(("result", warned)),
    }


@pytest.mark.parametrize("reply", _hostile_replies().values(), ids=_hostile_replies())
def test_no_service_controls_the_terminal(fake: Service, reply: httpx.Response) -> None:
    fake.reply = reply

    result = run("a beach")

    assert SPELT_OUT in result.stderr
    assert not set(HOSTILE) & set(result.stderr) - set(SPELT_OUT)


def test_no_service_controls_the_terminal_by_its_health(fake: Service) -> None:
    fake.told = {"/readyz": httpx.Response(503, json={"message": HOSTILE})}
    assert CliRunner().invoke(cli.app, ["health"]).stdout.endswith(f": {SPELT_OUT}\n")

    told = {"checkpoint": {"name": HOSTILE}, "schedulers": [HOSTILE]}
    fake.told = {"/readyz": httpx.Response(200, json={}), "/limits": httpx.Response(200, json=told)}
    assert CliRunner().invoke(cli.app, ["health"]).stdout.splitlines()[1:] == [
        f"checkpoint: {SPELT_OUT}",
        f"samplers: {SPELT_OUT}",
    ]


@pytest.mark.parametrize(
    "told",
    [{"limits": {"max_pixels": "many"}}, {"checkpoint": "demo"}, {"limits": ["max_pixels"]}, {"schedulers": [1]}],
    ids=str,
)
def test_limits_of_other_kinds_are_no_reply_of_this_api(fake: Service, told: dict[str, Any]) -> None:
    fake.told = {"/readyz": httpx.Response(200, json={}), "/limits": httpx.Response(200, json=told)}

    result = CliRunner().invoke(cli.app, ["health"])

    assert (result.exit_code, result.stdout) == (5, "")
    assert "error limits: expected those of the multsd API" in result.stderr


@pytest.mark.parametrize("name", ["seed", "unet_rows", "unet_rows_reference"])
def test_a_result_that_is_not_numbered_is_no_reply_of_this_api(fake: Service, name: str) -> None:
    fake.reply = events(("result", {**RESULT, name: "[/]"}))

    result = run("a beach")

    assert result.exit_code == 5
    assert "found ValueError" in result.stderr


def test_no_service_controls_the_terminal_of_a_batch(
    fake: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _connect_batches(monkeypatch, fake, tmp_path)
    Path("requests.jsonl").write_text('{"bg_prompt": "a"}\n')
    fake.reply = httpx.Response(500, json={"message": HOSTILE})

    assert SPELT_OUT in CliRunner().invoke(cli.app, ["batch", "requests.jsonl"]).stderr


def _connect_batches(monkeypatch: pytest.MonkeyPatch, fake: Service, folder: Path) -> None:
    def connect(url: str, **options: Any) -> AsyncClient:
        return AsyncClient(url, transport=service(fake.answer), **options)

    monkeypatch.chdir(folder)
    monkeypatch.setattr(batch_command, "AsyncClient", connect)


@pytest.mark.parametrize("command", [["generate", "a"], ["health"], ["batch", "requests.jsonl"]], ids=" ".join)
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALL_PROXY", "http://me:s3/cret@host"),
        ("ALL_PROXY", "carrier-pigeon://me:s3cret@host"),
        ("SSL_CERT_FILE", "s3/nowhere.pem"),
    ],
)
def test_an_environment_that_cannot_be_used_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str], variable: str, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, value)
    Path("requests.jsonl").write_text("{}\n")

    result = CliRunner().invoke(cli.app, [*command, "--url", "http://127.0.0.1:1"])

    assert (result.exit_code, result.stdout) == (2, "")
    assert "Invalid value: " in result.stderr
    assert "s3" not in result.stderr


def test_a_line_inserted_at_the_top_of_a_batch_is_all_that_is_painted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake, requests = Service(), Path("requests.jsonl")
    _connect_batches(monkeypatch, fake, tmp_path)
    requests.write_text('{"seed": 1}\n{"seed": 2}\n')
    CliRunner().invoke(cli.app, ["batch", "requests.jsonl"])
    requests.write_text('{"seed": 3}\n' + requests.read_text())
    with Path("pictures/results.jsonl").open("a") as file:
        file.write('{"line": 9, "k')  # cut by a crash

    result = CliRunner().invoke(cli.app, ["batch", "requests.jsonl"])

    assert "1 painted, 0 failed, 2 before" in result.stderr
    assert [body["seed"] for body in fake.bodies] == [1, 2, 3]
    lines = Path("pictures/results.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines if line.endswith("}")]
    files = {each["line"]: each["file"] for each in results}
    jobs = batch.read_jobs(requests.read_text().splitlines())
    assert files == {job.line: f"{job.key}.jpg" for job in jobs}
    assert len(list(Path("pictures").glob("*.jpg"))) == 3


def test_a_batch_goes_on_where_it_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = Service()
    _connect_batches(monkeypatch, fake, tmp_path)
    Path("requests.jsonl").write_text('{"seed": 1}\n{"seed": 2}\n')

    first = CliRunner().invoke(cli.app, ["batch", "requests.jsonl"])
    with Path("requests.jsonl").open("a") as file:
        file.write('{"seed": 3}\n{\n')
    second = CliRunner().invoke(cli.app, ["batch", "requests.jsonl"])
    third = CliRunner().invoke(cli.app, ["batch", "requests.jsonl", "--again"])

    assert (first.exit_code, first.stdout) == (0, "pictures/results.jsonl\n")
    assert "1 painted, 1 failed, 2 before" in second.stderr
    assert (second.exit_code, third.exit_code) == (1, 1)
    assert sorted(body["seed"] for body in fake.bodies) == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("source", ["file", "stdin"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_batchs_lines_end_with_a_line_feed_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, end: str
) -> None:
    fake = Service()
    _connect_batches(monkeypatch, fake, tmp_path)
    prompts = [f"a{separator}b" for separator in "\u2028\u2029\x85\v\f\x1c\x1d\x1e\r"]
    requests = ["\ufeff", *(json.dumps({"bg_prompt": prompt}, ensure_ascii=False) + end for prompt in prompts)]
    requests[-1] = requests[-1].replace("\\r", "\r")  # as it is, which strict JSON has not
    Path("requests.jsonl").write_bytes("".join(requests).encode())

    result = CliRunner().invoke(
        cli.app, ["batch", "-" if source == "stdin" else "requests.jsonl"], input="".join(requests).encode()
    )

    assert result.exit_code == 0, result.output
    assert sorted(body["bg_prompt"] for body in fake.bodies) == sorted(prompts)
    lines = sorted(json.loads(line)["line"] for line in Path("pictures/results.jsonl").read_text().splitlines())
    assert lines == list(range(1, len(prompts) + 1))
