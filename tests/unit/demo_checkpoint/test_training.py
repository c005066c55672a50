"""Training: schedules, batches, and that a stopped run goes on as if it had not been stopped."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from demo_checkpoint import train
from demo_checkpoint.evaluate import held_out_requests
from demo_checkpoint.language import COLOURS, SHAPES
from demo_checkpoint.networks import PICTURE_STD, SCALING_FACTOR, build_scheduler, build_vae
from demo_checkpoint.optimizer import MuonAndAdamW
from demo_checkpoint.scene_batches import SceneBatch
from demo_checkpoint.train import run
from demo_checkpoint.train_unet import (
    CORE,
    EASY_IN_THE_END,
    UPPER,
    VEILS_END,
    UnetBatches,
    unet_batch,
    unet_loss,
    v_loss,
)
from demo_checkpoint.train_vae import MOST_LATENT_NOISE, VaePlan, cell_colours, vae_batch, vae_loss
from demo_checkpoint.training_state import LearningRate, TrainingState, averaged_weights

RATE = LearningRate(peak=1e-2, final=1e-4, warmup=1, hold=2, steps=4)


def trained(path: Path, *stops: int | None) -> nn.Module:
    """A small network trained in as many runs as there are stops, each as after a restart."""
    for stop in stops:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 2, 1))
        state = TrainingState(network, MuonAndAdamW(network, weight_decay=0.01), ema_decay=0.9)

        def loss(step: int, network: nn.Module = network) -> torch.Tensor:
            rows = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(step))
            loss: torch.Tensor = network(rows).square().mean()
            return loss

        run(state, path, loss, RATE, stop_after=stop)
    return network


def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    straight, resumed = trained(tmp_path / "a.pt", None), trained(tmp_path / "b.pt", 2, None)
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    weights = averaged_weights(tmp_path / "a.pt"), averaged_weights(tmp_path / "b.pt")
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def constant_loss(path: Path, **options: Any) -> None:
    """Sixty steps of a network whose loss is always four."""
    network = nn.Linear(1, 1)
    state = TrainingState(network, torch.optim.SGD(network.parameters(), lr=0.0), ema_decay=0.9)
    rate = LearningRate(peak=1e-9, final=1e-9, warmup=1, hold=1, steps=60)
    run(state, path, lambda _: network.weight.sum() * 0 + 4, rate, **options)


def test_the_loss_that_is_told_is_the_mean_of_the_steps_since_the_last_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for stop in (40, None):
        constant_loss(tmp_path / "state.pt", stop_after=stop)
    told = [record.getMessage().split(",")[0] for record in caplog.records]
    assert told == ["step 25 of 40: loss 4.0000", "step 50 of 60: loss 4.0000"]


def test_a_check_finds_the_state_of_its_own_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "CHECK_EVERY", 20)
    found: dict[int, int] = {}

    def check(step: int) -> None:
        found[step] = torch.load(tmp_path / "state.pt", weights_only=True)["step"]

    constant_loss(tmp_path / "state.pt", check=check)
    assert found == {20: 20, 40: 40, 60: 60}


def test_weights_that_are_not_trained_come_from_the_network_not_from_its_state(tmp_path: Path) -> None:
    def state(frozen: float) -> TrainingState:
        network = nn.ModuleDict({"core": nn.Linear(1, 1), "upper": nn.Linear(1, 1)})
        nn.init.constant_(network.get_parameter("core.weight"), frozen)
        network["core"].requires_grad_(False)
        trained = list(network["upper"].parameters())
        return TrainingState(network, torch.optim.AdamW(trained), ema_decay=0.9)

    first, second = state(1.0), state(2.0)
    with torch.no_grad():
        first.network.get_parameter("upper.weight").fill_(3.0)
    first.save(tmp_path / "state.pt")
    second.load(tmp_path / "state.pt")

    assert second.network.get_parameter("upper.weight") == 3.0
    assert second.network.get_parameter("core.weight") == second.ema["core.weight"] == 2.0


def test_the_learning_rate_warms_up_holds_and_falls() -> None:
    rate = LearningRate(peak=1.0, final=0.1, warmup=10, hold=50, steps=100)
    assert rate.at(4) == pytest.approx(0.5)
    assert rate.at(10) == rate.at(50) == pytest.approx(1.0)
    assert 0.1 < rate.at(75) < 1.0
    assert rate.at(100) == pytest.approx(0.1)


def test_the_average_forgets_the_random_start() -> None:
    network = nn.Linear(1, 1)
    state = TrainingState(network, torch.optim.AdamW(network.parameters(), weight_decay=0.0), ema_decay=0.999)
    start = network.weight.detach().clone()
    for _ in range(20):
        state.advance(lambda: (network.weight - 1).square().sum() + 0 * network.bias.sum(), 0.1)
    assert (state.ema["weight"] - 1).abs() < (start - 1).abs()


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    plan = replace(CORE, rows=3)
    first, second = (unet_batch(plan, 5) for _ in range(2))
    assert first == second
    assert unet_batch(plan, 6)[1] != first[1]


def test_batches_are_the_same_whoever_makes_them() -> None:
    plan = replace(CORE, rows=3, steps=4)
    alone, helped = (list(UnetBatches(plan).from_step(1, torch.device("cpu"), workers)) for workers in (0, 2))
    assert len(alone) == len(helped) == 3  # steps 1 to 3
    for (scenes, input_ids), (others, other_ids) in zip(alone, helped, strict=True):
        assert torch.equal(scenes.places, others.places)
        assert input_ids.shape == (3, 77)
        assert torch.equal(input_ids, other_ids)


def test_some_captions_are_dropped_and_some_hold_an_unknown_word() -> None:
    _, captions = unet_batch(replace(CORE, rows=200), 0)
    assert 0.05 < captions.count("") / len(captions) < 0.2
    assert any("<|unknown|>" in text for text in captions)


def test_pictures_are_easy_at_first_and_then_mostly_of_the_full_variety() -> None:
    easy = [CORE.easy_at(step) for step in (0, 500, 1500, 8000)]
    assert easy == pytest.approx([1, 1, EASY_IN_THE_END, EASY_IN_THE_END])
    assert EASY_IN_THE_END < CORE.easy_at(1000) < 1
    assert [CORE.veiled_at(step) for step in (0, 1000, 1500)] == pytest.approx([0, CORE.veiled / 2, CORE.veiled])
    first, last = (" ".join(unet_batch(replace(CORE, rows=256), step)[1]) for step in (0, 2000))
    assert not {"stripes", "dots", "checks"} & set(first.split())
    assert {"stripes", "dots", "checks", "and"} <= set(last.split())


def test_veiled_pictures_are_shown_with_much_noise() -> None:
    plan = replace(CORE, rows=64)
    scenes = SceneBatch.of(unet_batch(plan, 5000)[0])
    seen: list[torch.Tensor] = []

    def record(noisy: torch.Tensor, timesteps: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        seen.append(timesteps)
        return noisy

    unet_loss(record, build_scheduler(), scenes, torch.zeros(64, 77), plan, seed=1)
    assert 0.1 < scenes.veiled.float().mean() < 0.5
    assert seen[0][scenes.veiled].min() >= VEILS_END
    assert seen[0].min() < VEILS_END


def test_under_a_veil_v_leads_to_what_is_there() -> None:
    scheduler = build_scheduler()
    generator = torch.Generator().manual_seed(0)
    latents, shown, noise = torch.randn(3, 5, 4, 2, 2, generator=generator)
    timesteps = torch.linspace(VEILS_END, 999, 5).long()
    signal = scheduler.alphas_cumprod[timesteps][:, None, None, None]

    def knows_the_truth(noisy: torch.Tensor, _: torch.Tensor, __: torch.Tensor) -> torch.Tensor:
        """The v for which a step back, sqrt(signal) x - sqrt(1 - signal) v, gives the latents."""
        v: torch.Tensor = (signal.sqrt() * noisy - latents) / (1 - signal).sqrt()
        return v

    loss = v_loss(knows_the_truth, scheduler, latents, shown, noise, timesteps, torch.zeros(5, 77), CORE.pooled)
    assert loss == pytest.approx(0, abs=1e-9)


def test_the_unet_sees_the_window_itself_in_the_end() -> None:
    assert (CORE.cells, UPPER.cells) == (16, 64)


def test_a_rows_error_counts_relative_to_the_best_linear_guess() -> None:
    scheduler = build_scheduler()
    std = PICTURE_STD * SCALING_FACTOR
    noise = 1 / CORE.pooled**2  # variance
    latents = std * torch.randn(4000, 4, 2, 2, generator=torch.Generator().manual_seed(0))

    def linear_guess(noisy: torch.Tensor, timesteps: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        """The expectation of v given the noisy latents, for latents that are independent normal numbers."""
        signal: torch.Tensor = scheduler.alphas_cumprod[timesteps][:, None, None, None]
        covariance = (signal * (1 - signal)).sqrt() * (noise - std**2)
        return covariance / (signal * std**2 + (1 - signal) * noise) * noisy

    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(latents.shape, generator=generator) * noise**0.5
    timesteps = torch.randint(0, 1000, (4000,), generator=generator)
    prompts = torch.zeros(4000, 77)
    loss = v_loss(linear_guess, scheduler, latents, latents, drawn, timesteps, prompts, CORE.pooled)
    assert loss == pytest.approx(1.0, rel=0.02)


def test_the_whole_unets_error_counts_more_where_it_is_the_same_over_many_cells() -> None:
    scheduler = build_scheduler()
    even = torch.full((8, 8), 0.1)
    alternating = even * (-1) ** (torch.arange(8)[:, None] + torch.arange(8))

    def loss(error: torch.Tensor) -> torch.Tensor:
        def off_by_it(noisy: torch.Tensor, timesteps: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            signal: torch.Tensor = scheduler.alphas_cumprod[timesteps][:, None, None, None]
            return (signal / (1 - signal)).sqrt() * noisy + error  # v of latents that are zero, and the error

        nothing = torch.zeros(64, 4, 8, 8)
        noise = torch.randn(nothing.shape, generator=torch.Generator().manual_seed(1))
        timesteps = torch.arange(0, 960, 15)
        return v_loss(off_by_it, scheduler, nothing, nothing, noise, timesteps, torch.zeros(64, 77), UPPER.pooled)

    assert loss(torch.zeros(8, 8)) == pytest.approx(0, abs=1e-9)
    assert loss(even) > 2 * loss(alternating) > 0


def test_the_decoder_starts_with_right_colours() -> None:
    pictures = vae_batch(0, 0)
    with torch.no_grad():
        noise = VaePlan().latent_noise(0, len(pictures))
        loss = vae_loss(build_vae(), pictures, noise, torch.Generator().manual_seed(0))
    assert pictures.shape == (8, 3, 128, 128)
    assert cell_colours(pictures).shape == (8, 4, 16, 16)
    assert loss < 0.25  # a decoder from random weights starts above 1


def test_the_decoder_learns_edges_first_and_then_to_bear_noise() -> None:
    plan = VaePlan()
    rate = plan.learning_rate()
    assert rate.steps == plan.steps
    assert rate.at(plan.edge_steps - 1) < rate.at(plan.edge_steps + 100)
    assert rate.at(plan.steps - 1) < 2e-5
    assert len(set(plan.latent_noise(0, 3).flatten().tolist())) == 1
    later = plan.latent_noise(plan.edge_steps, 100)
    assert later.shape == (100, 1, 1, 1)
    assert plan.latent_noise(0, 1).max() < later.max() <= MOST_LATENT_NOISE


def test_held_out_requests_use_every_colour_and_shape() -> None:
    requests = held_out_requests(100, seed=0)
    assert {request.thing.colour for request in requests} == set(COLOURS)
    assert {request.thing.shape for request in requests} == set(SHAPES)
    assert sum(request.ground is not None for request in requests) == 34
    assert requests == held_out_requests(100, seed=0)
