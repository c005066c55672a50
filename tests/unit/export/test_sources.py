"""Hub repositories are fetched at a pinned commit, once; the hub itself is faked at the functions that are called."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from typer.testing import CliRunner

from multsd_export.checkpoint import read_checkpoint
from multsd_export.cli import app
from multsd_export.errors import CheckpointError
from multsd_export.manifest import read_manifest
from multsd_export.sources import resolve_source, unneeded

from .conftest import Exported

REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Sibling:
    rfilename: str


@dataclass
class Hub:
    """One repository, and a cache that is filled by its first download."""

    files: Path
    cache: Path
    card: dict[str, str] | None = field(default_factory=lambda: {"license": "creativeml-openrail-m"})
    online: bool = True
    calls: list[dict[str, Any]] = field(default_factory=list)

    def model_info(self, _repository: str, *, revision: str) -> Any:
        self.calls.append({"model_info": revision})
        if not self.online:
            raise OfflineModeIsEnabled("the network is off")
        names = [Sibling(file.relative_to(self.files).as_posix()) for file in self.files.rglob("*")]
        return type("Info", (), {"siblings": names, "card_data": self.card})()

    def snapshot_download(self, repository: str, *, revision: str, **options: Any) -> str:
        self.calls.append({"snapshot_download": revision, **options})
        folder = self.cache / f"models--{repository.replace('/', '--')}" / "snapshots" / revision
        if not folder.exists():
            if options.get("local_files_only"):
                raise LocalEntryNotFoundError("not in the cache")
            shutil.copytree(self.files, folder)
        return str(folder)


@pytest.fixture
def hub(checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub(checkpoint_folder, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "model_info", fake.model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_a_pinned_repository_is_fetched_with_its_licence(hub: Hub, tmp_path: Path) -> None:
    source = resolve_source(f"owner/model@{REVISION}", tmp_path / "records")
    assert (source.name, source.revision, source.licence) == ("owner/model", REVISION, "creativeml-openrail-m")
    assert read_checkpoint(source.path, source).name == "owner/model"
    download = hub.calls[-1]
    assert download["snapshot_download"] == REVISION
    assert all(pattern.endswith((".json", ".safetensors", ".txt")) for pattern in download["allow_patterns"])


def test_a_fetched_repository_needs_no_network_again(hub: Hub, tmp_path: Path) -> None:
    first = resolve_source(f"owner/model@{REVISION}", tmp_path / "records")
    hub.online = False
    hub.calls.clear()
    assert resolve_source(f"owner/model@{REVISION}", tmp_path / "records") == first
    assert [call.get("local_files_only") for call in hub.calls] == [True]


RESOLVE = """
import sys
from pathlib import Path
from multsd_export.sources import resolve_source
print(resolve_source(sys.argv[1], Path(sys.argv[2])).path)
"""


def test_the_hubs_own_client_needs_no_network_again(checkpoint_folder: Path, tmp_path: Path) -> None:
    """In a process of its own, as it reads where the hub is when it is imported."""
    shutil.copytree(checkpoint_folder, tmp_path / "files")
    (tmp_path / "files" / "README.md").write_text("---\nlicense: mit\n---\n")
    unet = tmp_path / "files" / "unet"
    shutil.copy(unet / "diffusion_pytorch_model.safetensors", unet / "diffusion_pytorch_model.fp16.safetensors")

    def resolve() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", RESOLVE, f"owner/model@{REVISION}", str(tmp_path / "records")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    with hub_server(tmp_path / "files") as url:
        others = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment = others | {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home")}
        fetched = resolve()
    assert fetched.returncode == 0, fetched.stderr
    again = resolve()
    assert (again.returncode, again.stdout) == (0, fetched.stdout), again.stderr
    snapshot = Path(again.stdout.strip())
    assert {file.name for file in (snapshot / "unet").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    (snapshot / "unet" / "config.json").unlink()  # as after a download that was stopped
    partly = resolve()
    assert partly.returncode == 1
    assert "the hub does not give it" in partly.stderr


@contextmanager
def hub_server(files: Path) -> Iterator[str]:
    """A hub with one repository; its address."""
    digests = {
        file.relative_to(files).as_posix(): sha1(file.read_bytes()).hexdigest()  # noqa: S324, as git names files
        for file in files.rglob("*")
        if file.is_file()
    }
    answers: dict[str, Any] = {
        f"/api/models/owner/model/revision/{REVISION}": {
            "id": "owner/model",
            "sha": REVISION,
            "siblings": [{"rfilename": name} for name in digests],
        },
        f"/api/models/owner/model/tree/{REVISION}": [
            {"type": "file", "path": name, "size": (files / name).stat().st_size, "oid": digest}
            for name, digest in digests.items()
        ],
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            name = path.removeprefix(f"/owner/model/resolve/{REVISION}/")
            if path not in answers and name not in digests:
                self.send_error(404)
                return
            content = json.dumps(answers[path]).encode() if path in answers else (files / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            if name in digests:
                self.send_header("X-Repo-Commit", REVISION)
                self.send_header("ETag", digests[name])
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_args: Any) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_cache_that_was_emptied_is_filled_again(hub: Hub, tmp_path: Path) -> None:
    first = resolve_source(f"owner/model@{REVISION}", tmp_path / "records")
    shutil.rmtree(hub.cache)
    assert resolve_source(f"owner/model@{REVISION}", tmp_path / "records") == first
    assert first.path.is_dir()


@pytest.mark.parametrize("damaged", ["", '{"licen', "[]", "{}", '{"licence": null}'])
def test_a_damaged_record_is_written_again(hub: Hub, tmp_path: Path, damaged: str) -> None:
    first = resolve_source(f"owner/model@{REVISION}", tmp_path / "records")
    (record,) = (tmp_path / "records").iterdir()
    record.write_text(damaged)
    assert resolve_source(f"owner/model@{REVISION}", tmp_path / "records") == first
    hub.online = False
    assert resolve_source(f"owner/model@{REVISION}", tmp_path / "records") == first


@pytest.mark.parametrize("revision", ["main", "0123abc", REVISION.upper(), "", f"{REVISION}0"])
def test_a_revision_that_can_move_is_refused_before_any_request(hub: Hub, tmp_path: Path, revision: str) -> None:
    with pytest.raises(CheckpointError, match=r"owner/model: the revision is .* expected a commit of 40 hexadecimal"):
        resolve_source(f"owner/model@{revision}", tmp_path)
    assert hub.calls == []


def test_a_repository_without_revision_is_refused_before_any_request(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"owner/model does not exist; .* owner/name@revision"):
        resolve_source("owner/model", tmp_path)
    assert hub.calls == []


def test_a_hub_that_does_not_answer_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.online = False
    with pytest.raises(CheckpointError, match=f"owner/model@{REVISION}: the hub does not give it: the network is off"):
        resolve_source(f"owner/model@{REVISION}", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_licence_of_its_own_is_recorded_by_name(hub: Hub, tmp_path: Path) -> None:
    hub.card = {"license": "other", "license_name": "openrail++"}
    assert resolve_source(f"owner/model@{REVISION}", tmp_path).licence == "openrail++"


def test_a_repository_without_a_card_has_no_licence(hub: Hub, tmp_path: Path) -> None:
    hub.card = None
    assert resolve_source(f"owner/model@{REVISION}", tmp_path).licence is None


def test_a_folder_is_taken_before_a_hub_repository(
    hub: Hub, checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(checkpoint_folder, tmp_path / "owner" / "model")
    monkeypatch.chdir(tmp_path)
    source = resolve_source("owner/model", tmp_path)
    assert (source.path, source.revision, source.licence) == (Path("owner/model"), None, None)
    assert hub.calls == []


def test_variants_are_left_out_where_the_plain_weights_are_there() -> None:
    names = [
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model.safetensors.index.json",
        "text_encoder/model.fp16-00001-of-00002.safetensors",
        "text_encoder/model.safetensors.index.fp16.json",
    ]
    assert unneeded(names) == [names[1], names[2], names[6], names[7]]


def test_the_manifest_tells_source_and_licence(hub: Hub, exported: Exported, tmp_path: Path) -> None:
    options = exported.copy(tmp_path)  # its networks are the same: none is exported again
    arguments = ["--checkpoint", f"owner/model@{REVISION}", "--repository", str(options.repository)]
    arguments += ["--output", str(options.output), "--work-dir", str(options.work_dir)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    manifest = read_manifest(options.output)
    assert manifest is not None
    recorded = {key: manifest["checkpoint"][key] for key in ("name", "revision", "licence")}
    assert recorded == {"name": "owner/model", "revision": REVISION, "licence": "creativeml-openrail-m"}
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert [call for call in hub.calls if "model_info" in call] == [{"model_info": REVISION}]
