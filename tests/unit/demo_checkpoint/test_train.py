"""The phases of the training, one after the other: each goes on from the one before."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from demo_checkpoint import train
from demo_checkpoint.core import Core
from demo_checkpoint.networks import build_networks, load_networks, save_checkpoint
from demo_checkpoint.train import Machine, averaged_core, averaged_networks, train_core, train_regions, train_unet
from demo_checkpoint.train_regions import MOST_ROWS, RECALL, REGIONS, Predict, RegionsPlan, Rehearsal
from demo_checkpoint.train_unet import CORE, UPPER, TextToLatents
from demo_checkpoint.training_state import MissingStateError, averaged_weights

MACHINE = Machine(torch.device("cpu"), workers=0, compile_network=False)
FEW = {"rows": MOST_ROWS, "canvases": 2, "rehearsed": 1, "pictures": 4}


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The held-out check takes a minute and has tests of its own."""
    checked: list[str] = []
    monkeypatch.setattr(train, "_check", lambda *_: checked.append("checked"))
    yield checked
    assert checked


def changed(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, weight in one.items() if not torch.equal(weight, other[name])}


def core_state(work: Path, phase: str, seed: int) -> dict[str, torch.Tensor]:
    """Leave random weights in work as those of a phase of the core."""
    networks = build_networks(seed)
    weights = TextToLatents(Core(networks.unet), networks.text_encoder).state_dict()
    torch.save({"ema": weights}, work / f"{phase}.pt")
    return weights


@pytest.mark.parametrize(
    ("written", "phase", "expected"),
    [
        (["core"], "recall", "core"),
        (["core", "regions"], "recall", "regions"),
        (["core", "recall"], "recall", "recall"),
        (["core", "regions", "recall"], "recall", "recall"),
        (["core", "regions", "recall"], "regions", "regions"),
        (["core", "regions", "recall"], "core", "core"),
    ],
)
def test_a_phase_that_was_left_out_is_passed_over(
    written: list[str], phase: str, expected: str, tmp_path: Path, unchecked: list[str]
) -> None:
    states = {name: core_state(tmp_path, name, seed) for seed, name in enumerate(written)}
    networks, core = averaged_core(tmp_path, phase)
    found = TextToLatents(core, networks.text_encoder).state_dict()
    assert not changed(states[expected], found)
    unchecked.append("nothing was trained")


def test_phase_recall_rehearses_what_phase_core_knew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[Predict] = []

    class Recording(Rehearsal):
        def __init__(self, before: Predict, plan: RegionsPlan, first_step: int = 0) -> None:
            known.append(before)
            super().__init__(before, plan, first_step)

    core_state(tmp_path, "core", 0)
    core_state(tmp_path, "regions", 1)
    monkeypatch.setattr(train, "Rehearsal", Recording)
    train_regions(tmp_path, replace(RECALL, **FEW), MACHINE, phase="recall", stop_after=1)

    networks, core = averaged_core(tmp_path, "core")
    rows = torch.ones(2, 4, 16, 16), torch.tensor([900, 700]), torch.ones(2, 77, dtype=torch.long)
    with torch.no_grad():
        expected = TextToLatents(core, networks.text_encoder)(*rows)
    torch.testing.assert_close(known[0](*rows), expected, rtol=0.1, atol=0.05)  # known in bfloat16


def test_each_phase_goes_on_from_the_one_before(tmp_path: Path) -> None:
    train_core(tmp_path, replace(CORE, rows=4, points=2), MACHINE, stop_after=1)
    train_regions(tmp_path, replace(REGIONS, **FEW), MACHINE, stop_after=2)
    train_regions(tmp_path, replace(RECALL, **FEW), MACHINE, phase="recall", stop_after=2)
    core, regions, recall = (averaged_weights(tmp_path / f"{phase}.pt") for phase in ("core", "regions", "recall"))
    for before, after in ((core, regions), (regions, recall)):
        assert {"unet.enter.weight", "unet.leave.2.weight"} <= changed(before, after)
        assert any(name.startswith("text_encoder.") for name in changed(before, after))
    # Nearer to where it began, which is regions.
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


def test_the_upper_levels_that_were_finished_take_the_core_as_it_is_now(tmp_path: Path) -> None:
    core, upper = replace(CORE, rows=4, points=2), replace(UPPER, rows=2, points=2, steps=1)
    train_core(tmp_path, core, MACHINE, stop_after=1)
    train_unet(tmp_path, upper, MACHINE)
    before = averaged_networks(tmp_path).unet.state_dict()
    train_core(tmp_path, core, MACHINE, stop_after=2)
    train_unet(tmp_path, upper, MACHINE)

    after, now = averaged_networks(tmp_path).unet.state_dict(), averaged_weights(tmp_path / "core.pt")
    of_the_core = {name for name in after if name.startswith("mid_block.")}
    assert of_the_core & changed(before, after)
    for name in of_the_core:
        assert torch.equal(after[name], now[f"unet.{name}"])
    assert not {name for name in changed(before, after) if name.startswith("up_blocks.3.")}, "what was trained stays"


@pytest.mark.parametrize(
    ("phase", "written", "message"),
    [
        ("regions", [], "regions: expected core.pt in {work}, found no state"),
        ("unet", ["vae.pt"], "unet: expected core.pt in {work}, found vae.pt"),
        ("recall", ["regions.pt"], "recall: expected core.pt in {work}, found regions.pt"),
        ("checkpoint", [], "checkpoint: expected unet.pt and vae.pt in {work}, found no state"),
        (
            "checkpoint",
            ["core.pt", "unet.pt"],
            "checkpoint: expected unet.pt and vae.pt in {work}, found core.pt, unet.pt",
        ),
    ],
)
def test_a_phase_without_what_it_goes_on_from_says_what_is_missing(
    phase: str,
    written: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unchecked: list[str],
) -> None:
    for name in written:
        core_state(tmp_path, name.removesuffix(".pt"), 0)
    threads = str(torch.get_num_threads())
    monkeypatch.setattr(sys, "argv", ["train", phase, "--work", str(tmp_path), "--threads", threads])
    with pytest.raises(SystemExit) as raised:
        train.main()
    assert raised.value.code == message.format(work=tmp_path)
    assert not (tmp_path / "checkpoint").exists()
    unchecked.append("nothing was trained")


def test_a_folder_that_is_not_there_is_told_as_such(tmp_path: Path, unchecked: list[str]) -> None:
    with pytest.raises(MissingStateError, match=r"found no such folder$"):
        train.write_checkpoint(tmp_path / "nowhere")
    unchecked.append("nothing was trained")
