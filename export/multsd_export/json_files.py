"""JSON files as this package writes them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write indented JSON, ending in a line break; a file is whole or as it was, also where the machine goes down."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    if file.exists() and not file.is_file():  # /dev/stdout and the like
        file.write_text(text, encoding="utf-8")
        return
    file = file.resolve()  # a link stays one
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        with partial.open("rb") as written:
            os.fsync(written.fileno())  # or the name may be on the disk before the content
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
