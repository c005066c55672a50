"""One verification from beginning to end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from multsd_export.checkpoint import Checkpoint
from multsd_export.compose import ORCHESTRATOR
from multsd_export.contract import read_config
from multsd_export.engines.machine import import_tensorrt, this_machine
from multsd_export.engines.record import check_engines
from multsd_export.errors import EngineError
from multsd_export.manifest import composed_manifest, files_intact
from multsd_export.networks import DTYPES, Network, networks_of
from multsd_export.profiles import CUDA_GRAPHS, Device, Precision
from multsd_export.verify.networks import Served, network_batches, verify_network
from multsd_export.verify.picture import MODEL, TorchNetworks, verify_graphs_picture, verify_picture
from multsd_export.verify.report import Check, Report
from multsd_export.verify.server import Server

StageProgress = Callable[[str, float], None]


@dataclass(frozen=True)
class Verification:
    """What to verify, against what."""

    repository: Path
    checkpoint: Checkpoint
    url: str  # host:port of Triton's gRPC endpoint
    steps: int  # of the picture
    graphs_url: str | None = None  # of another Triton, which serves the same repository with CUDA graphs


def verify(verification: Verification, progress: StageProgress) -> Report:
    """Run every check; a check that fails stops none of the others.

    Raises:
        RepositoryError: there is no composed repository.
        ServerError: Triton cannot be reached, or has not loaded it.
    """
    repository, checkpoint = verification.repository, verification.checkpoint
    manifest = composed_manifest(repository)
    networks = networks_of(checkpoint, Precision(manifest["precision"]))
    servers = [Server(url) for url in (verification.url, verification.graphs_url) if url]
    for each in servers:
        each.require([network.name for network in networks] + [ORCHESTRATOR, MODEL])
    server = servers[0]
    device = _device()
    report = Report(_facts(verification, manifest, device))
    report.checks += _repository_checks(verification, manifest, server)
    report.checks += _graphs_checks(manifest, servers[1:])
    modules: dict[str, torch.nn.Module] = {}
    sizes: dict[str, int] = {}
    for network in networks:
        progress(network.name, 0)
        # The weights that the graph has, computed with in float32.
        modules[network.name] = network.load(DTYPES[network.precision]).float().to(device)
        sizes[network.name] = read_config(repository / network.name / "config.pbtxt").max_batch_size
        tile, largest = manifest["limits"]["vae_tile"], manifest["device"] == Device.GPU
        batches = network_batches(network, checkpoint, sizes[network.name], tile=tile, largest=largest)
        for each in servers:
            graphs = each.replays_cuda_graphs(network.name)
            if each is not server and not graphs:
                continue  # a VAE is the same on both
            served = Served(network, modules[network.name], device, each, sizes[network.name], graphs)
            checks, speeds = verify_network(served, batches)
            report.checks += checks
            report.speeds += speeds
        progress(network.name, 1)
    progress("picture", 0)
    torch_networks = TorchNetworks(modules, device, sizes["unet"])
    window = checkpoint.window * checkpoint.vae_scale_factor
    unet = _named(networks, "unet")
    report.checks += verify_picture(server, repository, torch_networks, unet, window, verification.steps)
    for each in servers[1:]:
        report.checks += verify_graphs_picture(server, each, unet, window, verification.steps)
    progress("picture", 1)
    return report


def _device() -> torch.device:
    """A GPU where torch sees one; products in full float32, for it is the reference."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _named(networks: tuple[Network, ...], name: str) -> Network:
    return next(network for network in networks if network.name == name)


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
    served = server.parameter(ORCHESTRATOR, "checkpoint_digest")
    intact = files_intact(verification.repository, manifest["files"])
    checks = [
        Check(
            "repository",
            "is made from this checkpoint",
            checkpoint.digest == expected,
            f"{checkpoint.digest[:19]}, the manifest says {expected[:19]}",
        ),
        Check(
            "repository",
            "is what Triton serves",
            served == expected,
            f"{served[:19] or 'no digest'}, the manifest says {expected[:19]}",
        ),
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


def _graphs_checks(manifest: Mapping[str, Any], graphs: Sequence[Server]) -> list[Check]:
    """Whether a second server serves the same with CUDA graphs, or why nothing is said of them."""
    name = "is served with CUDA graphs too"
    if not graphs:
        reason = "no server was named (--graphs-url)"
        if manifest["device"] == Device.CPU:
            reason = "not applicable, the networks run on the processor"
        return [Check("repository", name, None, reason)]
    (server,) = graphs
    served = server.parameter(ORCHESTRATOR, "checkpoint_digest")
    same, replays = served == manifest["checkpoint"]["digest"], server.replays_cuda_graphs("unet")
    found = {
        (True, True): "the same checkpoint",
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
