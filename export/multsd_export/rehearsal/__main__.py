"""`python -m multsd_export.rehearsal FAMILY`: every step in a process of its own, then one table."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from rich.console import Console

from multsd_export.errors import ExportError
from multsd_export.profiles import Precision
from multsd_export.rehearsal.configs import PUBLISHED
from multsd_export.rehearsal.measure import Measured, run_measured
from multsd_export.rehearsal.table import GIB, Row, file_bytes, markdown, network_row

MEMORY_LIMIT = 20 * GIB
MARK = ".rehearsal"  # in folders that a rehearsal may delete
# Stable Diffusion 1.5 is small enough to be served by a CPU: it is rehearsed in full precision too.
PRECISIONS = {"sd15": (Precision.FP16, Precision.FP32)}


def main() -> int:
    """Command line; the process of a step is this same command with `--step`."""
    parser = argparse.ArgumentParser(prog="multsd_export.rehearsal", description="Rehearse an export at true size.")
    parser.add_argument("family", choices=sorted(PUBLISHED))
    parser.add_argument("--output", type=Path, default=None, help="default: build/rehearsal/FAMILY")
    parser.add_argument("--step", nargs="+", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    folder = arguments.output or Path("build/rehearsal") / arguments.family
    try:
        if arguments.step is None:
            rehearse(arguments.family, folder)
        else:
            from multsd_export.rehearsal.steps import Rehearsal, run_step  # torch takes memory

            run_step(Rehearsal(arguments.family, folder), *arguments.step)
    except (ExportError, OSError) as error:
        Console(stderr=True).print(f"rehearsal: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


def empty_folder(folder: Path) -> None:
    """An empty folder for a rehearsal, in place of an earlier one's.

    Raises:
        ExportError: it holds anything that no rehearsal has written.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise ExportError(f"{folder}: expected an earlier rehearsal or an empty folder, found other files")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).touch()


def rehearse(family: str, folder: Path) -> None:
    """Run every step, print the table and write it to `folder/table.md`.

    Raises:
        ExportError: a step failed, or took more memory than MEMORY_LIMIT; the folder holds something else.
    """
    empty_folder(folder)
    encoders = ["text_encoder", "text_encoder_2"][: len(PUBLISHED[family].text_encoders)]
    written = _step(family, folder, "checkpoint")
    rows = [Row("random checkpoint", Precision.FP16, written, file_bytes((folder / "checkpoint").rglob("*")))]
    for precision in PRECISIONS.get(family, (Precision.FP16,)):
        names = [*encoders, "unet", "vae_decoder", "vae_encoder"]
        measured = {name: _step(family, folder, "network", precision, name) for name in names}
        composed = _step(family, folder, "compose", precision)
        repository = folder / f"model_repository_{precision}"
        rows += [network_row(name, took, repository) for name, took in measured.items()]
        rows.append(Row("palette, composition", precision, composed, file_bytes(repository.rglob("*"))))
    table = f"{PUBLISHED[family].title}\n\n{markdown(rows)}"
    (folder / "table.md").write_text(table, encoding="utf-8")
    Console().print(table, markup=False, highlight=False, soft_wrap=True)


def _step(family: str, folder: Path, *step: str) -> Measured:
    Console(stderr=True).print(f"rehearsal {family}: {' '.join(step)}", highlight=False)
    command = [sys.executable, "-m", "multsd_export.rehearsal", family, "--output", str(folder), "--step", *step]
    measured = run_measured(command)
    if measured.peak_bytes > MEMORY_LIMIT:
        raise ExportError(f"{' '.join(step)}: peak memory is {measured.peak_bytes / GIB:.1f} GiB, expected at most 20.")
    return measured


if __name__ == "__main__":
    sys.exit(main())
