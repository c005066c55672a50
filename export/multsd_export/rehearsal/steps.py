"""The steps of a rehearsal. Each runs in a process of its own, so that its peak memory is its own."""

from dataclasses import dataclass
from pathlib import Path

from multsd_export.artefacts import Effort, network_artefact
from multsd_export.build import build, read_family_contracts
from multsd_export.checkpoint import Checkpoint, read_checkpoint
from multsd_export.manifest import export_inputs
from multsd_export.networks import networks_of
from multsd_export.profiles import CPU, Precision
from multsd_export.rehearsal.configs import PUBLISHED
from multsd_export.rehearsal.random_checkpoint import write_random_checkpoint

REPOSITORY = Path("model_repository")
COLOURS = 2  # a preview is fitted to them, which takes more than one
EFFORT = Effort(batches=0, colours=COLOURS)
# At 64 x 64 cells a comparison with torch takes a minute a network, at 96 and 128 cells many.
EFFORTS = {"sd15": Effort(batches=1, colours=COLOURS)}


@dataclass(frozen=True)
class Rehearsal:
    """One family's rehearsal and the folder that all of it is written to."""

    family: str
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The random checkpoint."""
        return self.folder / "checkpoint"

    @property
    def work_dir(self) -> Path:
        """The ONNX files."""
        return self.folder / "onnx"

    @property
    def effort(self) -> Effort:
        """What is computed to prove the export."""
        return EFFORTS.get(self.family, EFFORT)

    def output(self, precision: Precision) -> Path:
        """The composed repository."""
        return self.folder / f"model_repository_{precision}"


def run_step(rehearsal: Rehearsal, step: str, *details: str) -> None:
    """`checkpoint`, `network PRECISION NAME` or `compose PRECISION`."""
    if step == "checkpoint":
        write_checkpoint(rehearsal)
    elif step == "network":
        export_network(rehearsal, Precision(details[0]), details[1])
    else:
        compose(rehearsal, Precision(details[0]))


def write_checkpoint(rehearsal: Rehearsal) -> None:
    """Write the random checkpoint."""
    rehearsal.checkpoint.mkdir(parents=True)
    write_random_checkpoint(PUBLISHED[rehearsal.family], rehearsal.checkpoint)


def export_network(rehearsal: Rehearsal, precision: Precision, name: str) -> None:
    """Export, audit and compare one network."""
    checkpoint = read_checkpoint(rehearsal.checkpoint)
    networks = networks_of(checkpoint, precision)
    network = next(network for network in networks if network.name == name)
    contract = read_family_contracts(REPOSITORY, networks)[name]
    network_artefact(network, checkpoint, contract, rehearsal.work_dir, _quiet, rehearsal.effort)


def compose(rehearsal: Rehearsal, precision: Precision) -> None:
    """Encode some colours of the palette and compose the repository from the networks that are there."""
    checkpoint = read_checkpoint(rehearsal.checkpoint)
    build(
        checkpoint,
        REPOSITORY,
        CPU,
        precision,
        output=rehearsal.output(precision),
        work_dir=rehearsal.work_dir,
        inputs=_inputs(checkpoint, precision),
        progress=_quiet,
        effort=rehearsal.effort,
    )


def _inputs(checkpoint: Checkpoint, precision: Precision) -> dict[str, object]:
    return {**export_inputs(checkpoint, REPOSITORY, CPU, precision), "rehearsal": True}


def _quiet(*_progress: object) -> None:
    """Nobody looks at the progress of a step."""
