"""JSON files as this package writes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write indented JSON, ending in a line break."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
