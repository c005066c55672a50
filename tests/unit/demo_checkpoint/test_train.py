"""The phases of the training, one after the other: each goes on from the one before."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from demo_checkpoint import train
from demo_checkpoint.networks import load_networks, save_checkpoint
from demo_checkpoint.train import Machine, averaged_networks, train_core, train_regions, train_unet
from demo_checkpoint.train_regions import MOST_ROWS, RECALL, REGIONS
from demo_checkpoint.train_unet import CORE, UPPER
from demo_checkpoint.training_state import averaged_weights

MACHINE = Machine(torch.device("cpu"), workers=0, compile_network=False)


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The held-out check takes a minute and has tests of its own."""
    checked: list[str] = []
    monkeypatch.setattr(train, "_check", lambda *_: checked.append("checked"))
    yield checked
    assert checked


def changed(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, weight in one.items() if not torch.equal(weight, other[name])}


def test_each_phase_goes_on_from_the_one_before(tmp_path: Path) -> None:
    train_core(tmp_path, replace(CORE, rows=4, points=2), MACHINE, stop_after=1)
    few = {"rows": MOST_ROWS, "canvases": 2, "rehearsed": 1, "pictures": 4}
    train_regions(tmp_path, replace(REGIONS, **few), MACHINE, stop_after=2)
    train_regions(tmp_path, replace(RECALL, **few), MACHINE, phase="recall", stop_after=2)
    core, regions, recall = (averaged_weights(tmp_path / f"{phase}.pt") for phase in ("core", "regions", "recall"))
    for before, after in ((core, regions), (regions, recall)):
        assert {"unet.enter.weight", "unet.leave.2.weight"} <= changed(before, after)
        assert any(name.startswith("text_encoder.") for name in changed(before, after))
    # Two young steps away from regions, many from core: it went on from regions.
    weight = "unet.leave.2.weight"
    assert (recall[weight] - regions[weight]).abs().max() < (recall[weight] - core[weight]).abs().max()

    train_unet(tmp_path, replace(UPPER, rows=2, points=2), MACHINE, stop_after=1)
    networks = averaged_networks(tmp_path)
    weights = networks.unet.state_dict()
    kept = [name.removeprefix("unet.") for name in changed(core, recall) if name.startswith("unet.mid_block.")]
    assert kept
    for name in kept:
        torch.testing.assert_close(weights[name], recall[f"unet.{name}"])

    save_checkpoint(tmp_path / "checkpoint", networks, half=True)
    loaded = load_networks(tmp_path / "checkpoint").unet.state_dict()
    assert all(torch.allclose(loaded[name], weights[name], atol=1e-3) for name in kept)
