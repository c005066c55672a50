"""The `tensorrt` profile's repository on a real Triton, its engines replaced by the runner of the `cpu` profile.

Engines do not run here. All else is as it is composed for them: precision, dimensions, dynamic batching, warm-ups.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from multsd_export import pipeline
from multsd_export.artefacts import artefact_folder
from multsd_export.checkpoint import read_checkpoint
from multsd_export.engines import artefact
from multsd_export.engines.machine import Machine
from multsd_export.networks import Network, networks_of
from multsd_export.pipeline import Options, export
from multsd_export.profiles import CPU, TENSORRT
from multsd_export.verify.picture import psnr
from multsd_gateway.stack.supervisor import Stack, running_stack
from tests.integration.conftest import ROOT, stack_settings
from tests.integration.requests_and_pictures import picture

NETWORKS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
SAME_PICTURE = 50.0  # dB; half precision beside full


def write_plan(_onnx: Path, plan: Path, _ranges: Any, _settings: Any, cache: Path, _report: Any) -> None:
    """In place of TensorRT's builder."""
    plan.write_bytes(b"an engine")
    cache.touch()


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """The demo checkpoint composed for engines."""
    folder = tmp_path_factory.mktemp("tensorrt")
    checkpoint = ROOT / "export" / "demo_checkpoint" / "checkpoint"
    options = Options(checkpoint, folder / "repository", ROOT / "model_repository", folder / "work", TENSORRT)
    quiet: Callable[[str, float], None] = lambda _stage, _share: None  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artefact, "build_engine", write_plan)
        patch.setattr(pipeline, "this_machine", lambda: Machine("11.4.0.106", "NVIDIA H100 80GB HBM3", "9.0"))
        assert export(options, quiet)
    return options


def read_config(file: Path) -> Any:
    return text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())


def replace_engines(options: Options) -> None:
    """What runs the networks, and on what; nothing else of their configurations changes."""
    for network in networks_of(read_checkpoint(options.checkpoint), options.precision or options.profile.precision):
        replace_engine(options, network)


def replace_engine(options: Options, network: Network) -> None:
    """As `replace_engines`, one."""
    folder = options.output / network.name
    for file in (folder / "config.pbtxt", *folder.glob("configs/*.pbtxt")):
        config = read_config(file)
        for field in ("platform", "default_model_filename", "instance_group"):
            config.ClearField(field)
        config.MergeFrom(text_format.Parse(CPU.settings(network.name), model_config_pb2.ModelConfig()))
        file.write_text(text_format.MessageToString(config))
    (folder / "1" / "model.plan").unlink()
    shutil.copyfile(options.work_dir / artefact_folder(network) / "model.onnx", folder / "1" / "model.onnx")
    assert CPU.runner is not None
    shutil.copyfile(CPU.runner.model, folder / "1" / "model.py")
    for sibling in CPU.runner.siblings:
        shutil.copyfile(sibling, folder / "1" / sibling.name)


@pytest.fixture(scope="module")
def served(composed: Options, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, str]]:
    """The stack, and host:port of Triton's gRPC endpoint."""
    for name in NETWORKS:
        assert read_config(composed.output / name / "config.pbtxt").backend == "tensorrt"
    replace_engines(composed)
    settings, gateway = stack_settings(tmp_path_factory.mktemp("stack"), composed.output)
    with running_stack(settings, gateway, report=lambda _: None) as stack:
        yield stack, f"127.0.0.1:{settings.triton_grpc_port}"


def test_the_seeds_request_gives_the_picture_of_the_cpu_profile(
    served: tuple[Stack, str], gateway: httpx.Client
) -> None:
    body = json.loads((ROOT / "client" / "examples" / "request.json").read_text()) | {"output_format": "png"}
    with httpx.Client(base_url=served[0].url, timeout=120) as half:
        found, expected = (
            picture(each.post("/multsd", json=body).raise_for_status().json()) for each in (half, gateway)
        )
    assert found.shape == (512, 512, 3)
    assert psnr(found, expected) > SAME_PICTURE


def test_triton_has_taken_what_the_profile_says(served: tuple[Stack, str]) -> None:
    with grpcclient.InferenceServerClient(served[1]) as client:
        unet = client.get_model_config("unet").config
    assert list(unet.dynamic_batching.preferred_batch_size) == [16]
    assert [warmup.batch_size for warmup in unet.model_warmup] == [1, 16]
    assert not unet.optimization.cuda.graphs


def test_a_size_that_the_engine_is_not_built_for_is_refused_before_it_is_queued(served: tuple[Stack, str]) -> None:
    ids = grpcclient.InferInput("input_ids", [1, 5], "INT32").set_data_from_numpy(np.zeros((1, 5), np.int32))
    with (
        grpcclient.InferenceServerClient(served[1]) as client,
        pytest.raises(InferenceServerException, match=r"unexpected shape for input 'input_ids'.*\[-1,\d+\]"),
    ):
        client.infer("text_encoder", [ids])
