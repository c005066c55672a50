"""Rehearsals have the published sizes, and measure each step by itself."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import multsd_export
from multsd_export.checkpoint import read_checkpoint
from multsd_export.errors import ExportError
from multsd_export.networks import networks_of
from multsd_export.rehearsal.__main__ import empty_folder
from multsd_export.rehearsal.configs import NOISE, PUBLISHED, Published
from multsd_export.rehearsal.measure import Measured, run_measured
from multsd_export.rehearsal.random_checkpoint import write_random_checkpoint
from multsd_export.rehearsal.table import Row, markdown
from tests.small_checkpoints import STRUCTURES

VAE_PARAMETERS = 83_653_863


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("family", "unet", "text_encoders"),
    [
        ("sd15", 859_520_964, [123_060_480]),
        ("sd2", 865_910_724, [340_387_840]),
        ("sdxl", 2_567_463_684, [123_060_480, 694_659_840]),
    ],
)
def test_parameters_are_those_of_the_published_checkpoints(family: str, unet: int, text_encoders: list[int]) -> None:
    published = PUBLISHED[family]
    with torch.device("meta"):
        assert parameters(UNet2DConditionModel(**published.unet)) == unet
        assert parameters(AutoencoderKL(**published.vae)) == VAE_PARAMETERS
        encoders = [
            (CLIPTextModelWithProjection if index else CLIPTextModel)(CLIPTextConfig(**config))
            for index, config in enumerate(published.text_encoders)
        ]
    assert [parameters(encoder) for encoder in encoders] == text_encoders


def small(structure: str) -> Published:
    """A rehearsal of one of the small structures."""
    facts = STRUCTURES[structure]
    vae = {"block_out_channels": (4, 4, 8, 8), "norm_num_groups": 2}
    vae |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    encoders = tuple(config | {"vocab_size": 600} for config in map(dict, facts.text_encoders))
    scheduler = {"_class_name": "DDIMScheduler", **NOISE}
    return Published(structure, facts.pipeline, encoders, facts.unet, vae, scheduler)


@pytest.mark.parametrize("structure", ["sd1", "sdxl"])
def test_a_random_checkpoint_is_one_that_every_network_loads_from(structure: str, tmp_path: Path) -> None:
    write_random_checkpoint(small(structure), tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.family == STRUCTURES[structure].family
    for network in networks_of(checkpoint):
        module = network.load(torch.float32)
        (inputs, *_) = network.draw(torch.Generator().manual_seed(0))
        with torch.no_grad():
            result = module(*inputs)
        for output in [result] if isinstance(result, torch.Tensor) else result:
            assert output.isfinite().all()
            assert output.std() > 0


def test_every_step_has_a_peak_of_its_own() -> None:
    """Measured from a small process, as a rehearsal does: a child's peak is never below that of its parent's start."""
    program = """
import sys
from multsd_export.rehearsal.measure import run_measured
for code in ("pass", "x = bytearray(300_000_000)", "pass"):
    print(run_measured([sys.executable, "-c", code]).peak_bytes)
"""
    path = str(Path(multsd_export.__file__).parents[1])
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    before, large, after = map(int, run.stdout.split())
    assert large - before > 250_000_000
    assert large - after > 250_000_000


def test_a_step_that_fails_ends_the_rehearsal() -> None:
    with pytest.raises(ExportError, match=r"exit code 3\.$"):
        run_measured([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_row_of_the_table_says_what_was_measured() -> None:
    facts = {"parameters": 859_520_964, "nodes": 1823, "relative_error": 2.7e-6}
    rows = [Row("unet", "fp32", Measured(61.6, 3 * 2**30), 2**31, facts), Row("composition", "fp32", Measured(2, 0), 0)]
    assert markdown(rows).splitlines()[2:] == [
        "| `unet` | fp32 | 859.5 M | 3.00 GiB | 62 s | 2.00 GiB | 1823 | 2.7e-06 |",
        "| composition | fp32 |  | 0.00 GiB | 2 s | 0.00 GiB |  |  |",
    ]


def test_a_rehearsal_replaces_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "rehearsal"
    empty_folder(folder)
    (folder / "checkpoint").mkdir()
    empty_folder(folder)
    assert not (folder / "checkpoint").exists()

    (tmp_path / "letters").mkdir()
    letter = tmp_path / "letters" / "letter.txt"
    letter.touch()
    with pytest.raises(ExportError, match="expected an earlier rehearsal or an empty folder"):
        empty_folder(tmp_path / "letters")
    assert letter.exists()
