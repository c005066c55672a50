"""What the original API did wrong with a checkpoint, by its number in tests/unit/test_original_faults.py."""

from pathlib import Path

from multsd_export.checkpoint import read_checkpoint
from multsd_export.networks import networks_of
from multsd_export.profiles import Precision


def test_fault_15_a_vae_that_overflows_in_half_precision_is_not_computed_in_it(small_checkpoints: Path) -> None:
    checkpoint = read_checkpoint(small_checkpoints / "sdxl")
    precisions = {network.name: network.precision for network in networks_of(checkpoint, Precision.FP16)}
    assert precisions["vae_decoder"] == precisions["vae_encoder"] == Precision.FP32
    assert precisions["unet"] == Precision.FP16
