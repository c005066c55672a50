"""One verification from beginning to end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from multsd_export.checkpoint import Checkpoint
from multsd_export.compose import ORCHESTRATOR
from multsd_export.contract import read_config
from multsd_export.engines.machine import import_tensorrt, this_machine
from multsd_export.engines.record import check_engines
from multsd_export.errors import EngineError, ExportError, ServerError
from multsd_export.manifest import composed_manifest, files_intact
from multsd_export.networks import Network, networks_of
from multsd_export.profiles import CUDA_GRAPHS, Device, Precision, ProfileName
from multsd_export.verify.networks import ServedNetwork, network_batches, verify_network
from multsd_export.verify.picture import MODEL, TorchNetworks, verify_graphs_picture, verify_picture
from multsd_export.verify.reference import Reference, choose_device
from multsd_export.verify.report import Check, Report
from multsd_export.verify.server import Server

StageProgress = Callable[[str, float], None]
# Of an engine: its model loads all the same. The backend's lines have "CUDA graph", or once "cuda graph".
UNSEEN_CAPTURES = '; a capture that fails is told in its log alone: grep -i "cuda graph"'
MADE_FROM, SERVED = "is made from this checkpoint", "is what Triton serves"
OF_CHECKPOINT = (MADE_FROM, SERVED)  # where one fails every network would, after hours for a large one


@dataclass(frozen=True)
class Verification:
    """What to verify, against what."""

    repository: Path
    checkpoint: Checkpoint
    url: str  # host:port of Triton's gRPC endpoint
    steps: int  # of the picture
    timeout: float  # of a call, seconds
    graphs_url: str | None = None  # of another Triton, which serves the same repository with CUDA graphs
    device: Device | None = None  # of torch; left out: `choose_device`


@dataclass(frozen=True)
class Session:
    """A verification that can be carried out, and its report, which grows."""

    verification: Verification
    manifest: Mapping[str, Any]
    networks: tuple[Network, ...]
    servers: Sequence[Server]  # the second replays CUDA graphs
    reference: Reference
    report: Report


def begin(verification: Verification) -> Session:
    """Look at what has to be there.

    Raises:
        RepositoryError: there is no composed repository.
        ServerError: Triton cannot be reached, or has not loaded it.
        TorchError: a GPU is wanted and there is none.
    """
    manifest = composed_manifest(verification.repository)
    networks = networks_of(verification.checkpoint, Precision(manifest["precision"]))
    device = choose_device(verification.device, max(network["parameters"] for network in manifest["networks"].values()))
    servers = [Server(url, verification.timeout) for url in (verification.url, verification.graphs_url) if url]
    for each in servers:
        each.require([*manifest["networks"], ORCHESTRATOR, MODEL])
    report = Report(_facts(verification, manifest, device))
    return Session(verification, manifest, networks, servers, Reference(networks, device), report)


def verify(session: Session, progress: StageProgress) -> None:
    """Run every check; one that fails stops none of the others, unless it is of the checkpoint.

    An error that ends it stands in the report, which has what was found before; one that is not the package's own is
    raised as well.
    """
    with suppress(ExportError):
        with _stage(session.report, "repository"):
            session.report.checks += _repository_checks(session.verification, session.manifest, session.servers[0])
            session.report.checks += _graphs_checks(session.manifest, session.servers[1:])
            session.report.checks += _statistics_checks(session.servers[0])
        if any(check.name in OF_CHECKPOINT for check in session.report.failures):
            session.report.unfinished = "networks and picture were not compared, since they are of another checkpoint"
            return
        for network in session.networks:
            with _stage(session.report, network.name, progress):
                _verify_network(session, network)
        with _stage(session.report, "picture", progress):
            _verify_pictures(session)


@contextmanager
def _stage(report: Report, name: str, progress: StageProgress = lambda _stage, _share: None) -> Iterator[None]:
    """A part of the verification; what ends it is written down."""
    progress(name, 0)
    try:
        yield
    except BaseException as error:
        reason = str(error) if isinstance(error, ExportError) else f"{type(error).__name__} {error}".strip()
        report.unfinished = f"{name} could not be finished: {reason.rstrip('.')}"
        raise
    progress(name, 1)


def _verify_network(session: Session, network: Network) -> None:
    config = read_config(session.verification.repository / network.name / "config.pbtxt")
    tile, largest = session.manifest["limits"]["vae_tile"], session.manifest["device"] == Device.GPU
    batches = network_batches(
        network, session.verification.checkpoint, config.max_batch_size, tile=tile, largest=largest
    )
    for server in session.servers:
        graphs, every_size = _cuda_graphs(server, network.name)
        if server is not session.servers[0] and not graphs:
            continue  # a VAE is the same on both
        served = ServedNetwork(network, session.reference, server, config.max_batch_size, graphs, every_size)
        checks, speeds = verify_network(served, batches)
        session.report.checks += checks
        session.report.speeds += speeds
    session.reference.release()


def _verify_pictures(session: Session) -> None:
    verification, (server, *others) = session.verification, session.servers
    unet = next(network for network in session.networks if network.name == "unet")
    networks = TorchNetworks(session.reference, session.manifest["limits"]["unet_max_batch_size"])
    window = verification.checkpoint.window * verification.checkpoint.vae_scale_factor
    session.report.checks += verify_picture(server, verification.repository, networks, unet, window, verification.steps)
    for each in others:
        session.report.checks += verify_graphs_picture(server, each, unet, window, verification.steps)


def _facts(verification: Verification, manifest: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        "repository": str(verification.repository),
        "url": verification.url,
        "graphs_url": verification.graphs_url,
        "profile": manifest["profile"],
        "device": manifest["device"],
        "precision": manifest["precision"],
        "checkpoint": manifest["checkpoint"],
        "engines": manifest["engines"],
        "torch": {"version": torch.__version__, "device": str(device)},
        "steps": verification.steps,
    }


def _repository_checks(verification: Verification, manifest: Mapping[str, Any], server: Server) -> list[Check]:
    """Whether files, server and engines are what the manifest says."""
    checkpoint, expected = verification.checkpoint, manifest["checkpoint"]["digest"]
    intact = files_intact(verification.repository, manifest["files"])
    checks = [
        Check(
            "repository",
            MADE_FROM,
            checkpoint.digest == expected,
            f"{checkpoint.digest[:19]}, the manifest says {expected[:19]}",
        ),
        _served_check(server, expected),
        Check(
            "repository",
            "has the manifest's files",
            intact,
            f"{len(manifest['files'])} files" if intact else "a file is missing or has another digest",
        ),
    ]
    if manifest["engines"]:
        checks.append(_engines_check(verification, manifest))
    return checks


def _served_check(server: Server, expected: str) -> Check:
    """Whether Triton has loaded what was made from the same checkpoint."""
    try:
        served = server.parameter(ORCHESTRATOR, "checkpoint_digest")
    except ServerError as error:
        return Check("repository", SERVED, None, str(error))
    found = f"{served[:19] or 'no digest'}, the manifest says {expected[:19]}"
    return Check("repository", SERVED, served == expected, found)


def _statistics_checks(server: Server) -> list[Check]:
    """Why the speeds have no time of the server's own, where they have none."""
    try:
        server.compute_time("unet")
    except ServerError as error:
        return [Check("speed", "is told by Triton too", None, str(error))]
    return []


def _cuda_graphs(server: Server, name: str) -> tuple[bool, bool]:
    """Whether a server is known to replay them, and whether it may."""
    try:
        return server.replays_cuda_graphs(name), server.may_replay_cuda_graphs(name)
    except ServerError:
        return False, False


def _graphs_checks(manifest: Mapping[str, Any], graphs: Sequence[Server]) -> list[Check]:
    """Whether a second server serves the same with CUDA graphs, or why nothing is said of them."""
    name = "is served with CUDA graphs too"
    if not graphs:
        reason = "no server was named (--graphs-url)"
        if manifest["device"] == Device.CPU:
            reason = "not applicable, the networks run on the processor"
        return [Check("repository", name, None, reason)]
    (server,) = graphs
    try:
        served, replays = server.parameter(ORCHESTRATOR, "checkpoint_digest"), server.replays_cuda_graphs("unet")
    except ServerError as error:
        return [Check("repository", name, None, str(error))]
    same = served == manifest["checkpoint"]["digest"]
    engines = manifest["profile"] == ProfileName.TENSORRT
    found = {
        (True, True): f"the same checkpoint{UNSEEN_CAPTURES if engines else ''}",
        (True, False): f"without: --model-config-name={CUDA_GRAPHS} is missing",
    }
    return [Check("repository", name, same and replays, found.get((same, replays), "another checkpoint"))]


def _engines_check(verification: Verification, manifest: Mapping[str, Any]) -> Check:
    """Engines belong to this machine; where TensorRT's package is not there, Triton's check at loading has to do."""
    name = "engines belong to this machine"
    try:
        import_tensorrt()
    except EngineError:
        return Check("repository", name, None, "TensorRT's package is not here; Triton has loaded them")
    try:
        machine = this_machine()
        check_engines(manifest, machine, verification.repository, str(verification.checkpoint.path))
    except EngineError as error:
        return Check("repository", name, False, str(error))
    return Check("repository", name, True, ", ".join(asdict(machine).values()))
