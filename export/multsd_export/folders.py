"""Folders that are either whole or not there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give an empty sibling to fill; it takes the folder's place when the block ends without an error.

    An error or an interrupt leaves the folder as it was. A killed process leaves at most hidden siblings, which the
    next call removes.
    """
    partial, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("partial", "old"))
    _remove(partial)
    _remove(old)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        _remove(partial)
        raise
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    _remove(old)


def _remove(path: Path) -> None:
    """Of a link, the link alone."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
