"""What fewer views cost: `make bench-strides`.

Pictures of 512x1024 pixels are painted with views 8, 16 and 32 latent cells apart: UNet rows, seconds, how well regions
hold their masks, and whether the views' edges show. A second table decodes a large canvas in tiles and whole.
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
    from tests.benchmarks.strides_run import main as run

    typer.run(run)


if __name__ == "__main__":
    main()
