"""A checkpoint of Stable Diffusion's structure with a few thousand weights, and one export of it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from multsd_export import pipeline
from multsd_export.engines import artefact
from multsd_export.engines.machine import Machine
from multsd_export.errors import EngineError
from multsd_export.pipeline import Options, export
from multsd_export.profiles import CPU, TENSORRT, Precision
from tests.small_checkpoints import STRUCTURES, write_small_checkpoint, write_tokenizer

from .cuda_stand_in import PRIVATE_STAND_INS, STAND_INS, forget_captures

REPOSITORY = Path(__file__).parents[3] / "model_repository"
WINDOW = 16


def write_checkpoint(path: Path) -> None:
    """Random weights in half precision, from a fixed seed."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    path.mkdir()
    torch.manual_seed(0)
    write_tokenizer(path / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=516, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    CLIPTextModel(text).half().save_pretrained(path / "text_encoder")
    unet = UNet2DConditionModel(
        sample_size=WINDOW,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
    )
    unet.half().save_pretrained(path / "unet")
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        scaling_factor=0.5,
    )
    vae.half().save_pretrained(path / "vae")
    DDIMScheduler(clip_sample=False, prediction_type="v_prediction").save_pretrained(path / "scheduler")
    (path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))


def quiet(_stage: str, _share: float) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True)
class Exported:
    """One finished export; `again` runs it on copies, so that a test may change them."""

    options: Options

    def copy(self, folder: Path) -> Options:
        """The same export with its checkpoint, sources, work folder and output copied below `folder`."""
        copies = replace(
            self.options,
            checkpoint=folder / "checkpoint",
            repository=folder / "repository",
            work_dir=folder / "work_dir",
            output=folder / "output",
        )
        for field in ("checkpoint", "repository", "work_dir", "output"):
            shutil.copytree(getattr(self.options, field), getattr(copies, field))
        return copies


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint"
    write_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def exported(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Read only; `exported.copy` gives something to change."""
    folder = tmp_path_factory.mktemp("export")
    repository = folder / "repository"
    shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("__pycache__"))
    options = Options(checkpoint_folder, folder / "output", repository, folder / "work_dir", CPU)
    assert export(options, quiet)
    return Exported(options)


@pytest.fixture(scope="session")
def exported_for_engines(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An export to engines in full precision, stopped when everything but the engines was there. Read only."""

    def stop(*_: object) -> None:
        raise EngineError("enough")

    copied = exported.copy(tmp_path_factory.mktemp("engines"))
    options = replace(copied, output=copied.output.with_name("engines"), profile=TENSORRT, precision=Precision.FP32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "this_machine", lambda: Machine("11.4.0.106", "NVIDIA H100 80GB HBM3", "9.0"))
        patch.setattr(artefact, "build_engine", stop)
        with pytest.raises(EngineError, match="enough"):
            export(options, quiet)
    return Exported(replace(options, output=copied.output))


@pytest.fixture(scope="session")
def small_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint of each structure, in a folder of its name. Read only."""
    folder = tmp_path_factory.mktemp("small_checkpoints")
    for structure in STRUCTURES:
        write_small_checkpoint(folder / structure, structure)
    return folder


@pytest.fixture
def progress() -> Callable[[str, float], None]:
    return quiet


@pytest.fixture
def cuda_graphs_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda captures and replays what runs on a processor."""
    forget_captures()
    for name, value in STAND_INS.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name, value in PRIVATE_STAND_INS.items():
        monkeypatch.setattr(torch._C, name, value, raising=False)
