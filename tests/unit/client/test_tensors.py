"""The client's idea of the model's tensors, held to the model's own contract."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from multsd_client.tensors import (
    INPUTS,
    MODEL,
    NEWER_INPUTS,
    OUTPUTS,
    ModelRequest,
    Picture,
    Preview,
    Progress,
    Queued,
    from_tensors,
    spec_of,
    to_tensors,
)

CONTRACT = Path(__file__).parents[3] / "model_repository" / "multidiffusion" / "config.pbtxt"

FULL = ModelRequest(
    prompts=("a beach", "ein H\u00fcndchen"),
    negative_prompts=("blurry",),
    masks=np.ones((1, 4, 6), np.uint8),
    height=4,
    width=6,
    num_inference_steps=35,
    bootstrapping=0,
    guidance_scale=7.5,
    seed=2**64 - 1,
    scheduler="euler",
    view_stride=8,
    preview_every=5,
    deadline_s=30.0,
    progress=True,
    return_latents=True,
)


@pytest.fixture(scope="module")
def config() -> model_config_pb2.ModelConfig:
    return text_format.Parse(CONTRACT.read_text(), model_config_pb2.ModelConfig())


def _datatype(tensor: model_config_pb2.ModelInput) -> str:
    name = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else str(name)


def test_inputs_are_the_contracts(config: model_config_pb2.ModelConfig) -> None:
    assert config.name == MODEL
    inputs = {t.name: (_datatype(t), tuple(t.dims), t.optional) for t in config.input}
    assert inputs.keys() == {**INPUTS, **NEWER_INPUTS}.keys()
    assert inputs == {name: (spec_of(name).datatype, spec_of(name).dims, spec_of(name).optional) for name in inputs}


def test_outputs_are_the_contracts(config: model_config_pb2.ModelConfig) -> None:
    assert {t.name: (_datatype(t), tuple(t.dims)) for t in config.output} == {
        name: (spec.datatype, spec.dims) for name, spec in OUTPUTS.items()
    }


def test_a_full_request_fills_every_input_with_its_type_and_shape() -> None:
    kinds = {"BYTES": "O", "UINT8": "uint8", "INT32": "int32", "UINT64": "uint64", "FP32": "float32", "BOOL": "bool"}
    tensors = to_tensors(FULL)

    assert set(tensors) == {*INPUTS, *NEWER_INPUTS}
    for name, tensor in tensors.items():
        assert tensor.dtype == np.dtype(kinds[spec_of(name).datatype]), name
        assert tensor.ndim == len(spec_of(name).dims), name
    assert tensors["prompt"].tolist() == [b"a beach", "ein H\u00fcndchen".encode()]
    assert tensors["seed"].tolist() == [2**64 - 1]
    assert tensors["bootstrapping"].tolist() == [0]


def test_what_is_left_out_is_absent() -> None:
    assert set(to_tensors(ModelRequest(prompts=("a",), height=64, width=64))) == {"prompt", "height", "width"}


def test_responses_are_progress_or_a_picture() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    outputs = {
        "image": image,
        "warnings": np.array([json.dumps({"field": "f", "message": "m"}).encode()], object),
        "report": np.array([b'{"unet_rows": 1}'], object),
    }

    assert from_tensors({"progress_steps": np.array([3, 35], np.int32)}) == Progress(3, 35)
    assert from_tensors({"queue_position": np.array([2], np.int32)}) == Queued(2)
    preview = from_tensors({"preview": image})
    assert isinstance(preview, Preview)
    assert preview.image is image
    picture = from_tensors(outputs)
    assert isinstance(picture, Picture)
    assert picture.image is image
    assert (picture.warnings, picture.report) == (({"field": "f", "message": "m"},), {"unet_rows": 1})
    with pytest.raises(ValueError, match=r"response: expected warnings, found \['image'\]"):
        from_tensors({"image": image})
