"""The table of a rehearsal, in Markdown."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multsd_export.rehearsal.measure import Measured

GIB = 2**30
HEAD = ("step", "precision", "parameters", "peak memory", "time", "files", "nodes, all audited", "from torch")


@dataclass(frozen=True)
class Row:
    """One step: what it took, and what the manifest says of its network."""

    step: str
    precision: str
    measured: Measured
    file_bytes: int
    network: Mapping[str, Any] | None = None  # parameters, nodes, relative_error


def network_row(name: str, measured: Measured, repository: Path) -> Row:
    """A network's row, with the facts of the manifest that was composed after it."""
    manifest = json.loads((repository / "manifest.json").read_text(encoding="utf-8"))
    facts = manifest["networks"][name]
    parity = manifest["parity"]["networks"][name]
    network = {
        "parameters": facts["parameters"],
        "nodes": sum(manifest["audit"][name]["operators"].values()),
        "relative_error": parity["relative_error"] if parity else None,
    }
    return Row(name, facts["precision"], measured, file_bytes((repository / name / "1").glob("model.onnx*")), network)


def file_bytes(files: Iterable[Path]) -> int:
    """The size of files together."""
    return sum(file.stat().st_size for file in files if file.is_file())


def markdown(rows: Iterable[Row]) -> str:
    """The whole table."""
    lines = [HEAD, ("---",) * len(HEAD), *(_cells(row) for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cells(row: Row) -> tuple[str, ...]:
    network = row.network or {}
    error = network.get("relative_error")
    return (
        f"`{row.step}`" if row.network else row.step,
        row.precision,
        f"{network['parameters'] / 1e6:,.1f} M" if network else "",
        f"{row.measured.peak_bytes / GIB:.2f} GiB",
        f"{row.measured.seconds:.0f} s",
        f"{row.file_bytes / GIB:.2f} GiB",
        str(network.get("nodes", "")),
        "" if error is None else f"{error:.1e}",
    )
