"""The command says in one sentence what is wrong."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from multsd_export.cli import app
from multsd_export.engines.settings import EngineSettings
from multsd_export.pipeline import Options
from multsd_export.profiles import Device, torch_profile

from .conftest import Exported


def test_a_refused_checkpoint_is_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--checkpoint", str(tmp_path / "none"), "--output", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.output.strip() == (
        f"multsd-export: {tmp_path / 'none'} does not exist; name a checkpoint folder in diffusers layout."
    )


def test_an_unknown_profile_is_wrong_usage(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--checkpoint", str(tmp_path), "--profile", "abacus"])
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("profile", "option", "taken_by"),
    [
        ("cpu", ["--device", "cpu"], "torch"),
        ("tensorrt", ["--device", "gpu"], "torch"),
        ("cpu", ["--optimization-level", "3"], "tensorrt"),
        ("torch", ["--optimization-level", "0"], "tensorrt"),
        ("cpu", ["--workspace-mib", "1024"], "tensorrt"),
        ("torch", ["--workspace-mib", "1024"], "tensorrt"),
    ],
)
def test_an_option_of_another_profile_is_wrong_usage(
    profile: str, option: list[str], taken_by: str, tmp_path: Path
) -> None:
    arguments = ["--checkpoint", str(tmp_path / "none"), "--profile", profile, *option]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert f"Invalid value for {option[0]}: only the {taken_by} profile takes it, found --profile {profile}" in (
        result.output
    )


@pytest.mark.parametrize(
    "option", [["--force"], ["--lora", "style.safetensors"], ["--checkpoint", "folder"], ["--work-dir", "folder"]]
)
@pytest.mark.parametrize("command", [["verify", "repository", "--checkpoint", "folder"], ["check-engines", "folder"]])
def test_an_exports_option_before_a_command_is_wrong_usage(option: list[str], command: list[str]) -> None:
    result = CliRunner().invoke(app, [*option, *command], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert f"Invalid value for {option[0]}: only an export takes it here; options of {command[0]} follow" in (
        result.output
    )


def test_the_images_entry_point_is_one_of_a_command_too(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--repository", str(tmp_path), "check-engines", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "none: expected a composed repository with manifest.json, found none." in result.output


def options_of(arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """What an export of a folder is asked for; it changes nothing."""
    asked: list[Options] = []

    def keep(options: Options, _progress: object) -> bool:
        asked.append(options)
        return False

    monkeypatch.setattr("multsd_export.cli.export", keep)
    result = CliRunner().invoke(app, ["--checkpoint", str(folder), "--work-dir", str(folder), *arguments])
    assert result.exit_code == 0, result.output
    return asked[0]


@pytest.mark.parametrize(
    ("option", "device"), [([], "gpu"), (["--device", "gpu"], "gpu"), (["--device", "cpu"], "cpu")]
)
def test_the_torch_profile_runs_on_a_gpu_unless_another_device_is_named(
    option: list[str], device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert options_of(["--profile", "torch", *option], tmp_path, monkeypatch).profile == torch_profile(Device(device))


@pytest.mark.parametrize(
    ("option", "settings"),
    [
        ([], EngineSettings()),
        (["--optimization-level", "0"], EngineSettings(optimization_level=0)),
        (["--workspace-mib", "1024"], EngineSettings(workspace_mib=1024)),
    ],
)
def test_engines_are_built_with_the_settings_that_are_named(
    option: list[str], settings: EngineSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert options_of(["--profile", "tensorrt", *option], tmp_path, monkeypatch).engines == settings


def test_a_lora_that_is_not_there_is_one_sentence(checkpoint_folder: Path, tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(checkpoint_folder), "--lora", str(tmp_path / "style.safetensors:0.5")]
    result = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.output.strip() == f"multsd-export: lora: {tmp_path / 'style.safetensors'} does not exist."


def test_no_checkpoint_controls_the_terminal(checkpoint_folder: Path, tmp_path: Path) -> None:
    name = "\x1b]0;title\x07\x1b[2J\x9b31m"
    save_file({f"unet.{name}": torch.zeros(1)}, tmp_path / "style.safetensors")
    arguments = ["--checkpoint", str(checkpoint_folder), "--lora", str(tmp_path / "style.safetensors")]
    result = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "out"), "--work-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert r"has unet.\x1b]0;title\x07\x1b[2J\x9b31m, which is no part of a LoRA's layer." in result.output
    assert not set(name) & set(result.output) & {"\x1b", "\x07", "\x9b"}


def test_an_export_prints_where_it_went_and_how_near_it_is(exported: Exported, tmp_path: Path) -> None:
    options = exported.copy(tmp_path)
    arguments = ["--checkpoint", options.checkpoint, "--output", options.output, "--work-dir", options.work_dir]
    arguments += ["--repository", options.repository, "--force"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0
    assert f"{options.output}: written" in result.output
    assert "from torch" in result.output
