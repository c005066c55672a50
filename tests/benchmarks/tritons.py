"""Two Tritons behind one gateway, while one is killed, hangs or breaks, and both restart: `make bench-tritons`.

Real Tritons with a stand-in model that takes a fixed time, and the gateway with its defaults. Clients ask POST /multsd,
each again as soon as it is answered. Failed is whatever is not a picture.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from tests.benchmarks.console import wide_console
from tests.integration.conftest import ROOT
from tests.stand_in.pair import EVENTS, Reply, load, running_pair, wait_for_replies

CLIENTS = 8
MODEL_SECONDS = 0.5
QUANTILES = (50, 99)
AROUND = 100  # requests before each event, and after it
RESULTS = ROOT / "build" / "bench"
BODY = {"bg_prompt": "a", "width": 64, "height": 64, "seed": 1}


def summary(replies: list[Reply], left_out: float) -> dict[str, Any]:
    """One row. left_out: seconds until the gateway gave a Triton no more requests."""
    milliseconds = [reply.seconds * 1000 for reply in replies]
    return {
        "sent": len(replies),
        "failed": sum(reply.status != 200 for reply in replies),
        **{f"p{quantile}": float(np.percentile(milliseconds, quantile)) for quantile in QUANTILES},
        "most": max(milliseconds),
        "left_out": left_out,
    }


def main() -> None:
    """Run, print the table, write build/bench/tritons.json."""
    folder = RESULTS / "tritons"
    rows: dict[str, dict[str, Any]] = {}
    with running_pair(folder, seconds=MODEL_SECONDS) as pair:
        with load(pair.url, clients=CLIENTS, body=BODY) as replies:
            wait_for_replies(replies, 2 * CLIENTS)  # the first are slower
        for name, event in EVENTS.items():
            with load(pair.url, clients=CLIENTS, body=BODY) as replies:
                wait_for_replies(replies, AROUND)
                left_out = event(pair)
                wait_for_replies(replies, AROUND)
            rows[name] = summary(replies, left_out)
    table = Table("meanwhile", "sent", "failed", "p50 ms", "p99 ms", "most ms", "left out after s")
    for name, row in rows.items():
        times = [f"{row[column]:.0f}" for column in ("p50", "p99", "most")]
        table.add_row(name, str(row["sent"]), str(row["failed"]), *times, f"{row['left_out']:.1f}")
    wide_console().print(table)
    path: Path = RESULTS / "tritons.json"
    path.write_text(json.dumps(rows, indent=2) + "\n")
