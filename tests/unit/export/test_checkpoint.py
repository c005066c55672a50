"""Checkpoints are read from their own files; what is not supported is refused by name."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multsd_export.checkpoint import read_checkpoint
from multsd_export.errors import CheckpointError
from multsd_export.families import SUPPORTED

Edit = Callable[[Path], None]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SCHEDULER = "scheduler/scheduler_config.json"


def set_value(file: str, key: str, value: Any) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return edit


def drop_value(file: str, key: str) -> Edit:
    def edit(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        values.pop(key)
        (folder / file).write_text(json.dumps(values))

    return edit


def remove(file: str) -> Edit:
    return lambda folder: (folder / file).unlink()


def rename(file: str, name: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / file).rename((folder / file).with_name(name))

    return edit


def write(file: str, text: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / file).write_text(text)

    return edit


@pytest.fixture
def folder(checkpoint_folder: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "checkpoint"
    shutil.copytree(checkpoint_folder, copy)
    return copy


def test_numbers_come_from_the_checkpoints_own_configs(checkpoint_folder: Path) -> None:
    checkpoint = read_checkpoint(checkpoint_folder)
    assert checkpoint.family == "sd1"
    assert checkpoint.window == 16
    assert checkpoint.vae_scale_factor == 8
    assert checkpoint.scaling_factor == 0.5
    assert [facts.max_length for facts in checkpoint.text_encoders] == [77]
    assert checkpoint.embedding_dim == 16
    assert checkpoint.prediction_type == "v_prediction"
    assert (checkpoint.name, checkpoint.revision) == ("checkpoint", None)


@pytest.mark.parametrize(
    ("folder", "name", "revision"),
    [
        (f"models--owner--model/snapshots/{COMMIT}", "owner/model", COMMIT),
        ("models--owner--model/snapshots/main", "main", None),
        (f"data/snapshots/{COMMIT}", COMMIT, None),
        ("data/snapshots/2024-05-01", "2024-05-01", None),
    ],
)
def test_a_hub_snapshot_gives_name_and_revision(
    checkpoint_folder: Path, tmp_path: Path, folder: str, name: str, revision: str | None
) -> None:
    shutil.copytree(checkpoint_folder, tmp_path / folder)
    checkpoint = read_checkpoint(tmp_path / folder)
    assert (checkpoint.name, checkpoint.revision) == (name, revision)


def test_the_digest_changes_with_any_file_that_is_used(folder: Path) -> None:
    before = read_checkpoint(folder)
    (folder / "README.md").write_text("not used")
    assert read_checkpoint(folder).digest == before.digest
    set_value(SCHEDULER, "beta_end", 0.03)(folder)
    after = read_checkpoint(folder)
    assert after.digest != before.digest
    assert after.component_digests("unet") == before.component_digests("unet")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_value("model_index.json", "_class_name", "StableDiffusionXLPipeline"), "text_encoder_2: expected model.s"),
        *(
            (set_value("model_index.json", "_class_name", name), f"{name} is not supported; supported: {SUPPORTED}.")
            for name in (
                "FluxPipeline",
                "StableDiffusion3Pipeline",
                "StableDiffusionControlNetPipeline",
                "StableDiffusionInpaintPipeline",
                "StableDiffusionInstructPix2PixPipeline",
                "StableDiffusionXLImg2ImgPipeline",
                "StableDiffusionXLControlNetPipeline",
            )
        ),
        (
            set_value("unet/config.json", "use_linear_projection", True),
            "hidden_act beside use_linear_projection=True in unet is 'quick_gelu'; supported: 'gelu'",
        ),
        (
            set_value("text_encoder/config.json", "hidden_act", "gelu"),
            "hidden_act beside use_linear_projection=False in unet is 'gelu'; supported: 'quick_gelu'",
        ),
        (set_value("unet/config.json", "time_cond_proj_dim", 256), "unet: time_cond_proj_dim is 256; supported: None"),
        (set_value("vae/config.json", "latents_mean", [0, 0, 0, 0]), "vae: latents_mean is [0, 0, 0, 0]"),
        (set_value("unet/config.json", "in_channels", 9), "unet: in_channels is 9; supported: 4"),
        (set_value("unet/config.json", "addition_embed_type", "text_time"), "addition_embed_type is 'text_time'"),
        (set_value("unet/config.json", "cross_attention_dim", 768), "cross_attention_dim is 768; supported: 16"),
        (
            set_value("unet/config.json", "sample_size", [64, 96]),
            "sample_size is [64, 96], expected a positive integer",
        ),
        (set_value("unet/config.json", "sample_size", 20), "unet: sample_size is 20; supported: multiples of 8"),
        (set_value("vae/config.json", "latent_channels", 16), "latent_channels is 16; supported: 4"),
        (
            set_value("vae/config.json", "block_out_channels", [4, 4]),
            "vae: block_out_channels, how many is 2; supported: 4",
        ),
        (
            set_value("vae/config.json", "block_out_channels", 4),
            "vae: block_out_channels, how many is 'int'; supported",
        ),
        (set_value("vae/config.json", "block_out_channels", None), "vae: block_out_channels, how many is None"),
        *(
            (
                set_value("vae/config.json", "scaling_factor", value),
                f"vae: scaling_factor is {value!r}, expected a posit",
            )
            for value in (None, "0.18", [0.18], 0, -1, math.nan, math.inf, True)
        ),
        *(
            (
                set_value(SCHEDULER, "num_train_timesteps", value),
                f"scheduler: num_train_timesteps is {value!r}, expected",
            )
            for value in (None, "1000", 1000.0, 0, True)
        ),
        *(
            (
                set_value(SCHEDULER, "steps_offset", value),
                f"scheduler: steps_offset is {value!r}, expected an integer fr",
            )
            for value in (None, "1", 1.0, -1, 1000)
        ),
        *(
            (
                set_value(SCHEDULER, "timestep_spacing", value),
                f"scheduler: timestep_spacing is {value!r}; supported: 'l",
            )
            for value in (None, 1)
        ),
        *(
            (set_value(SCHEDULER, name, value), f"scheduler: {name} is {value!r}, expected a number above 0")
            for name in ("beta_start", "beta_end")
            for value in (None, "0.012", 0, 2, math.nan)
        ),
        (set_value(SCHEDULER, "trained_betas", ["x"] * 1000), "scheduler: trained_betas, number 0 is 'x', expected a"),
        (
            set_value("text_encoder/config.json", "hidden_size", "16"),
            "text_encoder: hidden_size is '16', expected a pos",
        ),
        (
            set_value("text_encoder/config.json", "max_position_embeddings", -1),
            "max_position_embeddings is -1, expected",
        ),
        (set_value("text_encoder/config.json", "model_type", "t5"), "text_encoder: model_type is 't5'"),
        (set_value(SCHEDULER, "prediction_type", "sample"), "prediction_type is 'sample'"),
        (set_value(SCHEDULER, "thresholding", True), "thresholding is True"),
        (
            set_value(SCHEDULER, "_class_name", "FlowMatchEulerDiscreteScheduler"),
            "scheduler: _class_name is 'FlowMatchEulerDiscreteScheduler'; supported: 'DDIMScheduler'",
        ),
        (set_value(SCHEDULER, "_class_name", "EDMEulerScheduler"), "is 'EDMEulerScheduler'"),
        (set_value(SCHEDULER, "beta_schedule", "nonsense"), "beta_schedule is 'nonsense'"),
        (set_value(SCHEDULER, "timestep_spacing", "weird"), "timestep_spacing is 'weird'"),
        (set_value(SCHEDULER, "use_flow_sigmas", True), "use_flow_sigmas is True"),
        (set_value(SCHEDULER, "variance_type", "learned_range"), "variance_type is 'learned_"),
        (drop_value(SCHEDULER, "beta_end"), "beta_start and beta_end are given is False"),
        (set_value(SCHEDULER, "trained_betas", [0.1] * 3), "trained_betas, how many is 3"),
        (set_value(SCHEDULER, "trained_betas", 1000), "trained_betas, how many is 'int'"),
        (remove("model_index.json"), "model_index.json is missing"),
        (remove("unet/config.json"), "unet/config.json is missing"),
        (write("vae/config.json", "{"), "vae/config.json is not valid JSON"),
        (write("vae/config.json", "[" * 100_000), "vae/config.json is not valid JSON"),
        (write("vae/config.json", "[1]"), "vae/config.json: expected a JSON object"),
        (write("tokenizer/added_tokens.json", '{"<new>": 516}'), "tokenizer: '<new>' has the id 516, expected less"),
        (write("tokenizer/vocab.json", "{"), "tokenizer: the tokenizer cannot be read: "),
        (remove("tokenizer/merges.txt"), "expected vocab.json and merges.txt or tokenizer.json"),
        (remove("vae/diffusion_pytorch_model.safetensors"), "vae: expected diffusion_pytorch_model.safetensors"),
        (
            rename("unet/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
            "unet: diffusion_pytorch_model.bin is a pickle",
        ),
        (rename("text_encoder/model.safetensors", "pytorch_model.bin"), "text_encoder: pytorch_model.bin is a pickle"),
    ],
)
def test_what_is_missing_or_unsupported_is_named(folder: Path, edit: Edit, message: str) -> None:
    edit(folder)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(folder)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_value("model_index.json", "requires_aesthetics_score", True), "requires_aesthetics_score is True"),
        (set_value("unet/config.json", "addition_embed_type", "image"), "addition_embed_type is 'image'"),
        (set_value("unet/config.json", "in_channels", 9), "unet: in_channels is 9; supported: 4"),
        (set_value("unet/config.json", "cross_attention_dim", 24), "cross_attention_dim is 24; supported: 40"),
        (
            set_value("unet/config.json", "projection_class_embeddings_input_dim", 60),
            "projection_class_embeddings_input_dim is 60; supported: 68",
        ),
        (
            set_value("text_encoder_2/config.json", "hidden_size", None),
            "text_encoder_2: hidden_size is None, expected a",
        ),
        (
            set_value("text_encoder_2/config.json", "projection_dim", "20"),
            "text_encoder_2: projection_dim is '20', expe",
        ),
        (
            set_value("unet/config.json", "addition_time_embed_dim", None),
            "unet: addition_time_embed_dim is None, expect",
        ),
        (set_value("text_encoder_2/config.json", "architectures", ["CLIPTextModel"]), "text_encoder_2: architectures"),
        (remove("text_encoder_2/model.safetensors"), "text_encoder_2: expected model.safetensors"),
        (write("tokenizer_2/added_tokens.json", '{"<new>": 516}'), "tokenizer_2: '<new>' has the id 516, expected l"),
        (remove("tokenizer_2/vocab.json"), "tokenizer_2: expected vocab.json and merges.txt or tokenizer.json"),
    ],
)
def test_what_is_no_sdxl_base_is_named(small_checkpoints: Path, tmp_path: Path, edit: Edit, message: str) -> None:
    folder = Path(shutil.copytree(small_checkpoints / "sdxl", tmp_path / "sdxl"))
    edit(folder)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(folder)
    assert message in str(error.value)


@pytest.mark.parametrize(("stated", "expected"), [({}, True), ({"force_zeros_for_empty_prompt": False}, False)])
def test_sdxl_forces_zeros_unless_its_index_says_otherwise(
    small_checkpoints: Path, tmp_path: Path, stated: dict[str, bool], expected: bool
) -> None:
    folder = Path(shutil.copytree(small_checkpoints / "sdxl", tmp_path / "sdxl"))
    index = json.loads((folder / "model_index.json").read_text())
    index.pop("force_zeros_for_empty_prompt")
    (folder / "model_index.json").write_text(json.dumps(index | stated))
    assert read_checkpoint(folder).force_zeros_for_empty_prompt is expected


def test_an_sdxl_vae_that_does_not_overflow_may_be_half(small_checkpoints: Path, tmp_path: Path) -> None:
    assert read_checkpoint(small_checkpoints / "sdxl").vae_upcast
    folder = Path(shutil.copytree(small_checkpoints / "sdxl", tmp_path / "sdxl"))
    set_value("vae/config.json", "force_upcast", False)(folder)
    assert not read_checkpoint(folder).vae_upcast


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"timestep_spacing": "trailing", "steps_offset": 1},
        {"num_train_timesteps": 500, "trained_betas": [0.1] * 500},
    ],
)
def test_a_scheduler_may_leave_out_what_has_a_default(folder: Path, config: dict[str, Any]) -> None:
    kept = ("_class_name", "beta_start", "beta_end", "beta_schedule")
    values = json.loads((folder / SCHEDULER).read_text())
    (folder / SCHEDULER).write_text(json.dumps({name: values[name] for name in kept} | config))
    assert read_checkpoint(folder)


def test_a_single_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="single file"):
        read_checkpoint(tmp_path / "model.ckpt")


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        read_checkpoint(tmp_path / "nowhere")
