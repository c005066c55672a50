"""Many requests at once: `make bench-load`.

`cpu`: mixed sizes at several concurrencies on the demo checkpoint, beside the published loop, one request at a time.
`gpu`: the UNet replaced by a simulation that takes 10 ms and 1 ms a row, to see what the orchestrator adds.
`overload`: ten times what the stack can do, for a minute. `soak`: small requests, some of them cancelled at random.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Neither folder is installed: one is for training only, the other is what Triton loads.
SOURCES = (ROOT / "export", ROOT / "model_repository" / "multidiffusion" / "1")


def main() -> None:
    """Run the command line with the sources in reach."""
    sys.path[:0] = [str(folder) for folder in SOURCES]
    from tests.benchmarks.load_run import app

    app()


if __name__ == "__main__":
    main()
