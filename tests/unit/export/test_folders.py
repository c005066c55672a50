"""A folder is replaced as a whole, or stays as it was."""

import errno
from pathlib import Path

import pytest

from multsd_export.folders import replacing_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With one file, `old`."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").touch()
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_new_folder_takes_the_place_of_the_old_one(folder: Path) -> None:
    with replacing_folder(folder) as partial:
        (partial / "new").touch()
    assert names(folder) == {"new"}
    assert names(folder.parent) == {"folder"}


def test_links_that_were_left_behind_are_removed_and_what_they_name_is_not(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    for suffix in ("partial", "old"):
        (tmp_path / f".folder.{suffix}").symlink_to(elsewhere)
    with replacing_folder(folder) as partial:
        (partial / "new").touch()
    assert names(folder) == {"new"}
    assert names(elsewhere) == {"precious"}
    assert names(tmp_path) == {"folder", "elsewhere"}


def test_what_cannot_take_the_folders_place_leaves_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == ".folder.partial":
            raise OSError(errno.ENOSPC, "no space")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no space"), replacing_folder(folder) as partial:
        (partial / "new").touch()
    assert names(folder) == {"old"}
    assert names(folder.parent) == {"folder"}


def test_what_a_killed_process_moved_away_goes_back(folder: Path) -> None:
    folder.rename(folder.with_name(".folder.old"))
    with pytest.raises(OSError, match="no space"), replacing_folder(folder):
        raise OSError(errno.ENOSPC, "no space")
    assert names(folder) == {"old"}
