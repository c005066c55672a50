"""Engines: for which shapes they are built, when again, for which machine, and with which configuration served.

TensorRT itself does not run here: its builder is replaced by a file, or by one that refuses.
"""

import ctypes
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

from multsd_export import pipeline
from multsd_export.cli import app
from multsd_export.digests import file_digest
from multsd_export.engines import artefact, machine
from multsd_export.engines.machine import Machine
from multsd_export.engines.progress import PhaseTree
from multsd_export.engines.record import Rebuild, check_engines
from multsd_export.engines.settings import EngineSettings
from multsd_export.engines.shapes import ShapeRange
from multsd_export.errors import EngineError, RepositoryError
from multsd_export.manifest import composed_manifest, read_manifest
from multsd_export.pipeline import Options, export
from multsd_export.profiles import TENSORRT, Precision

from .conftest import WINDOW, Exported

H100 = Machine("11.4.0.106", "NVIDIA H100 80GB HBM3", "9.0")
L4 = Machine("11.4.0.106", "NVIDIA L4", "8.9")
REBUILD = Rebuild("/checkpoint", "tensorrt", "fp16", [], "/contracts", "/kept", 3, None)
NETWORKS = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
TILE = 128
Progress = Callable[[str, float], None]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The networks whose engines are built during the test, on an H100 that is not there."""
    names: list[str] = []

    def write(
        onnx_file: Path, plan: Path, _ranges: Any, _settings: Any, timing_cache: Path, report: Callable[[float], None]
    ) -> None:
        names.append(onnx_file.parent.name)
        report(0.5)
        plan.write_text(f"engine of {onnx_file.parent.name}")
        timing_cache.touch()

    monkeypatch.setattr(artefact, "build_engine", write)
    monkeypatch.setattr(pipeline, "this_machine", lambda: H100)
    return names


@pytest.fixture
def options(exported_for_engines: Exported, tmp_path: Path) -> Options:
    """ONNX files are there already; engines are not."""
    return replace(exported_for_engines.copy(tmp_path), output=tmp_path / "engines")


def configs(output: Path, name: str = "config.pbtxt") -> Mapping[str, Any]:
    """By model; name: of the file in its folder."""
    return {
        file.relative_to(output).parts[0]: text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
        for file in output.glob(f"*/{name}")
    }


def test_an_export_to_engines_says_where_to_run_it_before_anything_is_made(
    tmp_path: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # wherever this test runs
    arguments = ["--checkpoint", str(exported.options.checkpoint), "--profile", "tensorrt"]
    result = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "out"), "--work-dir", str(tmp_path / "w")])
    assert result.exit_code == 1
    (line,) = result.output.strip().splitlines()
    assert line == (
        "multsd-export: TensorRT cannot be imported here (import of tensorrt halted; None in sys.modules); build "
        "engines on the GPU that serves them, in the image of docker/export.Dockerfile (--target tensorrt)."
    )
    assert not (tmp_path / "out").exists()


def test_a_machine_without_a_driver_is_told_so() -> None:
    with pytest.raises(EngineError, match=r"no NVIDIA driver here \(libcuda-that-is-not-there\.so cannot be loaded\)"):
        machine.gpu("libcuda-that-is-not-there.so")


def test_a_driver_that_is_too_old_is_told_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(version: Any) -> int:
        version._obj.value = 12080
        return 0

    driver = SimpleNamespace(cuDriverGetVersion=tell, cuInit=lambda _: 803)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: driver)
    with pytest.raises(EngineError, match=r"for CUDA up to 12\.8, answers with CUDA error 803 .* 580 or newer"):
        machine.gpu()


def test_an_older_tensorrt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.13.3.9"))
    with pytest.raises(EngineError, match=r"TensorRT is 10\.13\.3\.9, expected 11 or later"):
        machine.import_tensorrt()


def test_every_network_is_served_from_its_engine_alone(options: Options, built: list[str], progress: Progress) -> None:
    assert export(options, progress)
    assert built == NETWORKS
    for name in NETWORKS:
        assert {path.name for path in (options.output / name / "1").iterdir()} == {"model.plan"}
        assert (options.output / name / "1" / "model.plan").read_text() == f"engine of {name}"


def test_configurations_say_what_the_engines_are(options: Options, built: list[str], progress: Progress) -> None:
    export(options, progress)
    served = configs(options.output)
    assert set(built) == set(NETWORKS)
    gpu = model_config_pb2.ModelInstanceGroup.KIND_GPU
    for name in NETWORKS:
        config = served[name]
        assert (config.backend, config.platform) == ("tensorrt", "tensorrt_plan")
        assert config.default_model_filename == "model.plan"
        assert [(group.kind, group.count, list(group.gpus)) for group in config.instance_group] == [(gpu, 1, [0])]
        assert list(config.instance_group[0].profile) == ["0"]
        assert config.optimization.HasField("cuda")
        assert not config.optimization.cuda.graphs
        assert not config.dynamic_batching.HasField("default_queue_policy"), "Triton would sleep while calls wait"
        assert [warmup.batch_size for warmup in config.model_warmup] == sorted({1, config.max_batch_size})
    for name in ("text_encoder", "unet"):  # the size that the kernels are chosen for
        assert list(served[name].dynamic_batching.preferred_batch_size) == [served[name].max_batch_size]
    for name in ("multidiffusion", "multidiffusion_unary"):
        assert served[name].backend == "python"


def test_with_cuda_graphs_every_batch_size_has_one_and_nothing_else_differs(options: Options, built: list[str]) -> None:
    """Left to itself Triton captures 1, the preferred and the largest, and runs the others without."""
    export(options, lambda *_: None)
    assert built
    plain, graphs = configs(options.output), configs(options.output, "configs/cuda_graphs.pbtxt")
    assert set(graphs) == {"text_encoder", "unet"}, "a VAE's pictures have many shapes"
    for name, config in graphs.items():
        specs = config.optimization.cuda.graph_spec
        assert config.optimization.cuda.graphs
        assert [spec.batch_size for spec in specs] == list(range(1, config.max_batch_size + 1))
        assert not any(spec.input or spec.HasField("graph_lower_bound") for spec in specs), "the engine's best shape"
        config.optimization.cuda.CopyFrom(plain[name].optimization.cuda)
        assert config == plain[name]


def test_the_preferred_batch_follows_from_the_contract(options: Options, built: list[str]) -> None:
    file = options.repository / "unet" / "config.pbtxt"
    file.write_text(file.read_text().replace("max_batch_size: 16", "max_batch_size: 4"))
    export(options, lambda *_: None)
    assert built
    served = configs(options.output)
    preferred = {name: list(served[name].dynamic_batching.preferred_batch_size) for name in NETWORKS}
    assert preferred == {"text_encoder": [16], "unet": [4], "vae_decoder": [], "vae_encoder": []}


def test_there_are_as_many_unets_as_the_orchestrator_calls_at_a_time(options: Options, built: list[str]) -> None:
    export(options, lambda *_: None)
    assert built
    served = configs(options.output)
    limits = {name: each.string_value for name, each in served["multidiffusion"].parameters.items()}
    assert sum(group.count for group in served["unet"].instance_group) == int(limits["unet_calls"])


def test_static_dimensions_are_stated_and_warm_ups_fit_them(options: Options, built: list[str]) -> None:
    export(options, lambda *_: None)
    assert built
    served = configs(options.output)
    dims = {
        f"{name}.{tensor.name}": list(tensor.dims)
        for name in NETWORKS
        for tensor in (*served[name].input, *served[name].output)
    }
    assert dims == {
        "text_encoder.input_ids": [77],
        "text_encoder.last_hidden_state": [77, 16],
        "unet.sample": [4, WINDOW, WINDOW],
        "unet.timestep": [1],
        "unet.encoder_hidden_states": [77, 16],
        "unet.out_sample": [4, WINDOW, WINDOW],
        "vae_decoder.latent_sample": [4, -1, -1],
        "vae_decoder.sample": [3, -1, -1],
        "vae_encoder.sample": [3, -1, -1],
        "vae_encoder.latent_sample": [4, -1, -1],
    }
    warmups = {
        name: {key: list(tensor.dims) for key, tensor in served[name].model_warmup[-1].inputs.items()}
        for name in NETWORKS
    }
    assert warmups["unet"] == {
        "sample": [4, WINDOW, WINDOW],
        "timestep": [1],
        "encoder_hidden_states": [77, 16],
    }
    assert warmups["vae_decoder"] == {"latent_sample": [4, WINDOW, WINDOW]}
    assert warmups["vae_encoder"] == {"sample": [3, 8 * WINDOW, 8 * WINDOW]}


def test_engines_are_built_for_every_shape_that_the_orchestrator_asks_for(options: Options, built: list[str]) -> None:
    export(options, lambda *_: None)
    assert built
    engines = (read_manifest(options.output) or {})["engines"]
    shapes = {f"{name}.{key}": each for name in NETWORKS for key, each in engines[name]["shapes"].items()}
    assert shapes["unet.timestep"] == {"min": [1], "opt": [16], "max": [16]}
    assert shapes["unet.sample"] == {
        "min": [1, 4, WINDOW, WINDOW],
        "opt": [16, 4, WINDOW, WINDOW],
        "max": [16, 4, WINDOW, WINDOW],
    }
    assert shapes["text_encoder.input_ids"] == {"min": [1, 77], "opt": [16, 77], "max": [16, 77]}
    assert shapes["vae_decoder.latent_sample"] == {
        "min": [1, 4, WINDOW, WINDOW],
        "opt": [1, 4, WINDOW, WINDOW],
        "max": [1, 4, TILE, TILE],
    }
    assert shapes["vae_encoder.sample"]["max"] == [1, 3, 8 * TILE, 8 * TILE]
    settings = json.loads((options.output / "multidiffusion/1/checkpoint/settings.json").read_text())
    assert settings["vae_tile"] == TILE


def test_the_manifest_records_machine_precision_and_graph(options: Options, built: list[str]) -> None:
    export(options, lambda *_: None)
    assert built
    manifest = read_manifest(options.output) or {}
    unet = manifest["engines"]["unet"]
    assert {key: unet[key] for key in asdict(H100)} == asdict(H100)
    assert unet["precision"] == "fp32"
    assert unet["settings"] == {"optimization_level": 3, "workspace_mib": None}
    assert set(unet["onnx"]) == {"model.onnx"}
    assert Rebuild(**manifest["rebuild"]) == options.rebuild()
    assert "unet/1/model.plan" in manifest["files"]


def test_a_stopped_export_goes_on_with_the_first_network_that_has_no_engine(
    options: Options, built: list[str], progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("multsd_export.build.compose", stopped)
        with pytest.raises(KeyboardInterrupt):
            export(options, progress)
    (options.work_dir / "vae_encoder-engine" / "model.plan").unlink()
    built.clear()
    assert export(options, progress)
    assert built == ["vae_encoder"]


def stopped(*_args: Any) -> None:
    raise KeyboardInterrupt


def test_engines_are_built_again_for_another_machine_and_for_other_settings(
    options: Options, built: list[str], progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(options, progress)
    assert not export(options, progress)
    built.clear()
    monkeypatch.setattr(pipeline, "this_machine", lambda: L4)
    assert export(options, progress)
    assert built == NETWORKS
    built.clear()
    assert export(replace(options, engines=EngineSettings(optimization_level=5)), progress)
    assert built == NETWORKS


def test_an_engine_of_another_machine_is_refused_with_the_command_that_builds_it_again(
    options: Options, built: list[str]
) -> None:
    export(options, lambda *_: None)
    assert built
    manifest = read_manifest(options.output) or {}
    check_engines(manifest, H100, options.output)
    with pytest.raises(EngineError) as refused:
        check_engines(manifest, L4, options.output, "checkpoint")
    assert str(refused.value) == (
        "text_encoder: the engine was built with TensorRT 11.4.0.106 on NVIDIA H100 80GB HBM3 (compute capability 9.0)"
        ", here is TensorRT 11.4.0.106 on NVIDIA L4 (compute capability 8.9); build it again here: multsd-export "
        f"--checkpoint checkpoint --output {options.output} --profile tensorrt --precision fp32 --optimization-level 3 "
        f"--repository {options.repository} --work-dir {options.work_dir}"
    )
    with pytest.raises(EngineError, match=r"built with TensorRT 11\.4\.0\.106 .*, here is TensorRT 11\.5\.0\.1 on"):
        check_engines(manifest, replace(H100, tensorrt="11.5.0.1"), options.output)


@pytest.mark.parametrize(
    ("built_on", "here"),
    [
        (Machine("11.4.0.106", "NVIDIA L40S", "8.9"), L4),
        (H100, replace(H100, gpu="NVIDIA H100 PCIe")),
        (H100, replace(H100, gpu="NVIDIA H100 80GB HBM3 MIG 1g.10gb")),
    ],
)
def test_an_engine_of_another_gpu_with_the_same_compute_capability_is_refused(built_on: Machine, here: Machine) -> None:
    manifest = {"engines": {"unet": asdict(built_on)}, "rebuild": asdict(REBUILD)}
    with pytest.raises(EngineError, match=f"{here.gpu} .*; build it again here: multsd-export "):
        check_engines(manifest, here, Path("repository"))


class CapturedError(Exception):
    """Ends an export that only its options are wanted of."""


def exported_options(command: list[str], monkeypatch: pytest.MonkeyPatch) -> Options:
    """What the command line asks for."""
    asked: list[Options] = []

    def capture(options: Options, _progress: Any) -> bool:
        asked.append(options)
        raise CapturedError

    with monkeypatch.context() as patch:
        patch.setattr("multsd_export.cli.export", capture)
        assert command[0] == "multsd-export"
        result = CliRunner().invoke(app, command[1:])
    assert isinstance(result.exception, CapturedError), result.output
    return asked[0]


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--optimization-level", "5", "--workspace-mib", "4096", "--precision", "fp32"],
        ["--lora", "pixel art.safetensors:0.8", "--lora", "plain.safetensors"],
    ],
)
def test_the_command_that_builds_again_asks_for_what_was_exported(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "check point").mkdir()
    for name in ("pixel art.safetensors", "plain.safetensors"):
        (tmp_path / name).write_bytes(b"weights")
    arguments = ["--checkpoint", "check point", "--profile", "tensorrt", "--work-dir", "kept files"]
    first = exported_options(["multsd-export", *arguments, "--output", str(tmp_path / "my models"), *more], monkeypatch)
    rebuild = first.rebuild()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = exported_options(shlex.split(rebuild.command(first.output)), monkeypatch)
    assert again.rebuild() == rebuild
    assert [lora.record() for lora in again.loras] == [lora.record() for lora in first.loras]
    assert (again.engines, again.output, again.profile) == (first.engines, first.output, first.profile)
    assert again.precision == (first.precision or TENSORRT.precision)
    assert again.checkpoint == tmp_path / "check point"
    assert (again.repository, again.work_dir) == (tmp_path / "model_repository", tmp_path / "kept files")


def test_the_command_names_a_hub_repository_as_it_was_named() -> None:
    named = f"owner/model@{'a' * 40}"
    options = Options(Path("/cache/snapshot"), Path("out"), Path("r"), Path("w"), TENSORRT, hub_checkpoint=named)
    assert f"--checkpoint {named} --output out " in options.rebuild().command(options.output)


def test_check_engines_needs_a_composed_repository(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check-engines", str(tmp_path)])
    assert result.exit_code == 1
    assert "expected a composed repository with manifest.json, found none" in result.output


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[]", ": expected an object, found []; compose it again with --force."),
        ('{"name": "my shop"}', ": format: expected 4, found none; compose it again with --force."),
        ('{"format": 1}', ": format: expected 4, found 1; compose it again with --force."),
        ('{"format"', " is damaged, no JSON (Expecting ':' delimiter: line 1 column 10 (char 9)); remove "),
        ("", " is damaged, no JSON (Expecting value: line 1 column 1 (char 0)); remove "),
        ("[" * 100_000, " is damaged, no JSON (maximum recursion depth exceeded"),
    ],
    ids=["a list", "another program's", "an older one", "truncated", "empty", "nested"],
)
def test_check_engines_needs_the_manifest_of_an_export(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    result = CliRunner().invoke(app, ["check-engines", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output.startswith(f"multsd-export: {tmp_path / 'manifest.json'}{found}")


MANIFEST: dict[str, Any] = {
    "format": 4,
    "profile": "tensorrt",
    "device": "gpu",
    "precision": "fp16",
    "checkpoint": {"digest": "sha256:1"},
    "limits": {"unet_max_batch_size": 16, "vae_tile": TILE},
    "parity": {},
    "networks": {"unet": {"parameters": 1}},
    "engines": {"unet": asdict(H100)},
    "files": {},
    "rebuild": asdict(REBUILD),
}


def refused_manifest(content: Mapping[str, Any], folder: Path) -> str:
    """What is said of it, after its name."""
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(RepositoryError) as refused:
        composed_manifest(folder)
    return (
        str(refused.value)
        .removeprefix(f"{folder / 'manifest.json'}: ")
        .removesuffix("; compose it again with --force.")
    )


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"profile": "abacus"}, "profile: expected cpu, tensorrt, torch, found 'abacus'"),
        ({"precision": None}, "precision: expected fp32, fp16, found None"),
        ({"checkpoint": "sha256:1"}, "checkpoint: expected an object, found 'sha256:1'"),
        ({"checkpoint": {}}, "checkpoint.digest: expected text, found none"),
        ({"limits": {"unet_max_batch_size": 16}}, "limits.vae_tile: expected a whole number, found none"),
        ({"networks": {}}, "networks: expected at least one, found {}"),
        ({"networks": {"unet": {}}}, "networks.unet.parameters: expected a whole number, found none"),
        ({"engines": {}}, "engines: expected those of unet, found []"),
        ({"engines": {"unet": []}}, "engines.unet: expected an object, found []"),
        ({"engines": {"unet": {}}}, "engines.unet.tensorrt: expected text, found none"),
        ({"files": {"unet/1/model.plan": None}}, "files.unet/1/model.plan: expected text, found None"),
        ({"rebuild": None}, "rebuild: expected an object, found None"),
        ({"rebuild": asdict(REBUILD) | {"loras": "a"}}, "rebuild.loras: expected a list, found 'a'"),
        ({"rebuild": asdict(REBUILD) | {"loras": [1]}}, "rebuild.loras[0]: expected text, found 1"),
    ],
)
def test_a_damaged_manifest_is_told_with_its_field(fields: Mapping[str, Any], found: str, tmp_path: Path) -> None:
    assert refused_manifest({**MANIFEST, **fields}, tmp_path) == found


@pytest.mark.parametrize("field", [each for each in MANIFEST if each != "format"])
def test_a_manifest_that_lacks_a_field_is_refused(field: str, tmp_path: Path) -> None:
    content = {name: value for name, value in MANIFEST.items() if name != field}
    assert refused_manifest(content, tmp_path).startswith(f"{field}: expected ")


@pytest.mark.parametrize("field", [each.name for each in fields(Rebuild)])
def test_a_manifest_that_lacks_an_option_of_the_export_is_refused(field: str, tmp_path: Path) -> None:
    content = {name: value for name, value in asdict(REBUILD).items() if name != field}
    assert refused_manifest(MANIFEST | {"rebuild": content}, tmp_path).startswith(f"rebuild.{field}: expected ")


def test_a_whole_manifest_is_taken(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    assert composed_manifest(tmp_path) == MANIFEST


def test_check_engines_refuses_a_repository_without_engines(exported: Exported) -> None:
    result = CliRunner().invoke(app, ["check-engines", str(exported.options.output)])
    assert result.exit_code == 1
    assert result.output.strip().endswith("the profile is cpu, which has no engines.")


def test_check_engines_says_for_which_machine_they_are(
    options: Options, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    export(options, lambda *_: None)
    assert built
    monkeypatch.setattr("multsd_export.cli.this_machine", lambda: H100)
    result = CliRunner().invoke(app, ["check-engines", str(options.output)])
    assert result.exit_code == 0
    assert "4 engines belong to this machine (TensorRT 11.4.0.106, NVIDIA H100 80GB HBM3" in result.output
    monkeypatch.setattr("multsd_export.cli.this_machine", lambda: L4)
    result = CliRunner().invoke(app, ["check-engines", str(options.output)])
    assert result.exit_code == 1
    assert f"build it again here: multsd-export --checkpoint {options.checkpoint} --output" in result.output


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "expected a file with the digest {expected}, found none"),
        (b"", "expected the digest {expected}, found e3b0c44298fc (0 bytes)"),
        (b"engine of unEt", "expected the digest {expected}, found "),
    ],
    ids=["missing", "empty", "of the right size"],
)
def test_check_engines_refuses_a_plan_that_is_not_the_one_that_was_built(
    content: bytes | None,
    found: str,
    options: Options,
    built: list[str],
    progress: Progress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export(options, progress)
    assert built
    monkeypatch.setattr("multsd_export.cli.this_machine", lambda: H100)
    plan = options.output / "unet" / "1" / "model.plan"
    expected = file_digest(plan)[:12]
    plan.unlink()
    if content is not None:
        plan.write_bytes(content)
    result = CliRunner().invoke(app, ["check-engines", str(options.output)])
    assert result.exit_code == 1
    assert result.output.startswith(f"multsd-export: {plan}: {found.format(expected=expected)}")
    again = options.rebuild().command(options.output)
    assert result.output.strip().endswith(f"; build it again here: {again}")
    assert export(options, progress), "the same command mends it"
    assert CliRunner().invoke(app, ["check-engines", str(options.output)]).exit_code == 0


def test_check_engines_refuses_a_plan_that_the_manifest_does_not_know(
    options: Options, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    export(options, lambda *_: None)
    assert built
    manifest = read_manifest(options.output) or {}
    del manifest["files"]["unet/1/model.plan"]
    (options.output / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr("multsd_export.cli.this_machine", lambda: H100)
    result = CliRunner().invoke(app, ["check-engines", str(options.output)])
    assert result.exit_code == 1
    assert "unet/1/model.plan: the manifest's files lack it; build it again here: " in result.output
    assert result.output.strip().endswith(" --force")
    assert export(replace(options, force=True), lambda *_: None)
    assert CliRunner().invoke(app, ["check-engines", str(options.output)]).exit_code == 0


def test_progress_follows_the_innermost_phase_and_never_falls() -> None:
    shares: list[float] = []
    tree = PhaseTree(shares.append)
    tree.start("build", None, 4)
    tree.complete("build", 0)
    tree.start("tactics", "build", 10)
    tree.complete("tactics", 4)
    tree.finish("tactics")
    tree.complete("build", 1)
    tree.finish("build")
    assert shares == [0.25, 0.375, 0.375, 0.5, 1.0]


def test_a_phase_that_nobody_has_begun_ends_no_build() -> None:
    shares: list[float] = []
    tree = PhaseTree(shares.append)
    tree.complete("unknown", 0)
    tree.finish("unknown")
    assert shares == [0, 0]


def test_engines_are_in_half_precision_unless_another_is_asked_for() -> None:
    assert TENSORRT.precision is Precision.FP16


def test_a_shape_range_has_three_shapes_of_one_length(options: Options, built: list[str]) -> None:
    export(options, lambda *_: None)
    assert built
    for engine in (read_manifest(options.output) or {})["engines"].values():
        for shapes in engine["shapes"].values():
            low, best, high = ShapeRange(**shapes).min, ShapeRange(**shapes).opt, ShapeRange(**shapes).max
            assert all(a <= b <= c for a, b, c in zip(low, best, high, strict=True))
