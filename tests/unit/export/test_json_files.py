"""A JSON file is whole or as it was."""

import os
from pathlib import Path
from typing import Any

import pytest

from multsd_export.json_files import write_json


def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "record.json"
    write_json(file, {"licence": "mit"})
    before = file.read_text()
    write = Path.write_text

    def cut(path: Path, text: str, **options: Any) -> int:
        write(path, text[:5], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", cut)
    with pytest.raises(KeyboardInterrupt):
        write_json(file, {"licence": "openrail"})
    assert file.read_text() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "manifest.json"
    synced: list[str] = []

    def sync(descriptor: int) -> None:
        assert not file.exists()
        synced.append(Path(f"/proc/self/fd/{descriptor}").read_text())

    monkeypatch.setattr(os, "fsync", sync)
    write_json(file, {"a": 1})
    assert synced == [file.read_text()]


def test_a_link_and_a_pipe_stay_what_they_are(tmp_path: Path) -> None:
    link, pipe = tmp_path / "link.json", tmp_path / "pipe"
    link.symlink_to(tmp_path / "file.json")
    write_json(link, {"a": 1})
    assert link.is_symlink()
    assert (tmp_path / "file.json").read_text() == '{\n  "a": 1\n}\n'
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_json(pipe, {"a": 1})
    assert os.read(reader, 100) == b'{\n  "a": 1\n}\n'
    os.close(reader)
    assert pipe.is_fifo()
