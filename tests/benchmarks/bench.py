"""How long a request takes, and what of it the published method would take: `make bench`."""

import sys
from pathlib import Path

import typer

ROOT = Path(__file__).parents[2]
# Neither folder is installed: one is for training only, the other is what Triton loads.
SOURCES = (ROOT / "export", ROOT / "model_repository" / "multidiffusion" / "1")


def main() -> None:
    """Run the command line with the sources in reach."""
    sys.path[:0] = [str(folder) for folder in SOURCES]
    from tests.benchmarks.bench_run import main as run

    typer.run(run)


if __name__ == "__main__":
    main()
