"""One export from beginning to end, or none when nothing changed."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from multsd_export.checkpoint import read_checkpoint
from multsd_export.engines.machine import this_machine
from multsd_export.engines.record import Rebuild
from multsd_export.engines.settings import EngineSettings
from multsd_export.errors import RepositoryError
from multsd_export.lora import Lora
from multsd_export.manifest import MANIFEST_FILE, export_inputs, is_current, read_manifest
from multsd_export.profiles import Precision, Profile, Served
from multsd_export.sources import Source

WAITING = "another export"  # the stage in which one waits for it


@dataclass(frozen=True)
class Options:
    """What to export, from where, to where."""

    checkpoint: Path
    output: Path
    repository: Path
    work_dir: Path  # keeps ONNX files, engines and weights from export to export
    profile: Profile
    force: bool = False  # compose again even when nothing changed
    precision: Precision | None = None  # left out: the profile's
    source: Source | None = None  # where the checkpoint was taken from; left out, the folder tells
    loras: tuple[Lora, ...] = ()
    engines: EngineSettings = field(default_factory=EngineSettings)  # where the profile runs engines
    hub_checkpoint: str | None = None  # owner/name@commit, where the checkpoint was named so

    def rebuild(self) -> Rebuild:
        """What repeats this export, from any folder."""
        return Rebuild(
            checkpoint=self.hub_checkpoint or str(self.checkpoint.absolute()),
            profile=self.profile.name,
            precision=self.precision or self.profile.precision,
            loras=[lora.argument() for lora in self.loras],
            repository=str(self.repository.absolute()),
            work_dir=str(self.work_dir.absolute()),
            **asdict(self.engines),
        )


def export(options: Options, progress: Callable[[str, float], None]) -> bool:
    """Bring the output up to date; True where something had to be done.

    Raises:
        ExportError: in one sentence, what is wrong; the output is as it was before.
    """
    output = options.output.resolve()  # a link stays one, and so do its other names
    _check_output(output, options)
    checkpoint = read_checkpoint(options.checkpoint, options.source, options.loras)
    precision = options.precision or options.profile.precision
    inputs = export_inputs(checkpoint, options.repository, options.profile, precision)
    machine = this_machine() if options.profile.served is Served.ENGINE else None  # before anything is made
    if machine:
        inputs |= {"machine": asdict(machine), "engines": asdict(options.engines)}
    locks = options.work_dir / ".lock", output.with_name(f".{output.name}.lock")
    with _locked(locks[0], progress), _locked(locks[1], progress):
        if not options.force and is_current(output, inputs):
            return False
        from multsd_export.build import EnginePlan, build  # torch takes seconds to import

        build(
            checkpoint,
            options.repository,
            options.profile,
            precision,
            output=output,
            work_dir=options.work_dir,
            inputs=inputs,
            progress=progress,
            engine_plan=EnginePlan(machine, options.engines, options.rebuild()) if machine else None,
        )
    return True


def _check_output(output: Path, options: Options) -> None:
    """Never replace a folder that an export did not make, nor one that holds what the export needs.

    Args:
        output: without links.
    """
    needed = (options.checkpoint, options.repository, options.work_dir, *(lora.path for lora in options.loras))
    for path in needed:
        if path.resolve().is_relative_to(output):
            raise RepositoryError(f"{output} would be replaced, and {path} is in it; choose another output.")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())) or read_manifest(output) is not None:
        return
    raise RepositoryError(
        f"{output} exists and has no {MANIFEST_FILE} of an export; remove it or choose another output."
    )


@contextmanager
def _locked(file: Path, progress: Callable[[str, float], None]) -> Iterator[None]:
    """One export at a time per work folder and per output; the next one waits, for hours where engines are built."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(WAITING, 0)
            fcntl.flock(lock, fcntl.LOCK_EX)
            progress(WAITING, 1)
        yield
