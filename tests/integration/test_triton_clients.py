"""Triton's own clients and TritonClient, without the gateway; the README's lines are run as they stand there."""

import queue
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from multsd_client import replay
from multsd_client.errors import FieldNote
from multsd_client.request import GenerationRequest
from multsd_client.triton import TritonClient
from tests.integration.conftest import ROOT

README = (ROOT / "README.md").read_text()


def readme_block(containing: str) -> str:
    """The README's Python block with `containing` in it."""
    blocks = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if containing in block]
    assert len(blocks) == 1
    return str(blocks[0])


@pytest.mark.parametrize("module", ["tritonclient.http", "tritonclient.grpc"])
def test_readme_lines_run(module: str, triton_http: str, triton_grpc: str) -> None:
    lines = readme_block(module).replace("localhost:8000", triton_http).replace("localhost:8001", triton_grpc)
    names: dict[str, Any] = {}
    exec(compile(lines, "README.md", "exec"), names)  # noqa: S102 - the README's own text
    assert names["image"].shape == (512, 512, 3)
    assert names["image"].std() > 5


def tensors(module: Any, **values: Any) -> list[Any]:
    inputs = []
    for name, value in values.items():
        array = np.asarray(value)
        tensor = module.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        inputs.append(tensor.set_data_from_numpy(array))
    return inputs


def request(module: Any, **changes: Any) -> list[Any]:
    """Two regions of 4 steps; a change of None leaves the input out."""
    mask = np.zeros((1, 512, 512), np.uint8)
    mask[:, 128:384, 128:384] = 255
    values = {
        "prompt": np.array([b"green stripes background", b"a red circle"], dtype=object),
        "masks": mask,
        "height": np.array([512], np.int32),
        "width": np.array([512], np.int32),
        "num_inference_steps": np.array([4], np.int32),
        "bootstrapping": np.array([2], np.int32),
        "seed": np.array([3], np.uint64),
    } | changes
    return tensors(module, **{name: value for name, value in values.items() if value is not None})


def stream(url: str, inputs: list[Any], outputs: list[str] | None = None) -> list[Any]:
    """All responses of the decoupled model to one request, with the outputs named or all; raises its error."""
    answers: queue.Queue[tuple[Any, InferenceServerException | None]] = queue.Queue()
    with grpcclient.InferenceServerClient(url) as client:
        client.start_stream(
            callback=lambda result, error: answers.put((result, error)), headers={"triton_grpc_error": "true"}
        )
        wanted = [grpcclient.InferRequestedOutput(name) for name in outputs or []] or None
        client.async_stream_infer("multidiffusion", inputs, outputs=wanted, enable_empty_final_response=True)
        results = []
        while True:
            result, error = answers.get(timeout=60)
            if error:
                raise error
            results.append(result)
            if result.get_response().parameters["triton_final_response"].bool_param:
                return results


def test_unary_and_decoupled_models_over_both_protocols_give_the_same_picture(
    triton_http: str, triton_grpc: str
) -> None:
    with httpclient.InferenceServerClient(triton_http, network_timeout=60) as client:
        over_http = client.infer("multidiffusion_unary", request(httpclient)).as_numpy("image")
    with grpcclient.InferenceServerClient(triton_grpc) as client:
        over_grpc = client.infer("multidiffusion_unary", request(grpcclient)).as_numpy("image")
    (streamed,) = stream(triton_grpc, request(grpcclient))
    np.testing.assert_array_equal(over_http, over_grpc)
    np.testing.assert_array_equal(over_http, streamed.as_numpy("image"))


def test_progress_is_told_when_asked_for(triton_grpc: str) -> None:
    *steps, final = stream(triton_grpc, request(grpcclient, progress=np.array([True])))
    assert [step.as_numpy("progress_steps").tolist() for step in steps] == [[1, 4], [2, 4], [3, 4], [4, 4]]
    assert final.as_numpy("image").shape == (512, 512, 3)


def test_latents_are_returned_when_asked_for(triton_grpc: str) -> None:
    (final,) = stream(triton_grpc, request(grpcclient, return_latents=np.array([True])))
    assert final.as_numpy("latents").shape == (4, 64, 64)


OUTPUTS = ["image", "warnings", "report", "latents", "progress_steps"]


@pytest.mark.parametrize("name", OUTPUTS)
def test_any_one_output_may_be_asked_for_of_the_decoupled_model(name: str, triton_grpc: str) -> None:
    inputs = request(grpcclient, return_latents=np.array([True]), progress=np.array([True]))
    responses = stream(triton_grpc, inputs, [name])
    named = [{output.name for output in response.get_response().outputs} for response in responses]
    assert set().union(*named) == {name}
    assert stream(triton_grpc, request(grpcclient))[-1].as_numpy("image").shape == (512, 512, 3)


@pytest.mark.parametrize("name", OUTPUTS[:-1])
def test_any_one_output_may_be_asked_for_of_the_unary_model(name: str, triton_http: str) -> None:
    inputs = request(httpclient, return_latents=np.array([True]))
    with httpclient.InferenceServerClient(triton_http, network_timeout=60) as client:
        result = client.infer("multidiffusion_unary", inputs, outputs=[httpclient.InferRequestedOutput(name)])
        assert [output["name"] for output in result.get_response()["outputs"]] == [name]
        assert client.infer("multidiffusion_unary", request(httpclient)).as_numpy("image").shape == (512, 512, 3)


def test_latents_alone_without_their_field_are_a_clear_error(triton_http: str) -> None:
    outputs = [httpclient.InferRequestedOutput("latents")]
    with (
        httpclient.InferenceServerClient(triton_http, network_timeout=60) as client,
        pytest.raises(InferenceServerException, match="return_latents: expected true where latents alone are asked"),
    ):
        client.infer("multidiffusion_unary", request(httpclient), outputs=outputs)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"height": np.array([50], np.int32)}, r"height: expected 64 to \d+, found 50"),
    ({"width": np.array([-1], np.int32)}, "width: expected 64"),
    ({"height": np.array([2**31 - 1], np.int32)}, "height: expected 64"),
    ({"masks": np.zeros((2, 512, 512), np.uint8)}, r"masks: expected shape \(1, 512, 512\)"),
    ({"masks": None}, r"masks: expected shape \(1, 512, 512\).*found none"),
    ({"prompt": np.array([], dtype=object)}, "prompt: expected 1 to"),
    ({"prompt": np.array([b"\xff", b"x"], dtype=object)}, r"prompt\[0\]: expected UTF-8"),
    ({"prompt": np.array([b"x" * 1_000_000, b"x"], dtype=object)}, r"prompt\[0\]: expected at most"),
    ({"negative_prompt": np.array([b"x"] * 3, dtype=object)}, "negative_prompt: expected 2"),
    ({"num_inference_steps": np.array([0], np.int32)}, "num_inference_steps: expected 1"),
    ({"bootstrapping": np.array([-1], np.int32)}, "bootstrapping: expected 0"),
    ({"guidance_scale": np.array([np.nan], np.float32)}, "guidance_scale: expected 0"),
    ({"scheduler": np.array([b"plms"], dtype=object)}, "scheduler: expected one of"),
    ({"view_stride": np.array([65], np.int32)}, "view_stride: expected 1 to 64"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[f"{next(iter(c))}-{i}" for i, (c, _) in enumerate(BAD)])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_bad_tensors_are_invalid_arguments_that_name_the_field(
    change: dict[str, Any], message: str, protocol: str, triton_http: str, triton_grpc: str
) -> None:
    call: Callable[[], Any]
    with httpclient.InferenceServerClient(triton_http, network_timeout=60) as client:
        if protocol == "http":
            call = lambda: client.infer("multidiffusion_unary", request(httpclient, **change))  # noqa: E731
        else:
            call = lambda: stream(triton_grpc, request(grpcclient, **change))  # noqa: E731
        with pytest.raises(InferenceServerException, match=message) as raised:
            call()
    assert raised.value.status() == ("400" if protocol == "http" else "StatusCode.INVALID_ARGUMENT")


def test_previews_come_between_the_steps(triton_grpc: str) -> None:
    inputs = request(grpcclient, progress=np.array([True]), preview_every=np.array([2], np.int32))
    *before, final = stream(triton_grpc, inputs)
    previews = [each.as_numpy("preview") for each in before if each.as_numpy("preview") is not None]
    assert [preview.shape for preview in previews] == [(64, 64, 3)] * 2
    # The last estimate is the picture, a pixel for every cell of eight.
    picture = final.as_numpy("image").reshape(64, 8, 64, 8, 3).mean(axis=(1, 3))
    assert np.abs(previews[-1].astype(float) - picture).mean() < 30


def test_a_request_that_waits_is_told_its_position(triton_grpc: str) -> None:
    inputs = request(grpcclient, num_inference_steps=np.array([6], np.int32), progress=np.array([True]))
    with ThreadPoolExecutor(12) as pool:  # 8 are painted at a time
        told = list(pool.map(lambda _: stream(triton_grpc, inputs), range(12)))
    positions = [
        [int(each.as_numpy("queue_position")[0]) for each in responses if each.as_numpy("queue_position") is not None]
        for responses in told
    ]
    waited = [each for each in positions if each]
    assert 1 <= len(waited) <= 4
    assert all(each == sorted(each, reverse=True) and each[-1] == 0 for each in waited)
    assert all(responses[-1].as_numpy("image") is not None for responses in told)


# Refused by how fast the UNet is, and over before that was asked.
DEADLINES = {
    2.0: r"deadline_s: at least [\d.]+ s more are needed, [\d.]+ s are left",
    0.001: r"deadline_s: not done, none of its 0\.001 s are left",
}


def hopeless(module: Any, deadline: float) -> list[Any]:
    """A request that takes far longer than any of these deadlines."""
    steps = np.array([900], np.int32)
    return request(module, num_inference_steps=steps, deadline_s=np.array([deadline], np.float32))


def test_a_deadline_that_cannot_be_met_ends_the_request_and_says_so(triton_grpc: str) -> None:
    stream(triton_grpc, request(grpcclient))  # now it is known how fast the UNet is
    for seconds, message in DEADLINES.items():
        with pytest.raises(InferenceServerException, match=message) as caught:
            stream(triton_grpc, hopeless(grpcclient, seconds))
        assert "CANCELLED" in str(caught.value.status())
    stream(triton_grpc, request(grpcclient, deadline_s=np.array([60], np.float32)))


def test_a_deadline_that_cannot_be_met_is_no_fault_of_the_unary_model(triton_http: str, triton_grpc: str) -> None:
    stream(triton_grpc, request(grpcclient))
    for seconds, message in DEADLINES.items():
        with (
            grpcclient.InferenceServerClient(triton_grpc) as client,
            pytest.raises(InferenceServerException, match=message) as caught,
        ):
            client.infer("multidiffusion_unary", hopeless(grpcclient, seconds))
        assert caught.value.status() == "StatusCode.CANCELLED"
        with (
            httpclient.InferenceServerClient(triton_http, network_timeout=60) as client,
            pytest.raises(InferenceServerException, match=message) as caught,
        ):
            client.infer("multidiffusion_unary", hopeless(httpclient, seconds))
        assert caught.value.status() == "400"  # what Triton makes of CANCELLED over HTTP


def test_the_unary_model_refuses_at_once_what_its_queue_does_not_hold(triton_grpc: str) -> None:
    inputs = request(grpcclient, num_inference_steps=np.array([1], np.int32))

    def ask(_: int) -> str:
        with grpcclient.InferenceServerClient(triton_grpc) as client:
            try:
                return str(client.infer("multidiffusion_unary", inputs).as_numpy("image").shape)
            except InferenceServerException as error:
                return f"{error.status()} {error.message()}"

    with ThreadPoolExecutor(60) as pool:
        answers = Counter(pool.map(ask, range(60)))  # 4 are worked on, 32 wait
    assert answers["(512, 512, 3)"] >= 36
    (refusal,) = answers.keys() - {"(512, 512, 3)"}
    assert "UNAVAILABLE" in refusal
    assert "maximum queue size" in refusal


def test_triton_client_says_what_its_picture_lacks_and_embeds_nothing_where_told(triton_grpc: str) -> None:
    request = GenerationRequest(
        prompt="green stripes background", num_inference_steps=1, seed=3, output_format="png", quality=50
    )
    with TritonClient(triton_grpc) as carrying, TritonClient(triton_grpc, embed=False) as plain:
        results = [client.generate(request) for client in (carrying, plain)]

    note = FieldNote("quality", "not used, PNG keeps every pixel as it is")
    assert all(note in result.warnings for result in results)
    assert replay.read(results[0].image)[0]["bg_prompt"] == "green stripes background"
    with pytest.raises(ValueError, match="found none"):
        replay.read(results[1].image)
