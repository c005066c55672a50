"""LoRAs are fused into the weights, and what would be left out without a word is refused."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from multsd_export import artefacts
from multsd_export.checkpoint import Checkpoint, read_checkpoint
from multsd_export.errors import CheckpointError
from multsd_export.lora import read_lora
from multsd_export.manifest import read_manifest
from multsd_export.networks import networks_of
from multsd_export.onnx_export import export_onnx
from multsd_export.pipeline import export

from .conftest import Exported

RANK = 2
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
Tensors = dict[str, torch.Tensor]


def pair(prefix: str, outputs: int, inputs: int, generator: torch.Generator) -> Tensors:
    """One layer's two matrices, named as diffusers and peft name them."""
    return {
        f"{prefix}.lora_A.weight": torch.randn(RANK, inputs, generator=generator),
        f"{prefix}.lora_B.weight": torch.randn(outputs, RANK, generator=generator),
    }


def tensors(unet_width: int = 16, text_width: int = 16) -> Tensors:
    generator = torch.Generator().manual_seed(3)
    return {
        **pair(f"unet.{ATTENTION}", unet_width, unet_width, generator),
        **pair(f"text_encoder.{TEXT}", text_width, text_width, generator),
    }


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA of one layer of the UNet and one of the text encoder."""
    save_file(tensors(), tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


def weights(checkpoint: Checkpoint, name: str) -> Tensors:
    network = next(network for network in networks_of(checkpoint) if network.name == name)
    state: Tensors = network.load(torch.float32).state_dict()
    return state


def changes(before: Tensors, after: Tensors) -> dict[str, torch.Tensor]:
    """The differences that are not zero; every name is in both."""
    assert before.keys() == after.keys()
    return {name: after[name] - before[name] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("scale", [1.0, 0.25, -2.0])
@pytest.mark.parametrize(
    ("network", "layer"), [("unet", f"unet.{ATTENTION}"), ("text_encoder", f"text_encoder.{TEXT}")]
)
def test_fusing_adds_the_scaled_product_to_its_one_layer(
    checkpoint_folder: Path, lora: Path, network: str, layer: str, scale: float
) -> None:
    plain = read_checkpoint(checkpoint_folder)
    fused = read_checkpoint(checkpoint_folder, loras=[read_lora(f"{lora}:{scale}")])
    ((name, change),) = changes(weights(plain, network), weights(fused, network)).items()
    suffix = layer.partition(".")[2].removeprefix("text_model.")
    assert name.endswith(f"{suffix}.weight")
    parts = tensors()
    expected = scale * parts[f"{layer}.lora_B.weight"] @ parts[f"{layer}.lora_A.weight"]
    torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-5)


def test_files_of_another_trainer_are_read_with_their_alpha(checkpoint_folder: Path, tmp_path: Path) -> None:
    """Names with underscores, a factor of alpha / rank: kohya's."""
    parts = tensors()
    name = f"lora_unet_{ATTENTION.replace('.', '_')}"
    down, up = parts[f"unet.{ATTENTION}.lora_A.weight"], parts[f"unet.{ATTENTION}.lora_B.weight"]
    stored = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
    save_file(stored, tmp_path / "kohya.safetensors")
    plain = read_checkpoint(checkpoint_folder)
    fused = read_checkpoint(checkpoint_folder, loras=[read_lora(str(tmp_path / "kohya.safetensors"))])
    ((_, change),) = changes(weights(plain, "unet"), weights(fused, "unet")).items()
    torch.testing.assert_close(change, up @ down / RANK, rtol=1e-4, atol=1e-5)


def test_two_loras_add_up(checkpoint_folder: Path, lora: Path) -> None:
    plain = read_checkpoint(checkpoint_folder)
    twice = read_checkpoint(checkpoint_folder, loras=[read_lora(f"{lora}:1"), read_lora(f"{lora}:0.5")])
    ((_, change),) = changes(weights(plain, "unet"), weights(twice, "unet")).items()
    parts = tensors()
    expected = 1.5 * parts[f"unet.{ATTENTION}.lora_B.weight"] @ parts[f"unet.{ATTENTION}.lora_A.weight"]
    torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-5)


def test_second_text_encoders_take_their_own_part(small_checkpoints: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    parts = pair(f"text_encoder_2.{TEXT}", 24, 24, generator)
    save_file(parts, tmp_path / "xl.safetensors")
    plain = read_checkpoint(small_checkpoints / "sdxl")
    fused = read_checkpoint(small_checkpoints / "sdxl", loras=[read_lora(str(tmp_path / "xl.safetensors"))])
    ((_, change),) = changes(weights(plain, "text_encoder_2"), weights(fused, "text_encoder_2")).items()
    expected = parts[f"text_encoder_2.{TEXT}.lora_B.weight"] @ parts[f"text_encoder_2.{TEXT}.lora_A.weight"]
    torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-5)
    assert not changes(weights(plain, "text_encoder"), weights(fused, "text_encoder"))


def kohya(prefix: str) -> Callable[[str], tuple[str, str, str]]:
    """A layer's names: its two matrices and its alpha."""

    def names(layer: str) -> tuple[str, str, str]:
        stem = f"{prefix}_{layer.replace('.', '_')}"
        return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"

    return names


def diffusers_names(component: str, down: str, up: str) -> Callable[[str], tuple[str, str, str]]:
    return lambda layer: tuple(f"{component}.{layer}.{part}" for part in (down, up, "alpha"))  # type: ignore[return-value]


LAYERS = re.compile(
    r"model\.(?P<layer>.*(to_[qkv]|to_out\.0|ff\.net\.2|proj_in|conv1|[qkv]_proj|out_proj|fc[12]))\.weight"
)


@pytest.mark.parametrize(
    ("structure", "component", "names"),
    [
        ("sd1", "unet", kohya("lora_unet")),
        ("sd1", "unet", diffusers_names("unet", "lora_A.weight", "lora_B.weight")),
        ("sd1", "unet", diffusers_names("unet", "lora.down.weight", "lora.up.weight")),
        ("sd1", "text_encoder", kohya("lora_te")),
        ("sd1", "text_encoder", diffusers_names("text_encoder", "lora_A.weight", "lora_B.weight")),
        ("sdxl", "unet", kohya("lora_unet")),
        ("sdxl", "unet", diffusers_names("unet", "lora_A.weight", "lora_B.weight")),
        ("sdxl", "text_encoder", kohya("lora_te1")),
        ("sdxl", "text_encoder_2", kohya("lora_te2")),
        ("sdxl", "text_encoder_2", diffusers_names("text_encoder_2", "lora_A.weight", "lora_B.weight")),
        (
            "sdxl",
            "text_encoder_2",
            diffusers_names("text_encoder_2", "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
        ),
    ],
)
def test_every_layer_is_as_strong_as_its_own_alpha_and_rank_say(
    small_checkpoints: Path, tmp_path: Path, structure: str, component: str, names: Any
) -> None:
    """Ranks of 1 to 3, alphas of several sizes, some layers without one: B A alpha / rank."""
    plain = read_checkpoint(small_checkpoints / structure)
    before = weights(plain, component)
    generator = torch.Generator().manual_seed(3)
    stored: Tensors = {}
    expected: Tensors = {}
    for index, match in enumerate(filter(None, map(LAYERS.fullmatch, before))):
        layer, weight = match["layer"], before[match.string]
        rank, alpha = 1 + index % 3, (0.5, None, 1.0, 1.5, 4.0)[index % 5]
        down = torch.randn(rank, *weight.shape[1:], generator=generator)
        up = torch.randn(len(weight), rank, *(1 for _ in weight.shape[2:]), generator=generator)
        if component != "unet" and not layer.startswith("text_model."):
            layer = f"text_model.{layer}"  # as files have it, whatever transformers calls it
        name_down, name_up, name_alpha = names(layer)
        stored |= {name_down: down, name_up: up} | ({name_alpha: torch.tensor(alpha)} if alpha else {})
        product = torch.einsum("or,r...->o...", up.flatten(1), down)
        expected[match.string] = product * ((alpha or rank) / rank)
    assert len(expected) >= 18
    save_file(stored, tmp_path / "varied.safetensors")
    fused = read_checkpoint(plain.path, loras=[read_lora(str(tmp_path / "varied.safetensors"))])
    found = changes(before, weights(fused, component))
    assert found.keys() == expected.keys()
    for name, change in found.items():
        torch.testing.assert_close(change, expected[name], rtol=1e-4, atol=1e-5)


KOHYA = f"lora_unet_{ATTENTION.replace('.', '_')}"
KOHYA_PAIR = {f"{KOHYA}.lora_down.weight": torch.ones(2, 16), f"{KOHYA}.lora_up.weight": torch.ones(16, 2)}
SGM = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"


def check_refused(checkpoint_folder: Path, lora: Path, stored: Tensors, message: str) -> None:
    save_file(stored, lora)
    checkpoint = read_checkpoint(checkpoint_folder, loras=[read_lora(str(lora))])
    with pytest.raises(CheckpointError, match=message):
        weights(checkpoint, "unet")


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (KOHYA_PAIR | {f"{KOHYA}.diff": torch.ones(2)}, f"has {KOHYA}.diff, which is no part of a LoRA's layer"),
        (tensors() | {"unet.conv_in.alpha": torch.tensor(1.0)}, "has unet.conv_in.alpha, which is no part of a LoRA's"),
        (
            {f"unet.{ATTENTION}.lora_A.weight": torch.ones(2, 16)},
            f"has unet.{ATTENTION}.lora_A.weight without unet.{ATTENTION}.lora_B.weight",
        ),
        (KOHYA_PAIR | {f"{KOHYA}.alpha": torch.ones(2)}, r"alpha is \[1.0, 1.0\], expected one number"),
        (KOHYA_PAIR | {f"{KOHYA}.alpha": torch.tensor(math.nan)}, "alpha is nan, expected one number"),
        (
            KOHYA_PAIR | {name.replace(KOHYA, SGM): tensor + 1 for name, tensor in KOHYA_PAIR.items()},
            "has 4 tensors, of which diffusers takes 2",
        ),
    ],
)
def test_a_tensor_that_would_be_left_out_is_named(
    checkpoint_folder: Path, tmp_path: Path, stored: Tensors, message: str
) -> None:
    check_refused(checkpoint_folder, tmp_path / "odd.safetensors", stored, message)


def test_doras_of_kohyas_format_are_refused_by_name(checkpoint_folder: Path, tmp_path: Path) -> None:
    """diffusers would leave their magnitudes out and fuse the rest as a LoRA."""
    save_file(KOHYA_PAIR | {f"{KOHYA}.dora_scale": torch.ones(16, 1)}, tmp_path / "dora.safetensors")
    checkpoint = read_checkpoint(checkpoint_folder, loras=[read_lora(str(tmp_path / "dora.safetensors"))])
    with pytest.raises(CheckpointError, match=rf"is a DoRA of kohya's format \(it has {KOHYA}.dora_scale\)"):
        weights(checkpoint, "unet")


@pytest.mark.parametrize(
    ("stored", "config", "message"),
    [
        (tensors(), {"unet.alpha_pattern": {"unet.to_q": 1}}, r"alpha_pattern keys did not match .*'unet.to_q'"),
        (
            tensors() | {f"unet.{ATTENTION}.alpha": torch.tensor(1.0)},
            {},
            f"has unet.{ATTENTION}.alpha and lora_adapter_metadata, expected one of them",
        ),
        (tensors(), {"unet.novelty": 1}, "lora_adapter_metadata: unet.novelty is no field of peft's LoraConfig"),
        (tensors(), {"unet.r": "2"}, "lora_adapter_metadata: unet.r is '2', expected int"),
        (tensors(), {"unet.r": True}, "lora_adapter_metadata: unet.r is True, expected int"),
        (tensors(), {"unet.lora_alpha": None}, "unet.lora_alpha is None, expected int or float"),
        (tensors(), {"unet.alpha_pattern": None}, "unet.alpha_pattern is None, expected dict"),
        (tensors(), {"unet.rank_pattern": {ATTENTION: "2"}}, "odd.safetensors does not fit unet: "),
        (tensors(), {"unet.target_modules": "(("}, "odd.safetensors does not fit unet: "),
        (tensors(), {"unet.use_dora": True}, "lacks tensors of layers that its configuration names"),
    ],
)
def test_a_configuration_that_says_something_else_than_the_tensors_is_refused(
    checkpoint_folder: Path, tmp_path: Path, stored: Tensors, config: dict[str, Any], message: str
) -> None:
    config = {"unet.r": RANK, "unet.lora_alpha": RANK, "unet.target_modules": [ATTENTION], **config}
    save_file(stored, tmp_path / "odd.safetensors", metadata={"lora_adapter_metadata": json.dumps(config)})
    checkpoint = read_checkpoint(checkpoint_folder, loras=[read_lora(str(tmp_path / "odd.safetensors"))])
    with pytest.raises(CheckpointError, match=message):
        weights(checkpoint, "unet")


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not valid JSON"), ("[1]", "expected a JSON object, found list")]
)
def test_a_configuration_that_is_no_object_is_refused(
    checkpoint_folder: Path, tmp_path: Path, text: str, message: str
) -> None:
    save_file(tensors(), tmp_path / "odd.safetensors", metadata={"lora_adapter_metadata": text})
    checkpoint = read_checkpoint(checkpoint_folder, loras=[read_lora(str(tmp_path / "odd.safetensors"))])
    with pytest.raises(CheckpointError, match=f"lora: odd.safetensors: lora_adapter_metadata.* {message}"):
        weights(checkpoint, "unet")


@pytest.mark.parametrize(("value", "dtype"), [(math.nan, torch.float32), (1e4, torch.float16)])
def test_weights_that_are_no_numbers_any_more_are_refused(
    checkpoint_folder: Path, tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    """The torch profile serves them as they are: no comparison would tell."""
    stored = pair(f"unet.{ATTENTION}", 16, 16, torch.Generator().manual_seed(3))
    save_file({name: tensor * value for name, tensor in stored.items()}, tmp_path / "odd.safetensors")
    checkpoint = read_checkpoint(checkpoint_folder, loras=[read_lora(str(tmp_path / "odd.safetensors"))])
    (unet,) = (network for network in networks_of(checkpoint) if network.name == "unet")
    with pytest.raises(
        CheckpointError, match=rf"with odd.safetensors, unet\.{ATTENTION}\.weight is not finite in {dtype}"
    ):
        unet.load(dtype)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (pair("transformer.block", 2, 2, torch.Generator()), "has transformer.block.lora_A.weight; the checkpoint"),
        (
            pair("unet.down_blocks.7.attentions.0.to_q", 16, 16, torch.Generator()),
            "lora: odd.safetensors does not fit unet|changes 1 layers of unet, of which the checkpoint has 0",
        ),
        (
            tensors() | pair("unet.down_blocks.7.attentions.0.to_q", 16, 16, torch.Generator()),
            "changes 2 layers of unet, of which the checkpoint has 1",
        ),
        (tensors(unet_width=20), "lora: odd.safetensors does not fit unet: .*size mismatch"),
        (
            pair(f"text_encoder_2.{TEXT}", 16, 16, torch.Generator()),
            f"has text_encoder_2.{TEXT}.lora_A.weight; the checkpoint takes unet, text_encoder",
        ),
    ],
)
def test_a_lora_of_another_structure_is_refused_by_name(
    checkpoint_folder: Path, tmp_path: Path, stored: Tensors, message: str
) -> None:
    check_refused(checkpoint_folder, tmp_path / "odd.safetensors", stored, message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.safetensors", "none.safetensors does not exist"),
        ("style.safetensors:much", "the scale is 'much', expected a number"),
        ("style.safetensors:nan", "the scale is 'nan', expected a number"),
        ("style.bin", "is a pickle, which can run code"),
        ("style.zip", "expected FILE.safetensors or FILE.safetensors:SCALE"),
    ],
)
def test_what_is_no_lora_file_is_refused(lora: Path, name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_lora(str(lora.parent / name))


def test_the_scale_is_one_unless_given(lora: Path) -> None:
    assert [read_lora(text).scale for text in (f"{lora}", f"{lora}:0.8")] == [1.0, 0.8]


def test_an_export_records_the_lora_and_makes_only_what_it_changes(
    exported: Exported,
    tmp_path: Path,
    lora: Path,
    progress: Callable[[str, float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names: list[str] = []

    def recording(network: Any, *args: Any) -> Any:
        names.append(network.name)
        return export_onnx(network, *args)

    monkeypatch.setattr(artefacts, "export_onnx", recording)
    options = replace(exported.copy(tmp_path / "copy"), loras=(read_lora(f"{lora}:0.5"),))
    plain = read_manifest(options.output)
    assert export(options, progress)
    assert names == ["text_encoder", "unet"]
    manifest = read_manifest(options.output)
    assert plain is not None
    assert manifest is not None
    (record,) = manifest["checkpoint"]["loras"]
    assert (record["name"], record["scale"]) == ("style.safetensors", 0.5)
    assert record["digest"].startswith("sha256:")
    assert manifest["checkpoint"]["digest"] != plain["checkpoint"]["digest"]
    assert not export(options, progress)
