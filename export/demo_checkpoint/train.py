"""Train the checkpoint: `python -m demo_checkpoint.train PHASE --work FOLDER`.

Phases core, regions, recall and unet, the levels above the core, go on from each other in that order; regions and
recall may be left out. vae is independent of them and may run beside; checkpoint writes FOLDER/checkpoint from what
unet and vae have reached. A phase can be stopped at any time; the same command goes on from the last state written,
in phases regions and recall with canvases begun anew.
"""

import argparse
import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor

from demo_checkpoint.arguments import at_least, device
from demo_checkpoint.core import Core, UpperLevels, confine_prompt, grow
from demo_checkpoint.evaluate import contact_sheet, held_out_requests, paint, score
from demo_checkpoint.networks import (
    Networks,
    build_networks,
    build_scheduler,
    save_checkpoint,
)
from demo_checkpoint.optimizer import BETAS, MuonAndAdamW
from demo_checkpoint.scene_batches import SceneBatch
from demo_checkpoint.train_regions import RECALL, REGIONS, Canvases, RegionsPlan, Rehearsal, regions_loss
from demo_checkpoint.train_unet import CORE, UPPER, TextToLatents, UnetBatches, UnetPlan, unet_loss
from demo_checkpoint.train_vae import VaePlan, vae_batch, vae_loss
from demo_checkpoint.training_state import (
    LearningRate,
    MissingStateError,
    Phases,
    TrainingState,
    averaged_weights,
    require_states,
)

logger = logging.getLogger(__name__)

SAVE_SECONDS = 60.0  # of work that are lost at worst
LOG_EVERY = 25
CHECK_EVERY = 1000  # steps between held-out checks, which cost about as much as 50
CHECK_REQUESTS = 24
CHECK_STEPS = 20
CHECK_GUIDANCE = 3.0
REGIONS_PHASES = {"regions": REGIONS, "recall": RECALL}
CORE_PHASES = ("core", *REGIONS_PHASES)  # each goes on from the one before that was not left out


def run(
    state: TrainingState,
    path: Path,
    loss: Callable[[int], torch.Tensor],
    learning_rate: LearningRate | Phases,
    *,
    stop_after: int | None = None,
    check: Callable[[int], None] | None = None,
) -> None:
    """Train from wherever the state at path stands to the last step; loss is given the step's number.

    stop_after ends the run early at that step, as a kill would after the state was written.
    """
    last = min(learning_rate.steps, stop_after or learning_rate.steps)
    if path.exists():
        state.load(path)
        if state.step >= last:
            state.save(path)  # weights that are not trained may be others by now
    recent, summed = torch.zeros(()), 0
    saved = began = time.monotonic()
    while state.step < last:
        step = state.step
        recent, summed = recent + state.advance(partial(loss, step), learning_rate.at(step)), summed + 1
        if state.step % LOG_EVERY == 0:
            mean = recent.item() / summed  # of fewer steps after a restart
            seconds = (time.monotonic() - began) / summed
            logger.info("step %d of %d: loss %.4f, %.3f s a step", state.step, last, mean, seconds)
            recent, summed, began = torch.zeros(()), 0, time.monotonic()
        due = state.step % CHECK_EVERY == 0 or state.step == last
        if due or time.monotonic() - saved > SAVE_SECONDS:
            state.save(path)  # what a check looks at, too
            saved = time.monotonic()
        if due and check:
            check(state.step)


def train_vae(work: Path, plan: VaePlan, *, stop_after: int | None = None) -> None:
    """Train the autoencoder; the state is work/vae.pt."""
    vae = build_networks(plan.seed).vae.to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    trained = [weight for weight in vae.parameters() if weight.requires_grad]
    state = TrainingState(vae, torch.optim.AdamW(trained, weight_decay=0.0, betas=BETAS), ema_decay=0.995)

    def loss(step: int) -> torch.Tensor:
        pictures = vae_batch(plan.seed, step).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            noise = plan.latent_noise(step, len(pictures))
            return vae_loss(vae, pictures, noise, torch.Generator().manual_seed(step))

    run(state, work / "vae.pt", loss, plan.learning_rate(), stop_after=stop_after)


@dataclass(frozen=True)
class Machine:
    """Where and how the UNet's phases run."""

    device: torch.device
    workers: int  # processes that draw scenes
    compile_network: bool


def train_core(work: Path, plan: UnetPlan, machine: Machine, *, stop_after: int | None = None) -> None:
    """Train the UNet's core and the text encoder; the state is work/core.pt."""
    networks = _on(machine.device, build_networks(plan.seed))
    confine_prompt(networks.unet)
    network = TextToLatents(Core(networks.unet), networks.text_encoder).to(machine.device)
    state = _trainable(networks, network)

    def check(step: int) -> None:
        averaged, core = averaged_core(work, "core")
        _check(averaged, core, "core", step, work)

    _run_unet(state, network, work / "core.pt", plan, machine, check, stop_after=stop_after)


def train_regions(
    work: Path, plan: RegionsPlan, machine: Machine, *, phase: str = "regions", stop_after: int | None = None
) -> None:
    """Train core and text encoder on, on what MultiDiffusion shows them; the state is work/PHASE.pt.

    phase: regions or recall; what is rehearsed is phase core's in both.
    """
    networks, core = averaged_core(work, CORE_PHASES[CORE_PHASES.index(phase) - 1])
    networks = _on(machine.device, networks)
    confine_prompt(networks.unet)
    network = TextToLatents(core, networks.text_encoder).to(machine.device)
    before = copy.deepcopy(network).requires_grad_(False)
    before.load_state_dict(averaged_weights(work / "core.pt"))
    state = _trainable(networks, network)
    predict, expect = (
        torch.compile(each, dynamic=False) if machine.compile_network else each for each in (network, before)
    )
    scheduler = build_scheduler()
    beside = replace(CORE, rows=plan.pictures, steps=plan.steps, easy=None, veiled=0.0, seed=plan.seed + 1)
    batches: Iterator[tuple[SceneBatch, torch.Tensor]] | None = None
    canvases: Canvases | None = None
    rehearsal: Rehearsal | None = None

    def expected(latents: torch.Tensor, timesteps: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        rows = (each.to(machine.device) for each in (latents, timesteps, input_ids))
        with torch.no_grad(), torch.autocast(machine.device.type, dtype=torch.bfloat16):
            predicted: torch.Tensor = expect(*rows).float().cpu()
        return predicted

    def loss(step: int) -> torch.Tensor:
        nonlocal batches, canvases, rehearsal
        batches = batches or UnetBatches(beside).from_step(step, machine.device, machine.workers)
        canvases = canvases or Canvases(plan, step)
        rehearsal = rehearsal or Rehearsal(expected, plan, step)
        rows = (canvases.take() + rehearsal.take()).to(machine.device)
        with torch.autocast(machine.device.type, dtype=torch.bfloat16):
            latents = rows.latents.contiguous(memory_format=torch.channels_last)
            predicted = predict(latents, rows.timesteps, rows.input_ids).float()
        painted, rehearsed = predicted[: plan.rows], predicted[plan.rows :]
        predicted = torch.cat([painted, rehearsal.guided(rehearsed)])
        canvases.give(painted.detach().cpu())
        rehearsal.give(rehearsed.detach().cpu())
        scenes, input_ids = next(batches)
        return regions_loss(predicted, rows, scheduler) + unet_loss(
            predict, scheduler, scenes, input_ids, beside, seed=step
        )

    def check(step: int) -> None:
        averaged, core = averaged_core(work, phase)
        _check(averaged, core, phase, step, work)

    run(state, work / f"{phase}.pt", loss, plan.learning_rate(), stop_after=stop_after, check=check)


def train_unet(work: Path, plan: UnetPlan, machine: Machine, *, stop_after: int | None = None) -> None:
    """Train what the UNet has above its core; the state is work/unet.pt.

    The core is that of the phases before as it stands when this is started, so this phase may begin beside them, and be
    started again when they have ended.
    """
    networks, core = averaged_core(work)
    grow(core, networks.unet)
    networks = _on(machine.device, networks)
    networks.text_encoder.requires_grad_(False)
    forward = TextToLatents(UpperLevels(networks.unet), networks.text_encoder)
    state = _trainable(networks, TextToLatents(networks.unet, networks.text_encoder), weight_decay=0.0)

    def check(step: int) -> None:
        _check(averaged_networks(work), None, "unet", step, work)

    _run_unet(state, forward, work / "unet.pt", plan, machine, check, stop_after=stop_after)


def _on(device: torch.device, networks: Networks) -> Networks:
    for network in (networks.unet, networks.text_encoder):
        network.to(device)
    return networks


def averaged_core(work: Path, phase: str = CORE_PHASES[-1]) -> tuple[Networks, Core]:
    """The core with the moving averages of its weights, and the networks it is a part of.

    phase: as this one has left it, or has it so far, or the last one before it that was not left out. Raises
        MissingStateError where all of them were.
    """
    states = [work / f"{name}.pt" for name in CORE_PHASES[: CORE_PHASES.index(phase) + 1]]
    weights = averaged_weights(next((state for state in reversed(states) if state.exists()), states[0]))
    networks = _with_decoder(build_networks(0), work)
    core = Core(networks.unet)
    TextToLatents(core, networks.text_encoder).load_state_dict(weights)
    return networks, core


def averaged_networks(work: Path) -> Networks:
    """The networks as they stand in the states of unet and, if it has one, vae, with the averages of their weights.

    Raises MissingStateError without a state of unet.
    """
    weights = averaged_weights(work / "unet.pt")
    networks = _with_decoder(build_networks(0), work)
    TextToLatents(networks.unet, networks.text_encoder).load_state_dict(weights)
    return networks


def write_checkpoint(work: Path) -> None:
    """Write work/checkpoint. Raises MissingStateError where unet or vae has not been trained."""
    require_states(work, "unet.pt", "vae.pt")
    save_checkpoint(work / "checkpoint", averaged_networks(work), half=True)


def _with_decoder(networks: Networks, work: Path) -> Networks:
    if (work / "vae.pt").exists():
        networks.vae.load_state_dict(averaged_weights(work / "vae.pt"))
    return Networks(networks.unet.eval(), networks.vae.eval(), networks.text_encoder.eval())


def _trainable(networks: Networks, network: TextToLatents, weight_decay: float = 0.01) -> TrainingState:
    if networks.unet.device.type == "cpu":
        # Attention step by step: the backward pass of the fused kernel is slow in bfloat16 on a CPU.
        networks.unet.set_attn_processor(AttnProcessor())
        networks.text_encoder.set_attn_implementation("eager")
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # left out of the annotations
    return TrainingState(network, MuonAndAdamW(network, weight_decay=weight_decay), ema_decay=0.999)


def _run_unet(
    state: TrainingState,
    network: TextToLatents,
    path: Path,
    plan: UnetPlan,
    machine: Machine,
    check: Callable[[int], None],
    *,
    stop_after: int | None,
) -> None:
    predict = torch.compile(network, dynamic=False) if machine.compile_network else network
    scheduler = build_scheduler()
    batches: Iterator[tuple[SceneBatch, torch.Tensor]] | None = None

    def loss(step: int) -> torch.Tensor:
        nonlocal batches
        batches = batches or UnetBatches(plan).from_step(step, machine.device, machine.workers)
        scenes, input_ids = next(batches)
        return unet_loss(predict, scheduler, scenes, input_ids, plan, seed=step)

    run(state, path, loss, plan.learning_rate(), stop_after=stop_after, check=check)


def _check(networks: Networks, core: Core | None, phase: str, step: int, work: Path) -> None:
    requests = held_out_requests(CHECK_REQUESTS, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pictures = paint(
            networks, requests, seed=1, num_inference_steps=CHECK_STEPS, guidance_scale=CHECK_GUIDANCE, core=core
        )
    logger.info("%s step %d: %s", phase, step, score(requests, pictures))
    contact_sheet(pictures, [request.prompt for request in requests]).save(work / f"check-{phase}-{step}.png")


def main() -> None:
    """Command line of the training."""
    parser = argparse.ArgumentParser(description="Train the demo checkpoint.")
    parser.add_argument("phase", choices=["vae", *CORE_PHASES, "unet", "checkpoint"])
    parser.add_argument("--work", type=Path, required=True, help="folder for the states and the checkpoint")
    parser.add_argument("--device", type=device, default=torch.device("cpu"), help="of all phases but vae")
    parser.add_argument(
        "--workers", type=at_least(0), default=0, help="processes that draw scenes: about 8 beside a GPU"
    )
    parser.add_argument("--rows", type=at_least(1), help="of a batch; a processor wants fewer (32, 16) than a GPU")
    parser.add_argument("--steps", type=at_least(1), help="of all phases but vae; left out, those of a GPU's plan")
    parser.add_argument(
        "--threads", type=at_least(1), default=1, help="one is nearly as fast as two, and leaves a core free"
    )
    parser.add_argument("--compile", action="store_true", help="halves a step on a processor; needs g++")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    machine = Machine(arguments.device, arguments.workers, arguments.compile)
    given = {name: value for name in ("rows", "steps") if (value := getattr(arguments, name)) is not None}
    try:
        train_phase(arguments.phase, arguments.work, machine, given)
    except MissingStateError as error:
        raise SystemExit(f"{arguments.phase}: {error}") from error


def train_phase(phase: str, work: Path, machine: Machine, given: Mapping[str, Any]) -> None:
    """One of the phases. given: of its plan, where not the plan's own."""
    if phase == "vae":
        train_vae(work, VaePlan())
    elif phase == "core":
        train_core(work, replace(CORE, **given), machine)
    elif phase in REGIONS_PHASES:
        train_regions(work, replace(REGIONS_PHASES[phase], **given), machine, phase=phase)
    elif phase == "unet":
        train_unet(work, replace(UPPER, **given), machine)
    else:
        write_checkpoint(work)


if __name__ == "__main__":
    main()
