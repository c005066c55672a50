"""The `torch` profile: what is composed of a checkpoint, and that its runner computes what the checkpoint does."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from google.protobuf import json_format, text_format
from safetensors.numpy import load_file
from tritonclient.grpc import model_config_pb2

from multsd_export.checkpoint import read_checkpoint
from multsd_export.manifest import read_manifest
from multsd_export.networks import networks_of
from multsd_export.parity import relative_error
from multsd_export.pipeline import Options, export
from multsd_export.profiles import CUDA_GRAPHS, TENSORRT, Device, Precision, torch_profile
from multsd_export.serving import may_replay_cuda_graphs, replays_cuda_graphs
from multsd_export.torch_weights import weights_artefact
from tests.small_checkpoints import STRUCTURES

from .conftest import REPOSITORY, quiet
from .runners import arguments, loaded

CPU, GPU = torch_profile(Device.CPU), torch_profile(Device.GPU)
SDXL = ["text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder"]
WINDOW = STRUCTURES["sdxl"].window


@pytest.fixture(scope="module")
def options(small_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Options:
    """SDXL in full precision, on the processor. Read only."""
    folder = tmp_path_factory.mktemp("torch")
    options = Options(small_checkpoints / "sdxl", folder / "repository", REPOSITORY, folder / "work", CPU)
    assert export(options, quiet)
    return options


@pytest.fixture(scope="module")
def on_gpu(options: Options) -> Options:
    """The same in half precision, on a GPU. Read only."""
    options = replace(options, output=options.output.with_name("gpu"), profile=GPU)
    assert export(options, quiet)
    return options


@pytest.fixture(scope="module")
def runner() -> Iterator[Any]:
    with loaded(CPU.runner) as module:
        yield module


def read_config(file: Path) -> Any:
    return text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())


def config_of(options: Options, name: str, variant: str | None = None) -> Any:
    folder = options.output / name
    return read_config(folder / "configs" / f"{variant}.pbtxt" if variant else folder / "config.pbtxt")


def parameters(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


def served(runner: Any, options: Options, name: str, **changes: str) -> Any:
    """A network as Triton would load it, with some of its parameters changed."""
    config = config_of(options, name)
    for key, value in changes.items():
        config.parameters[key].string_value = value
    model = runner.TritonPythonModel()
    described = json_format.MessageToDict(config, preserving_proto_field_name=True)
    threads = torch.get_num_threads()
    model.initialize(arguments(options.output / name, described))
    torch.set_num_threads(threads)
    return model


def answer(model: Any, inputs: tuple[torch.Tensor, ...]) -> list[Any]:
    request = {name: each.numpy() for name, each in zip(model.model.inputs, inputs, strict=True)}
    (response,) = model.execute([request])
    assert response.error is None, response.error.message
    return [tensor.array for tensor in response.output_tensors]


def drawn(runner: Any, options: Options, model: Any, *, seed: int) -> Any:
    """What the runner measures a network with."""
    (network,) = (each for each in networks_of(read_checkpoint(options.checkpoint)) if each.name == model.model.name)
    return runner.draw_inputs(network.load(torch.float32), model.model, torch.device("cpu"), seed=seed)


def test_a_network_is_its_weights_the_runner_and_what_the_runner_imports(options: Options) -> None:
    for name in SDXL:
        folder = options.output / name / "1"
        assert {path.name for path in folder.iterdir()} == {
            "cuda_graphs.py",
            "model.py",
            "modules.py",
            "rows.py",
            "triton_requests.py",
            "weights",
        }
        weights = {path.name for path in (folder / "weights").iterdir()}
        assert "config.json" in weights
        assert len([each for each in weights if each.endswith(".safetensors")]) == 1


@pytest.mark.parametrize("name", SDXL)
def test_the_runner_computes_what_the_checkpoint_does(options: Options, runner: Any, name: str) -> None:
    model = served(runner, options, name)
    (network,) = (each for each in networks_of(read_checkpoint(options.checkpoint)) if each.name == name)
    module = network.load(torch.float32)
    for inputs in network.draw(torch.Generator().manual_seed(2)):
        rows = inputs if network.batched else tuple(tensor[:1] for tensor in inputs)
        with torch.no_grad():
            result = module(*rows)
        expected = (result,) if isinstance(result, torch.Tensor) else result
        for have, want in zip(answer(model, rows), expected, strict=True):
            assert have.dtype == np.float32
            assert relative_error(have, want.numpy()) < 1e-5


def test_half_precision_is_near_full_and_its_outputs_are_full(options: Options, on_gpu: Options, runner: Any) -> None:
    half, full = served(runner, on_gpu, "unet"), served(runner, options, "unet")
    (unet,) = (each for each in networks_of(read_checkpoint(options.checkpoint)) if each.name == "unet")
    inputs = next(unet.draw(torch.Generator().manual_seed(2)))
    (have,), (want,) = answer(half, inputs), answer(full, inputs)
    assert have.dtype == np.float32
    assert 0 < relative_error(have, want) < 1e-2


@pytest.mark.usefixtures("cuda_graphs_on_the_processor")
@pytest.mark.parametrize("changes", [{"execution": "cuda-graphs"}, {"channels_last": "true"}])
def test_every_way_to_run_gives_the_same_result(options: Options, runner: Any, changes: dict[str, str]) -> None:
    plain, changed = served(runner, options, "unet"), served(runner, options, "unet", **changes)
    (unet,) = (each for each in networks_of(read_checkpoint(options.checkpoint)) if each.name == "unet")
    for inputs in unet.draw(torch.Generator().manual_seed(2)):
        (have,), (want,) = answer(changed, inputs), answer(plain, inputs)
        assert relative_error(have, want) < 1e-5


@pytest.mark.usefixtures("cuda_graphs_on_the_processor")
def test_every_number_of_rows_is_captured_and_nothing_of_a_request_is_left_in_the_next(
    options: Options, runner: Any
) -> None:
    plain, changed = served(runner, options, "unet"), served(runner, options, "unet", execution="cuda-graphs")
    full = drawn(runner, options, changed, seed=2)
    most = config_of(options, "unet").max_batch_size
    assert len(full[0]) == most
    before: list[Any] = []
    for rows in range(most, 0, -1):
        (have,) = answer(changed, tuple(tensor[-rows:] for tensor in full))
        (want,) = answer(plain, tuple(tensor[-rows:] for tensor in full))
        assert relative_error(have, want) < 1e-5
        before.append((have, have.copy()))
    for have, copied in before:
        assert np.array_equal(have, copied), "an answer is not written over by later ones"


@pytest.mark.usefixtures("cuda_graphs_on_the_processor")
@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2", "unet"])
def test_what_is_measured_to_be_faster_is_told_and_gives_the_same(
    options: Options, runner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(runner.pb_utils.Logger, "log_info", told.append)
    plain, changed = served(runner, options, name), served(runner, options, name, execution="autotune")
    (line,) = told
    assert line.startswith(f"{name}: ")
    assert f"of {config_of(options, name).max_batch_size} numbers of rows" in line
    inputs = tuple(tensor[:3] for tensor in drawn(runner, options, changed, seed=5))
    for have, want in zip(answer(changed, inputs), answer(plain, inputs), strict=True):
        assert relative_error(have, want) < 1e-5


def test_networks_are_measured_with_inputs_like_those_that_come(options: Options, runner: Any) -> None:
    """A token that is not in the vocabulary would end a GPU's context."""
    encoder = served(runner, options, "text_encoder")
    for size in (29, 516):  # the demo checkpoint's vocabulary is small
        module = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(vocab_size=size)))
        (ids,) = runner.draw_inputs(module, encoder.model, torch.device("cpu"), seed=0)
        assert ids.dtype == torch.int32
        assert (int(ids.min()), int(ids.max())) == (0, size - 1)
    unet = served(runner, options, "unet")
    one, other = (dict(zip(unet.model.inputs, drawn(runner, options, unet, seed=seed), strict=True)) for seed in (0, 1))
    assert {name: tuple(tensor.shape[1:]) for name, tensor in one.items()} == {
        "sample": (4, WINDOW, WINDOW),
        "timestep": (),
        "encoder_hidden_states": (77, 40),
        "text_embeds": (20,),
        "time_ids": (6,),
    }
    for name, tensor in one.items():
        assert tensor.dtype == torch.float32
        assert (tensor - other[name]).abs().mean() > 0.1, "a value that a graph has kept would not show"
    assert one["timestep"].max() > 500


def test_graphs_of_a_network_with_sizes_of_any_kind_are_refused(options: Options, runner: Any) -> None:
    with pytest.raises(ValueError, match=r"execution: expected static shapes, latent_sample has \[4, -1, -1\]"):
        served(runner, options, "vae_decoder", execution="cuda-graphs")


def test_every_number_of_rows_is_compiled_before_requests_come(
    options: Options, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch does, code is compiled anew for one row and for 16."""
    compiled: list[int] = []

    def compile_(module: Callable[..., Any], *, dynamic: bool) -> Callable[..., Any]:
        assert dynamic

        def forward(*inputs: torch.Tensor) -> Any:
            compiled.append(len(inputs[0]))
            assert not torch.is_grad_enabled(), "code is compiled anew where gradients are wanted or not"
            return module(*inputs)

        return forward

    monkeypatch.setattr(torch, "compile", compile_)
    model = served(runner, options, "unet", execution="compile")
    assert sorted(compiled) == list(range(1, 17))
    inputs = tuple(tensor[:3] for tensor in drawn(runner, options, model, seed=0))
    np.testing.assert_array_equal(
        answer(model, inputs)[0], answer(served(runner, options, "unet", execution="eager"), inputs)[0]
    )
    assert len(compiled) == 17


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("execution", "faster", "eager, cuda-graphs, compile, autotune"),
        ("precision", "bf16", "fp32, fp16"),
        ("channels_last", "True", "true, false"),
        ("module", "Vae", ".*SdxlUnet.*"),
    ],
)
def test_a_parameter_with_an_unknown_value_is_named(
    options: Options, runner: Any, name: str, value: str, expected: str
) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected one of {expected}, found '{value}'"):
        served(runner, options, "unet", **{name: value})


def test_a_parameter_that_is_missing_is_named(options: Options, runner: Any) -> None:
    model = served(runner, options, "unet").model
    without = {key: value for key, value in model.parameters.items() if key != "precision"}
    with pytest.raises(ValueError, match=r"^precision: expected one of fp32, fp16, found None"):
        runner.load_module(replace(model, parameters=without), torch.device("cpu"))


@pytest.mark.parametrize("lost", [True, False])
def test_a_process_ends_where_an_error_has_taken_the_gpus_context(
    options: Options, runner: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], lost: bool
) -> None:
    """It would answer every call with that error from then on, and be ready all the same."""
    model = served(runner, options, "text_encoder")
    inputs = tuple(drawn(runner, options, model, seed=0))
    model.device = torch.device("cuda")

    def fail(*_inputs: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(model, "_compute", fail)
    monkeypatch.setattr(torch.cuda, "synchronize", fail if lost else lambda: None)
    monkeypatch.setattr("os._exit", end)
    if lost:
        with pytest.raises(SystemExit):
            answer(model, inputs)
        expected = (
            "text_encoder: the GPU's context is lost, the process ends: CUDA error: an illegal memory access was "
        )
        assert expected in capfd.readouterr().err
    else:
        with pytest.raises(AssertionError, match="illegal memory access"):
            answer(model, inputs)


def test_a_gpus_networks_are_in_half_precision_on_the_first_gpu(on_gpu: Options) -> None:
    gpu = model_config_pb2.ModelInstanceGroup.KIND_GPU
    for name in SDXL:
        config = config_of(on_gpu, name)
        assert [(group.kind, group.count, list(group.gpus)) for group in config.instance_group] == [(gpu, 1, [0])]
        assert parameters(config)["precision"] == ("fp32" if "vae" in name else "fp16"), "SDXL's VAE overflows"
        assert parameters(config)["execution"] == ("eager" if "vae" in name else "autotune")
        assert not config.dynamic_batching.HasField("default_queue_policy"), "Triton would sleep while calls wait"
        assert [warmup.batch_size for warmup in config.model_warmup] == sorted({1, config.max_batch_size})
    manifest = read_manifest(on_gpu.output) or {}
    assert (manifest["profile"], manifest["device"], manifest["precision"]) == ("torch", "gpu", "fp16")


def test_contracts_are_those_of_the_other_profiles_with_the_checkpoints_dimensions(options: Options) -> None:
    unet = config_of(options, "unet")
    assert {tensor.name: list(tensor.dims) for tensor in (*unet.input, *unet.output)} == {
        "sample": [4, WINDOW, WINDOW],
        "timestep": [1],
        "encoder_hidden_states": [77, 40],
        "text_embeds": [20],
        "time_ids": [6],
        "out_sample": [4, WINDOW, WINDOW],
    }
    decoder = config_of(options, "vae_decoder")
    assert {tensor.name: list(tensor.dims) for tensor in (*decoder.input, *decoder.output)} == {
        "latent_sample": [4, -1, -1],
        "sample": [3, -1, -1],
    }


def test_variants_change_how_a_gpu_runs_a_network_and_nothing_else(on_gpu: Options) -> None:
    for variant, models in GPU.variants.items():
        for name in set(models) & set(SDXL):
            plain, changed = config_of(on_gpu, name), config_of(on_gpu, name, variant)
            assert replays_cuda_graphs(changed) is (
                variant.endswith(CUDA_GRAPHS) and name in ("text_encoder", "text_encoder_2", "unet")
            )
            assert not replays_cuda_graphs(plain)
            assert may_replay_cuda_graphs(plain) is ("vae" not in name)
            assert may_replay_cuda_graphs(changed) is replays_cuda_graphs(changed)
            assert parameters(changed) != parameters(plain)
            for key in ("execution", "channels_last"):
                changed.parameters[key].CopyFrom(plain.parameters[key])
            assert changed == plain


def test_a_call_of_the_unet_waits_at_the_door_of_a_gpu_and_not_of_a_processor(
    on_gpu: Options, options: Options
) -> None:
    ahead = [parameters(config_of(each, "multidiffusion"))["unet_calls_ahead"] for each in (on_gpu, options)]
    assert ahead == ["1", "0"]
    assert "unet_calls_ahead" in TENSORRT.settings("multidiffusion")


def test_a_processor_has_no_variants(options: Options) -> None:
    assert not list(options.output.glob("*/configs"))


def test_the_palette_is_what_the_checkpoints_encoder_makes_of_its_colours(options: Options) -> None:
    palette = load_file(options.output / "multidiffusion" / "1" / "checkpoint" / "palette.safetensors")
    vae = AutoencoderKL.from_pretrained(options.checkpoint / "vae", torch_dtype=torch.float32)
    colour = torch.from_numpy(palette["colours"][7]).reshape(1, 3, 1, 1)
    with torch.no_grad():
        encoded = vae.encode((colour * 2 - 1).expand(1, 3, 8 * WINDOW, 8 * WINDOW)).latent_dist.mean
    expected = (encoded * vae.config.scaling_factor).numpy()
    assert palette["latents"].shape == (64, 4, WINDOW, WINDOW)
    assert relative_error(palette["latents"][7:8], expected) < 1e-5


def test_weights_are_written_once(options: Options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr("multsd_export.torch_weights._write_weights", refuse)
    assert export(replace(options, output=tmp_path / "again"), quiet)
    checkpoint = read_checkpoint(options.checkpoint)
    (unet,) = (each for each in networks_of(checkpoint) if each.name == "unet")
    contract = read_config(REPOSITORY / "unet" / "config.pbtxt")
    artefact = weights_artefact(unet, checkpoint, contract, options.work_dir, lambda _: None)
    config = json.loads((artefact.folder / "weights" / "config.json").read_text())
    assert config["sample_size"] == WINDOW


def test_a_change_of_device_composes_again(options: Options) -> None:
    assert not export(options, quiet)
    assert export(replace(options, profile=GPU, precision=Precision.FP32), quiet)
    assert export(options, quiet)
