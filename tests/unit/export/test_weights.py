"""Weights are read from safetensors alone: single files, shards and half-precision variants. Pickles stay closed."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from multsd_export.checkpoint import read_checkpoint
from multsd_export.errors import CheckpointError
from multsd_export.networks import networks_of
from multsd_export.pipeline import export
from multsd_export.profiles import Device, torch_profile
from multsd_export.weights import find_weights

from .conftest import Exported

UNET = "diffusion_pytorch_model"
Progress = Callable[[str, float], None]


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


@pytest.fixture
def folder(checkpoint_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint that the test may change."""
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "checkpoint"))


def split(folder: Path, infix: str = "") -> list[Path]:
    """Replace the UNet's file by two shards and their index, as diffusers writes them."""
    weights = load_file(folder / f"{UNET}.safetensors")
    (folder / f"{UNET}.safetensors").unlink()
    names = sorted(weights)
    files = [folder / f"{UNET}-0000{number}-of-00002{infix}.safetensors" for number in (1, 2)]
    halves = dict(zip(files, (names[::2], names[1::2]), strict=True))
    for file, part in halves.items():
        save_file({name: weights[name] for name in part}, file, metadata={"format": "pt"})
    weight_map = {name: file.name for file, part in halves.items() for name in part}
    (folder / f"{UNET}.safetensors.index{infix}.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return files


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    unet = next(network for network in networks_of(read_checkpoint(folder)) if network.name == "unet")
    return unet.load(torch.float32).state_dict()


def set_config(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("infix", ["", ".fp16"])
def test_shards_hold_the_same_weights(folder: Path, infix: str) -> None:
    whole = loaded(folder)
    files = split(folder / "unet", infix)
    assert same(loaded(folder), whole)
    checkpoint = read_checkpoint(folder)
    assert {f"unet/{file.name}" for file in files} < set(checkpoint.files)
    assert checkpoint.weights["unet"].variant == ("fp16" if infix else None)


def test_a_half_precision_variant_is_read_where_it_is_all_there_is(folder: Path) -> None:
    whole = loaded(folder)
    (folder / "unet" / f"{UNET}.safetensors").rename(folder / "unet" / f"{UNET}.fp16.safetensors")
    assert same(loaded(folder), whole)


def test_full_weights_are_preferred_to_a_variant(folder: Path) -> None:
    shutil.copy(folder / "unet" / f"{UNET}.safetensors", folder / "unet" / f"{UNET}.fp16.safetensors")
    assert find_weights(folder / "unet", UNET).variant is None


def test_where_a_folder_has_both_a_single_file_and_shards_what_is_loaded_is_what_is_digested(folder: Path) -> None:
    for component, stem in (("unet", UNET), ("text_encoder", "model")):
        single = folder / component / f"{stem}.safetensors"
        weights = load_file(single)
        shard = folder / component / f"{stem}-00001-of-00001.safetensors"
        save_file({name: value + 1 for name, value in weights.items()}, shard, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, shard.name)}
        (folder / component / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = read_checkpoint(folder)
    for network in networks_of(checkpoint)[:2]:
        files = [file for file in checkpoint.weights[network.component].files if file.suffix == ".safetensors"]
        digested = {name: value.float() for file in files for name, value in load_file(file).items()}
        found = network.load(torch.float32).model.state_dict()
        assert sorted(map(float, (value.sum() for value in found.values()))) == pytest.approx(
            sorted(float(value.sum()) for value in digested.values())
        )


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_quantised_weights_are_refused_by_name(folder: Path, component: str) -> None:
    set_config(folder / component / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(CheckpointError, match=f"{component}: quantization_config is .*bitsandbytes.*; supported: None"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["other.safetensors", "adapter_model.bin"])
def test_a_config_that_names_other_weights_is_refused(folder: Path, name: str) -> None:
    set_config(folder / "text_encoder" / "config.json", transformers_weights=name)
    with pytest.raises(CheckpointError, match=f"text_encoder: transformers_weights is '{name}'; supported: None"):
        read_checkpoint(folder)


def test_an_adapter_beside_a_text_encoder_is_refused(folder: Path) -> None:
    (folder / "text_encoder" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(CheckpointError, match=r"text_encoder: expected weights alone, found adapter_config\.json"):
        read_checkpoint(folder)


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), torch.float32), (1e5, torch.float16)])
@pytest.mark.parametrize(("component", "stem"), [("text_encoder", "model"), ("unet", UNET), ("vae", UNET)])
def test_a_weight_that_is_no_number_is_named(
    folder: Path, component: str, stem: str, value: float, dtype: torch.dtype
) -> None:
    """The torch profile serves it as it is: no comparison would tell."""
    file = folder / component / f"{stem}.safetensors"
    weights = {name: tensor.float() for name, tensor in load_file(file).items()}
    name = max(weights)
    weights[name].view(-1)[0] = value
    save_file(weights, file, metadata={"format": "pt"})
    network = next(each for each in networks_of(read_checkpoint(folder)) if each.component == component)
    with pytest.raises(CheckpointError, match=rf"^{component}: \S+ is not finite in {dtype}\.$"):
        network.load(dtype)


def test_a_missing_shard_is_named(folder: Path) -> None:
    files = split(folder / "unet")
    files[1].unlink()
    with pytest.raises(CheckpointError, match=f"the shard {files[1].name} is missing"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "shard.bin"])
def test_an_index_that_leads_elsewhere_is_refused(folder: Path, name: str) -> None:
    index = folder / "unet" / f"{UNET}.safetensors.index.json"
    (folder / "unet" / f"{UNET}.safetensors").unlink()
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": name}}))
    with pytest.raises(CheckpointError, match=f"{name} is not a safetensors file of the same folder"):
        read_checkpoint(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {"a": "b.safetensors"}}'])
def test_an_index_without_a_weight_map_is_refused(folder: Path, text: str) -> None:
    (folder / "unet" / f"{UNET}.safetensors").unlink()
    (folder / "unet" / f"{UNET}.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="expected an object with metadata and a weight_map"):
        read_checkpoint(folder)


def test_another_variant_is_named(folder: Path) -> None:
    (folder / "unet" / f"{UNET}.safetensors").rename(folder / "unet" / f"{UNET}.non_ema.safetensors")
    with pytest.raises(CheckpointError, match=f"found config.json, {UNET}.non_ema.safetensors"):
        read_checkpoint(folder)


def test_the_malicious_pickle_of_these_tests_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(tmp_path / "harm")))  # noqa: S301
    assert (tmp_path / "harm").exists()


def test_a_pickle_is_refused_unopened_with_the_command_that_converts_it(folder: Path, tmp_path: Path) -> None:
    (folder / "unet" / f"{UNET}.safetensors").unlink()
    (folder / "unet" / f"{UNET}.bin").write_bytes(pickle.dumps(Malicious(tmp_path / "harm")))
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(folder)
    assert f"unet: {UNET}.bin is a pickle, which can run code when it is loaded" in str(error.value)
    assert f"P.from_pretrained('{folder}', use_safetensors=False).save_pretrained(" in str(error.value)
    assert not (tmp_path / "harm").exists()


def test_a_single_pickled_file_is_refused_unopened_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(pickle.dumps(Malicious(tmp_path / "harm")))
    with pytest.raises(CheckpointError, match="from_single_file"):
        read_checkpoint(tmp_path / "model.ckpt")
    assert not (tmp_path / "harm").exists()


def test_pickles_beside_safetensors_are_never_opened(exported: Exported, tmp_path: Path, progress: Progress) -> None:
    options = exported.copy(tmp_path)
    names = {"text_encoder": "pytorch_model", "unet": UNET, "vae": UNET}
    for component, name in names.items():
        (options.checkpoint / component / f"{name}.bin").write_bytes(pickle.dumps(Malicious(tmp_path / "harm")))
    networks = networks_of(read_checkpoint(options.checkpoint))
    assert {network.name for network in networks} == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    for network in networks:
        network.load(torch.float32)  # as an export to ONNX does, which takes longer
    assert export(replace(options, profile=torch_profile(Device.CPU)), progress)
    assert not (tmp_path / "harm").exists()
