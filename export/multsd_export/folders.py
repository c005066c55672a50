"""Folders that are either whole or not there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give an empty sibling to fill; it takes the folder's place when the block ends without an error.

    An error or an interrupt leaves the folder as it was. A killed process leaves at most hidden siblings, which the
    next call removes, or puts back where the folder itself is gone. One call at a time for a folder.
    """
    partial, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("partial", "old"))
    _remove(partial)
    _put_back(old, folder)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    except BaseException:
        _put_back(old, folder)
        _remove(partial)
        raise
    _remove(old)


def _put_back(old: Path, folder: Path) -> None:
    """What was moved away goes back where nothing took its place, and away for good where something did."""
    if old.exists() and not folder.exists():
        old.rename(folder)
    _remove(old)


def _remove(path: Path) -> None:
    """Of a link, the link alone."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
