"""Every supported structure: found in its configs, exported, and one contract from config.pbtxt to the manifest."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from google.protobuf import text_format
from tokenizers import Tokenizer
from tritonclient.grpc import model_config_pb2

from multsd_export.checkpoint import read_checkpoint
from multsd_export.contract import graph_tensors
from multsd_export.parity import RELATIVE_LIMITS, open_session, relative_error
from multsd_export.profiles import Precision
from tests.small_checkpoints import STRUCTURES

from .conftest import Family

SD_NETWORKS = {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
PROMPT = "the picture of the sea"
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def read_json(file: Path) -> Any:
    return json.loads(file.read_text())


def composed_config(family: Family, model: str) -> Any:
    text = (family.options.output / model / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def network_names(family: Family) -> set[str]:
    return SD_NETWORKS | ({"text_encoder_2"} if family.structure == "sdxl" else set())


def settings_folder(family: Family) -> Path:
    return family.options.output / "multidiffusion" / "1" / "checkpoint"


def test_the_checkpoints_own_configs_decide_everything(family: Family) -> None:
    facts = STRUCTURES[family.structure]
    checkpoint = read_checkpoint(family.options.checkpoint)
    assert (checkpoint.family, checkpoint.window) == (facts.family, facts.window)
    assert (checkpoint.prediction_type, checkpoint.scaling_factor) == (facts.prediction_type, facts.scaling_factor)
    assert checkpoint.embedding_dim == sum(config["hidden_size"] for config in facts.text_encoders)


def test_a_repository_has_the_models_of_its_family(family: Family) -> None:
    models = {file.parent.name for file in family.options.output.glob("*/config.pbtxt")}
    assert models == network_names(family) | {"multidiffusion", "multidiffusion_unary"}


def declared(tensors: Any, batched: bool) -> list[dict[str, Any]]:
    """What config.pbtxt says the network sees."""
    return [
        {
            "name": tensor.name,
            "data_type": model_config_pb2.DataType.Name(tensor.data_type),
            "dims": [-1] * batched + list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims),
        }
        for tensor in tensors
    ]


def agrees(contract: list[dict[str, Any]], graph: Sequence[Mapping[str, Any]]) -> bool:
    """Equal, where the contract's -1 stands for any dimension."""
    return len(contract) == len(graph) and all(
        (a["name"], a["data_type"], len(a["dims"])) == (b["name"], b["data_type"], len(b["dims"]))
        and all(want in (-1, have) for want, have in zip(a["dims"], b["dims"], strict=True))
        for a, b in zip(contract, graph, strict=True)
    )


def test_config_graph_and_manifest_agree_on_every_tensor(family: Family) -> None:
    manifest = read_json(family.options.output / "manifest.json")
    assert set(manifest["networks"]) == network_names(family)
    for name in network_names(family):
        config = composed_config(family, name)
        graph = graph_tensors(family.options.output / name / "1" / "model.onnx")
        recorded = {kind: manifest["networks"][name][kind] for kind in ("inputs", "outputs")}
        assert recorded == graph
        assert agrees(declared(config.input, config.max_batch_size > 0), graph["inputs"])
        assert agrees(declared(config.output, config.max_batch_size > 0), graph["outputs"])


def test_the_unets_shapes_are_the_familys(family: Family) -> None:
    facts, manifest = STRUCTURES[family.structure], read_json(family.options.output / "manifest.json")
    width = sum(config["hidden_size"] for config in facts.text_encoders)
    shapes = {tensor["name"]: tensor["dims"] for tensor in manifest["networks"]["unet"]["inputs"]}
    sdxl = {"text_embeds": [-1, 20], "time_ids": [-1, 6]} if family.structure == "sdxl" else {}
    assert shapes == {
        "sample": [-1, 4, facts.window, facts.window],
        "timestep": [-1],
        "encoder_hidden_states": [-1, 77, width],
        **sdxl,
    }


def test_the_orchestrator_is_told_what_the_family_needs(family: Family) -> None:
    facts, settings = STRUCTURES[family.structure], read_json(settings_folder(family) / "settings.json")
    sdxl = family.structure == "sdxl"
    vocabulary = read_json(family.options.checkpoint / "tokenizer" / "vocab.json")
    encoders = [
        {
            "model": f"text_encoder{suffix}",
            "tokenizer": f"tokenizer{suffix}.json",
            "pad_token_id": vocabulary[pad_token],
            "max_length": 77,
            "outputs": ["last_hidden_state", "text_embeds"] if suffix else ["last_hidden_state"],
        }
        for suffix, pad_token in zip(("", "_2"), facts.pad_tokens, strict=False)
    ]
    assert settings["text_encoders"] == encoders
    assert settings["pad_token_id"] == encoders[0]["pad_token_id"]
    assert (settings["family"], settings["prediction_type"]) == (facts.family, facts.prediction_type)
    assert (settings["window"], settings["view_stride"]) == (facts.window, facts.window // 8)
    assert (settings["pooled_dim"], settings["time_ids"]) == ((20, True) if sdxl else (None, False))
    assert settings["force_zeros_for_empty_prompt"] is sdxl
    assert all((settings_folder(family) / encoder["tokenizer"]).is_file() for encoder in encoders)


def test_clients_are_told_which_text_encoders_there_are(family: Family) -> None:
    told = composed_config(family, "multidiffusion").parameters["text_encoders"].string_value
    assert set(told.split(",")) == {name for name in network_names(family) if name.startswith("text_encoder")}


def test_every_network_computes_what_torch_does(family: Family) -> None:
    manifest = read_json(family.options.output / "manifest.json")
    errors = {name: facts["relative_error"] for name, facts in manifest["parity"]["networks"].items()}
    assert set(errors) == network_names(family)
    assert 0 < max(errors.values()) <= 1e-4
    assert all(manifest["parity"]["networks"][name]["rows_independent"] for name in ("text_encoder", "unet"))


def test_tensorrt_would_take_every_node(family: Family) -> None:
    audits = read_json(family.options.output / "manifest.json")["audit"]
    assert {name: audit["findings"] for name, audit in audits.items()} == {name: [] for name in network_names(family)}
    assert all(audit["opset"] == 20 and sum(audit["operators"].values()) > 10 for audit in audits.values())


def encoded(family: Family) -> dict[str, list[np.ndarray[Any, Any]]]:
    """The outputs of every text encoder for PROMPT, by name, with what the orchestrator has."""
    outputs: dict[str, list[np.ndarray[Any, Any]]] = {}
    for encoder in read_json(settings_folder(family) / "settings.json")["text_encoders"]:
        tokenizer = Tokenizer.from_file(str(settings_folder(family) / encoder["tokenizer"]))
        ids = tokenizer.encode(PROMPT).ids
        padded = ids + [encoder["pad_token_id"]] * (encoder["max_length"] - len(ids))
        session = open_session(family.options.output / encoder["model"] / "1" / "model.onnx")
        results = session.run(encoder["outputs"], {"input_ids": np.array([padded], np.int32)})
        for name, result in zip(encoder["outputs"], results, strict=True):
            outputs.setdefault(name, []).append(result)
    return outputs


def test_prompts_are_encoded_as_diffusers_does(family: Family) -> None:
    sdxl = family.structure == "sdxl"
    pipeline_class = StableDiffusionXLPipeline if sdxl else StableDiffusionPipeline
    pipeline = pipeline_class.from_pretrained(
        family.options.checkpoint, dtype=torch.float32, local_files_only=True, **({} if sdxl else NO_CHECKER)
    )
    with torch.no_grad():
        embeds = pipeline.encode_prompt(
            PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    outputs = encoded(family)
    hidden = np.concatenate(outputs["last_hidden_state"], axis=-1)
    assert relative_error(hidden, embeds[0].numpy()) < RELATIVE_LIMITS[Precision.FP32]
    if sdxl:
        assert relative_error(outputs["text_embeds"][0], embeds[2].numpy()) < RELATIVE_LIMITS[Precision.FP32]


def test_half_precision_stays_inside_the_graph(half_family: Family) -> None:
    for name in network_names(half_family):
        graph = graph_tensors(half_family.options.output / name / "1" / "model.onnx")
        types = {tensor["data_type"] for kind in graph.values() for tensor in kind}
        assert types <= {"TYPE_FP32", "TYPE_INT32"}


def test_weights_are_half_but_for_the_vae_that_overflows(half_family: Family) -> None:
    manifest = read_json(half_family.options.output / "manifest.json")
    precisions = {name: facts["precision"] for name, facts in manifest["networks"].items()}
    vae = "fp32" if half_family.structure == "sdxl" else "fp16"
    halves = dict.fromkeys(network_names(half_family), "fp16")
    assert precisions == halves | {"vae_decoder": vae, "vae_encoder": vae}
    for name, precision in precisions.items():
        largest = max(
            onnx.load(half_family.options.output / name / "1" / "model.onnx").graph.initializer,
            key=lambda tensor: len(tensor.raw_data),
        )
        assert largest.data_type == (onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.FLOAT)


def test_half_precision_is_near_full_and_every_node_is_taken(half_family: Family) -> None:
    manifest = read_json(half_family.options.output / "manifest.json")
    for name, parity in manifest["parity"]["networks"].items():
        half = manifest["networks"][name]["precision"] == "fp16"
        assert parity["relative_error"] < (1e-2 if half else 1e-4)
        assert manifest["audit"][name]["findings"] == []


def test_attention_is_computed_in_full_where_the_unets_config_asks_for_it(half_family: Family) -> None:
    model = onnx.load(half_family.options.output / "unet" / "1" / "model.onnx")
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    sources = {output: node for node in model.graph.node for output in node.output}
    scores = [sources[node.input[0]] for node in model.graph.node if node.op_type == "Softmax"]
    upcast = half_family.structure == "sd2_768"
    assert STRUCTURES[half_family.structure].unet.get("upcast_attention", False) is upcast
    assert {node.op_type for node in scores} == {"MatMul"}, "nothing is rounded between product and softmax"
    element = onnx.TensorProto.FLOAT if upcast else onnx.TensorProto.FLOAT16
    assert {types[node.output[0]] for node in scores} == {element}
    assert {types[name] for node in scores for name in node.input} == {element}


@pytest.mark.parametrize("operator", ["InstanceNormalization", "LayerNormalization"])
def test_normalisations_of_a_half_precision_unet_are_computed_in_full(half_family: Family, operator: str) -> None:
    model = onnx.load(half_family.options.output / "unet" / "1" / "model.onnx")
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    found = {types[node.output[0]] for node in model.graph.node if node.op_type == operator}
    assert found == {onnx.TensorProto.FLOAT}
