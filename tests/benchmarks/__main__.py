"""The benchmarks' command line: `python -m tests.benchmarks NAME`; `--help` lists them."""

import gc
import sys
from pathlib import Path

import typer

ROOT = Path(__file__).parents[2]
# Neither folder is installed: one is for training only, the other is what Triton loads.
SOURCES = (ROOT / "export", ROOT / "model_repository" / "multidiffusion" / "1")


def main() -> None:
    """Run a benchmark with the sources in reach."""
    sys.path[:0] = [str(folder) for folder in SOURCES]
    from tests.benchmarks import (
        gateway,
        gpu_run,
        gpu_variants_run,
        load_run,
        orchestration_run,
        quality_run,
        request_run,
        strides_run,
        tritons,
    )

    app = typer.Typer(add_completion=False, no_args_is_help=True)
    app.command("request")(request_run.main)
    app.command("quality")(quality_run.main)
    app.command("strides")(strides_run.main)
    app.command("gateway")(gateway.main)
    app.command("gpu")(gpu_run.main)
    app.command("gpu-variants")(gpu_variants_run.main)
    app.command("orchestration")(orchestration_run.main)
    app.command("tritons")(tritons.main)
    app.add_typer(load_run.app, name="load", help="Many requests at once.")
    gc.collect()
    gc.freeze()  # else a collection of all that is imported here takes 0.3 s of whatever is measured then
    app()


if __name__ == "__main__":
    main()
