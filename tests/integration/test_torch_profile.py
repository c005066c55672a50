"""The `torch` profile on a real Triton, on the processor: its picture is that of the `cpu` profile."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from multsd_export.pipeline import Options, export
from multsd_export.profiles import Device, torch_profile
from tests.integration.conftest import ROOT, serve
from tests.integration.test_triton_clients import request, stream

SAME_PICTURE = 1e-4  # relative, of latents; both are float32 and sum in another order


@pytest.fixture(scope="module")
def torch_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of the gRPC endpoint; the demo checkpoint, as the suite's own stack serves it."""
    folder = tmp_path_factory.mktemp("torch")
    checkpoint = ROOT / "export" / "demo_checkpoint" / "checkpoint"
    profile = torch_profile(Device.CPU)
    options = Options(checkpoint, folder / "repository", ROOT / "model_repository", folder / "work", profile)
    quiet: Callable[[str, float], None] = lambda _stage, _share: None  # noqa: E731
    assert export(options, quiet)
    with serve(options.output, folder) as url:
        yield url


def test_the_seeds_request_gives_the_picture_of_the_cpu_profile(torch_triton: str, triton_grpc: str) -> None:
    inputs = request(
        grpcclient,
        num_inference_steps=np.array([35], np.int32),
        bootstrapping=np.array([20], np.int32),
        seed=np.array([22312], np.uint64),
        return_latents=np.array([True]),
    )
    (in_torch,), (in_onnx,) = stream(torch_triton, inputs), stream(triton_grpc, inputs)
    latents, expected = in_torch.as_numpy("latents"), in_onnx.as_numpy("latents")
    assert np.abs(latents - expected).max() / np.abs(expected).max() <= SAME_PICTURE
    difference = np.abs(in_torch.as_numpy("image").astype(int) - in_onnx.as_numpy("image"))
    assert difference.max() <= 1, "levels of 255"


def test_triton_has_taken_what_the_profile_says(torch_triton: str) -> None:
    with grpcclient.InferenceServerClient(torch_triton) as client:
        unet = client.get_model_config("unet").config
    parameters = {key: value.string_value for key, value in unet.parameters.items()}
    assert parameters == {
        "module": "Unet",
        "precision": "fp32",
        "execution": "eager",
        "channels_last": "false",
        "intra_op_threads": "0",
    }
    assert list(unet.dynamic_batching.preferred_batch_size) == [16]
    assert [warmup.batch_size for warmup in unet.model_warmup] == [1, 16]


def test_a_size_of_another_checkpoint_is_refused_before_it_is_queued(torch_triton: str) -> None:
    ids = grpcclient.InferInput("input_ids", [1, 5], "INT32").set_data_from_numpy(np.zeros((1, 5), np.int32))
    with (
        grpcclient.InferenceServerClient(torch_triton) as client,
        pytest.raises(InferenceServerException, match=r"unexpected shape for input 'input_ids'.*\[-1,\d+\]"),
    ):
        client.infer("text_encoder", [ids])
