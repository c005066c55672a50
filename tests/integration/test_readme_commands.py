"""The README's commands and its client example, as they stand there, against the real stack."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from multsd_gateway.stack.supervisor import Stack
from tests.integration.conftest import ROOT
from tests.integration.test_triton_clients import README, readme_block

BIN = Path(sys.executable).parent
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line]
PICTURES = [line for line in COMMANDS if line.startswith(("curl", "multsd generate"))]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder to write to, with the examples where the README has them."""
    (tmp_path / "client").symlink_to(ROOT / "client")
    return tmp_path


def run(command: str, folder: Path, stack: Stack) -> subprocess.CompletedProcess[str]:
    """Run a README's command in a folder, against the suite's gateway."""
    words = shlex.split(command.replace("localhost:5000", stack.url.removeprefix("http://")))
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "MULTSD_URL": stack.url}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_readme_shows_curl_and_the_command_line() -> None:
    assert [line.split()[0] for line in PICTURES] == ["curl", "multsd", "multsd"]


@pytest.mark.parametrize("command", PICTURES)
def test_picture_commands_write_a_png(command: str, checkout: Path, stack: Stack) -> None:
    if shutil.which(command.split()[0], path=f"{BIN}:{os.environ['PATH']}") is None:
        pytest.skip("curl is not installed here")
    done = run(command, checkout, stack)
    assert done.returncode == 0, done.stderr
    with Image.open(checkout / "picture.png") as picture:
        assert picture.format == "PNG"
        assert picture.size in [(512, 512), (640, 448)]


def test_client_example(checkout: Path, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    names: dict[str, Any] = {}
    text = readme_block("multsd_client").replace("http://localhost:5000", stack.url)
    exec(compile(text, "README.md", "exec"), names)  # noqa: S102 - the README's own text
    assert names["result"].seed == 22312
    assert (checkout / "picture.jpg").read_bytes().startswith(b"\xff\xd8")


def test_verbs_of_the_readme_are_those_of_the_makefile() -> None:
    listed = subprocess.run(
        [str(shutil.which("make")), "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    verbs = set(re.findall(r"make ([a-z-]+)", README)) - {"help"}
    assert verbs
    assert all(re.search(rf"^  make {verb} ", listed, re.MULTILINE) for verb in verbs)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["x", "--steps", "0"], 2, "ddim_steps"),
        (["x", "--region", "box:0,0,1,1", "y", "--width", "32"], 2, "width"),
        (["x", "--region", "nowhere.png", "y"], 2, "nowhere.png"),
        (["x", "--url", "http://127.0.0.1:9"], 3, "127.0.0.1:9"),
    ],
    ids=["bad steps", "bad width", "no such mask", "nobody there"],
)
def test_command_line_says_what_is_wrong(
    arguments: list[str], status: int, message: str, checkout: Path, stack: Stack
) -> None:
    done = run(shlex.join(["multsd", "generate", *arguments]), checkout, stack)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
