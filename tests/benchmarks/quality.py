"""How well pictures obey their masks and prompts: `make bench-quality`.

A published, seeded list of requests is painted with the service's own method and exported networks, with
bootstrapping off, short and long, with fixed backgrounds, and as plain text-to-image; a rule looks at the pictures.
`python -m tests.benchmarks.quality --help` lists what a short trial may change.
"""

import sys
from pathlib import Path

import typer

ROOT = Path(__file__).parents[2]
# Neither folder is installed: one is for training only, the other is what Triton loads.
SOURCES = (ROOT / "export", ROOT / "model_repository" / "multidiffusion" / "1")


def main() -> None:
    """Run the command line with the sources in reach."""
    sys.path[:0] = [str(folder) for folder in SOURCES]
    from tests.benchmarks.quality_run import main as run

    typer.run(run)


if __name__ == "__main__":
    main()
