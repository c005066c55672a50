"""An export is whole or not there, and nothing is done twice."""

import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from google.protobuf import text_format
from safetensors.torch import load_file, save_file
from tritonclient.grpc import model_config_pb2

from multsd_export import artefacts, compose, pipeline
from multsd_export.audit import Audit
from multsd_export.digests import file_digest, folder_digests
from multsd_export.errors import CheckpointError, ContractError, ExportError, RepositoryError
from multsd_export.onnx_export import export_onnx
from multsd_export.pipeline import Options, export

from .conftest import WINDOW, Exported

Progress = Callable[[str, float], None]
NETWORK_NAMES = {"text_encoder", "unet", "vae_decoder", "vae_encoder"}


@pytest.fixture
def options(exported: Exported, tmp_path: Path) -> Options:
    """A finished export that the test may change."""
    return exported.copy(tmp_path)


@pytest.fixture
def exported_networks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the networks that are exported to ONNX during the test."""
    names: list[str] = []

    def recording(network: Any, *args: Any) -> Audit:
        names.append(network.name)
        return export_onnx(network, *args)

    monkeypatch.setattr(artefacts, "export_onnx", recording)
    return names


def read_json(file: Path) -> Any:
    return json.loads(file.read_text())


def change_scheduler(options: Options, beta_end: float = 0.03) -> None:
    file = options.checkpoint / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(read_json(file) | {"beta_end": beta_end}))


def change_weights(options: Options, component: str) -> None:
    (file,) = (options.checkpoint / component).glob("*.safetensors")
    weights = load_file(file)
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name] * 1.5}, file, metadata={"format": "pt"})


def test_every_model_is_there_with_contract_and_settings_merged(exported: Exported) -> None:
    output = exported.options.output
    configs = {}
    for file in sorted(output.glob("*/config.pbtxt")):
        configs[file.parent.name] = text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
    assert set(configs) == {"multidiffusion", "multidiffusion_unary"} | NETWORK_NAMES
    assert {config.backend for config in configs.values()} == {"python"}
    counts = {name: [(group.kind, group.count) for group in c.instance_group] for name, c in configs.items()}
    cpu = model_config_pb2.ModelInstanceGroup.KIND_CPU
    assert counts == {name: [(cpu, 1)] for name in configs} | {"multidiffusion_unary": [(cpu, 4)]}


def test_every_network_has_its_graph_and_the_runner(exported: Exported) -> None:
    for name in NETWORK_NAMES:
        files = {path.name for path in (exported.options.output / name / "1").iterdir()}
        assert files == {"model.onnx", "model.py", "rows.py", "triton_requests.py"}


def test_the_orchestrators_code_is_copied(exported: Exported) -> None:
    for name in ("multidiffusion", "multidiffusion_unary"):
        source = folder_digests(exported.options.repository / name / "1")
        copied = folder_digests(exported.options.output / name / "1")
        assert source.items() <= copied.items()


def test_the_orchestrator_gets_the_checkpoints_numbers(exported: Exported) -> None:
    folder = exported.options.output / "multidiffusion" / "1" / "checkpoint"
    names = {path.name for path in folder.iterdir()}
    assert names == {"settings.json", "scheduler_config.json", "tokenizer.json", "palette.safetensors"}
    settings = read_json(folder / "settings.json")
    assert settings.pop("digest").startswith("sha256:")
    assert settings == {
        "name": "checkpoint",
        "family": "sd1",
        "prediction_type": "v_prediction",
        "window": WINDOW,
        "view_stride": WINDOW // 8,
        "latent_channels": 4,
        "vae_scale_factor": 8,
        "scaling_factor": 0.5,
        "max_length": 77,
        "pad_token_id": 515,
        "embedding_dim": 16,
        "text_encoders": [
            {
                "model": "text_encoder",
                "tokenizer": "tokenizer.json",
                "pad_token_id": 515,
                "max_length": 77,
                "outputs": ["last_hidden_state"],
            }
        ],
        "pooled_dim": None,
        "time_ids": False,
        "force_zeros_for_empty_prompt": False,
        "unet_max_batch_size": 16,
        "vae_tile": 128,
    }


def test_the_manifest_lists_every_file_with_its_digest_and_every_parity(exported: Exported) -> None:
    output = exported.options.output
    manifest = read_json(output / "manifest.json")
    files = folder_digests(output)
    assert files.pop("manifest.json") == file_digest(output / "manifest.json")
    assert manifest["files"] == files
    networks = manifest["parity"]["networks"]
    assert set(networks) == NETWORK_NAMES
    assert all(0 < facts["relative_error"] <= manifest["parity"]["limits"]["fp32"] for facts in networks.values())
    assert networks["unet"]["rows_independent"] is True
    assert manifest["checkpoint"]["name"] == "checkpoint"


def test_a_second_run_does_nothing(options: Options, progress: Progress) -> None:
    manifest = options.output / "manifest.json"
    before = manifest.stat().st_mtime_ns
    assert not export(options, progress)
    assert manifest.stat().st_mtime_ns == before


def test_a_second_run_does_not_import_torch(options: Options) -> None:
    arguments = ["--checkpoint", options.checkpoint, "--output", options.output, "--work-dir", options.work_dir]
    arguments += ["--repository", options.repository]
    program = "import sys; from multsd_export.cli import app; app(standalone_mode=False); print('torch' in sys.modules)"
    path = str(Path(artefacts.__file__).parents[1])
    command = [sys.executable, "-c", program, *map(str, arguments)]
    run = subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
    assert "up to date" in run.stderr


def test_a_damaged_output_is_composed_again(options: Options, progress: Progress, exported_networks: list[str]) -> None:
    file = options.output / "unet" / "1" / "model.onnx"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    assert export(options, progress)
    assert file.read_bytes() == whole
    assert exported_networks == []


@pytest.mark.parametrize(
    "damaged", ["", "\0\0", '{"key": ', "[]", "{}"], ids=["empty", "zeros", "cut", "list", "fields"]
)
def test_a_network_whose_stamp_is_damaged_is_exported_again(
    options: Options, progress: Progress, exported_networks: list[str], damaged: str
) -> None:
    (options.work_dir / "vae_encoder" / "stamp.json").write_text(damaged)
    shutil.rmtree(options.output)
    assert export(options, progress)
    assert exported_networks == ["vae_encoder"]


def test_a_changed_scheduler_exports_no_network(
    options: Options, progress: Progress, exported_networks: list[str]
) -> None:
    change_scheduler(options)
    assert export(options, progress)
    assert exported_networks == []
    copied = options.output / "multidiffusion" / "1" / "checkpoint" / "scheduler_config.json"
    assert read_json(copied)["beta_end"] == 0.03
    assert not export(options, progress)


def test_a_changed_text_encoder_is_the_only_network_exported(
    options: Options, progress: Progress, exported_networks: list[str]
) -> None:
    change_weights(options, "text_encoder")
    palette = options.work_dir / "palette" / "palette.safetensors"
    before = palette.stat().st_mtime_ns
    assert export(options, progress)
    assert exported_networks == ["text_encoder"]
    assert palette.stat().st_mtime_ns == before


@pytest.mark.parametrize("step", ["_write_checkpoint", "_copy_artefact"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_composition_leaves_the_old_one_and_nothing_half_made(
    options: Options, progress: Progress, monkeypatch: pytest.MonkeyPatch, step: str, error: type[BaseException]
) -> None:
    change_scheduler(options)
    before = folder_digests(options.output)
    with monkeypatch.context() as patch:
        patch.setattr(compose, step, raising(error))
        with pytest.raises(error):
            export(options, progress)
    assert folder_digests(options.output) == before
    names = {path.name for path in options.output.parent.iterdir()}
    assert names == {"checkpoint", "repository", "work_dir", "output", ".output.lock"}
    assert export(options, progress)


def test_an_interrupted_first_composition_leaves_no_output(
    options: Options, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(options, output=options.output.with_name("first"))
    with monkeypatch.context() as patch:
        patch.setattr(compose, "_write_checkpoint", raising(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export(options, progress)
    assert not options.output.exists()
    assert export(options, progress)
    assert (options.output / "manifest.json").is_file()


def test_what_a_killed_export_left_behind_is_removed(options: Options, progress: Progress) -> None:
    for name in (".output.partial", ".output.old"):
        (options.output.parent / name / "unet").mkdir(parents=True)
    change_scheduler(options)
    assert export(options, progress)
    assert [path.name for path in options.output.parent.glob(".output.*")] == [".output.lock"]


def test_two_exports_into_one_output_wait_for_each_other(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their work folders differ; without a turn each removed what the other wrote, and no output was left."""
    inside: list[str] = []
    asked: list[int] = []
    waited: list[float] = []
    other_is_there = Event()
    write, lock = compose._write_checkpoint, fcntl.flock

    def flock(file: Any, operation: int) -> None:
        if Path(file.name).name == ".output.lock":
            asked.append(operation)
            if asked.count(fcntl.LOCK_EX):  # it is refused before it waits
                other_is_there.set()
        lock(file, operation)

    def progress(stage: str, share: float) -> None:
        if stage == pipeline.WAITING:
            waited.append(share)

    def slow(*args: Any) -> None:
        inside.append("in")
        assert other_is_there.wait(60)
        write(*args)
        inside.append("out")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(compose, "_write_checkpoint", slow)
    shutil.copytree(options.work_dir, tmp_path / "another")
    both = [replace(options, force=True, work_dir=folder) for folder in (options.work_dir, tmp_path / "another")]
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(lambda each: export(each, progress), both)) == [True, True]
    assert inside == ["in", "out"] * 2
    assert waited == [0, 1]
    assert not export(options, progress)


def test_a_network_that_fails_its_comparison_is_not_kept(
    options: Options, progress: Progress, monkeypatch: pytest.MonkeyPatch, exported_networks: list[str]
) -> None:
    change_weights(options, "text_encoder")
    before = folder_digests(options.work_dir / "text_encoder")
    with monkeypatch.context() as patch:
        patch.setattr(artefacts, "measure_parity", raising(ExportError))
        with pytest.raises(ExportError):
            export(options, progress)
    assert folder_digests(options.work_dir / "text_encoder") == before
    assert export(options, progress)
    assert exported_networks == ["text_encoder", "text_encoder"]


def test_a_changed_contract_that_a_network_breaks_stops_the_export(options: Options, progress: Progress) -> None:
    file = options.repository / "unet" / "config.pbtxt"
    file.write_text(file.read_text().replace('"out_sample"', '"noise_pred"'))
    before = folder_digests(options.output)
    with pytest.raises(ContractError, match=r"unet: outputs are \['out_sample'\]"):
        export(options, progress)
    assert folder_digests(options.output) == before


def test_a_missing_model_is_named(options: Options, progress: Progress) -> None:
    (options.repository / "unet" / "config.pbtxt").unlink()
    with pytest.raises(RepositoryError, match="unet missing"):
        export(options, progress)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("thesis.txt", "..."),
        ("manifest.json", '{"name": "my shop", "start_url": "/", "icons": []}'),  # a web application's
        ("manifest.json", '{"name": "my shop", "version": "1.0", "format": 2, "files": ["index.html"]}'),
        ("manifest.json", "[]"),
    ],
)
def test_a_folder_that_no_export_made_is_never_replaced(
    options: Options, progress: Progress, tmp_path: Path, name: str, text: str
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / name).write_text(text)
    shutil.rmtree(options.checkpoint)  # whatever else is wrong, this is told first
    with pytest.raises(RepositoryError, match=r"precious exists and has no manifest\.json of an export; remove it or"):
        export(replace(options, output=precious), progress)
    assert (precious / name).read_text() == text


def test_an_output_whose_manifest_is_damaged_is_not_replaced_and_told_so(options: Options, progress: Progress) -> None:
    manifest = options.output / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    with pytest.raises(RepositoryError) as refused:
        export(replace(options, force=True), progress)
    assert str(refused.value).startswith(f"{manifest} is damaged, no JSON (Expecting ")
    assert f"; remove {options.output} if an export made it" in str(refused.value)
    assert (options.output / "unet").is_dir()


def test_a_file_in_the_outputs_place_is_never_replaced(options: Options, progress: Progress, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("notes")
    with pytest.raises(RepositoryError, match=r"precious exists and has no manifest\.json of an export; remove it or"):
        export(replace(options, output=precious), progress)
    assert precious.read_text() == "notes"


def test_an_output_that_is_a_link_stays_one(options: Options, progress: Progress, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(options.output)
    linked = replace(options, output=link)
    for beta_end in (0.03, 0.04):  # what an export left of a link ended all later ones
        change_scheduler(options, beta_end)
        assert export(linked, progress)
    assert link.readlink() == options.output
    assert not export(options, progress)
    assert not export(linked, progress)


def test_the_current_folder_may_be_the_output(
    options: Options, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_scheduler(options)
    monkeypatch.chdir(options.output)
    assert export(replace(options, output=Path()), progress)
    assert not export(options, progress)


@pytest.mark.parametrize("needed", ["checkpoint", "repository", "work_dir"])
def test_an_output_that_holds_what_the_export_needs_is_refused(
    options: Options, progress: Progress, tmp_path: Path, needed: str
) -> None:
    moved = options.output / "deep" / needed
    moved.parent.mkdir()
    getattr(options, needed).rename(moved)
    (tmp_path / "link").symlink_to(options.output)
    changed: dict[str, Any] = {"output": tmp_path / "link", needed: moved}
    with pytest.raises(RepositoryError, match=f"output would be replaced, and .*{needed} is in it; choose another"):
        export(replace(options, **changed), progress)
    assert moved.exists()


def test_a_repository_of_an_older_format_is_replaced(options: Options, progress: Progress) -> None:
    file = options.output / "manifest.json"
    kept = ("profile", "precision", "checkpoint", "versions", "limits", "parity", "inputs", "files")
    file.write_text(json.dumps({"format": 1} | {key: read_json(file)[key] for key in kept}))
    change_scheduler(options)
    assert export(options, progress)
    assert read_json(file)["format"] > 1


def damage_by_cutting(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def damage_by_leaving_out(file: Path) -> None:
    weights = load_file(file)
    del weights[min(weights)]
    save_file(weights, file, metadata={"format": "pt"})


def damage_by_another_shape(file: Path) -> None:
    weights = load_file(file)
    weights[min(weights)] = weights[min(weights)].reshape(1, -1)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_by_cutting, "the weights cannot be loaded"),
        (damage_by_leaving_out, "1 weights are missing"),
        (damage_by_another_shape, "the weights cannot be loaded"),
    ],
)
@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae"])
def test_weights_that_are_damaged_or_incomplete_are_refused(
    options: Options, progress: Progress, component: str, damage: Callable[[Path], None], message: str
) -> None:
    (file,) = (options.checkpoint / component).glob("*.safetensors")
    damage(file)
    with pytest.raises(CheckpointError, match=f"^{component}: {message}"):
        export(options, progress)


@pytest.mark.parametrize(
    ("component", "key", "value"),
    [
        ("unet", "layers_per_block", None),
        ("vae", "norm_num_groups", "2"),
        ("text_encoder", "num_attention_heads", 0),
        ("text_encoder", "num_hidden_layers", "1"),
    ],
)
def test_a_config_that_makes_no_network_is_refused(
    options: Options, progress: Progress, component: str, key: str, value: Any
) -> None:
    file = options.checkpoint / component / "config.json"
    file.write_text(json.dumps(read_json(file) | {key: value}))
    with pytest.raises(CheckpointError, match=f"^{component}: the weights cannot be loaded: "):
        export(options, progress)


def raising(error: type[BaseException]) -> Callable[..., None]:
    def fail(*_args: object) -> None:
        raise error

    return fail
