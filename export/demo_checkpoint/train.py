"""Train the checkpoint: `python -m demo_checkpoint.train PHASE --work FOLDER`.

Phases vae and unet are independent of each other and may run at once; checkpoint writes FOLDER/checkpoint from whatever
both have reached. A phase can be stopped at any time; the same command goes on from the last state that was written.
"""

import argparse
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers.models.attention_processor import AttnProcessor

from demo_checkpoint.evaluate import contact_sheet, held_out_requests, paint, score
from demo_checkpoint.networks import Networks, build_networks, build_scheduler, build_tokenizer, save_checkpoint
from demo_checkpoint.train_unet import TextToLatents, UnetPlan, unet_batch, unet_loss
from demo_checkpoint.train_vae import VaePlan, vae_batch, vae_loss
from demo_checkpoint.training_state import LearningRate, Phases, TrainingState, averaged_weights

logger = logging.getLogger(__name__)

SAVE_EVERY = 100  # steps: about a minute's work is lost at worst
LOG_EVERY = 25
CHECK_EVERY = 1000  # steps between held-out checks, which cost about as much as 50
CHECK_REQUESTS = 24
CHECK_STEPS = 20


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
    if path.exists():
        state.load(path)
    last = min(learning_rate.steps, stop_after or learning_rate.steps)
    recent, began = 0.0, time.monotonic()
    while state.step < last:
        step = state.step
        recent += state.advance(partial(loss, step), learning_rate.at(step))
        if state.step % LOG_EVERY == 0:
            seconds = (time.monotonic() - began) / LOG_EVERY
            logger.info("step %d of %d: loss %.4f, %.2f s a step", state.step, last, recent / LOG_EVERY, seconds)
            recent, began = 0.0, time.monotonic()
        if state.step % SAVE_EVERY == 0 or state.step == last:
            state.save(path)
        if check and (state.step % CHECK_EVERY == 0 or state.step == last):
            check(state.step)


def train_vae(work: Path, plan: VaePlan, *, stop_after: int | None = None) -> None:
    """Train the autoencoder; the state is work/vae.pt."""
    vae = build_networks(plan.seed).vae.to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    state = TrainingState(vae, ema_decay=0.995)

    def loss(step: int) -> torch.Tensor:
        pictures = vae_batch(plan.seed, step).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            noise = plan.latent_noise(step, len(pictures))
            return vae_loss(vae, pictures, noise, torch.Generator().manual_seed(step))

    run(state, work / "vae.pt", loss, plan.learning_rate(), stop_after=stop_after)


def train_unet(work: Path, plan: UnetPlan, *, stop_after: int | None = None, compile_network: bool = False) -> None:
    """Train UNet and text encoder; the state is work/unet.pt."""
    networks = build_networks(plan.seed)
    # Attention step by step: the backward pass of the fused kernel is slow in bfloat16 on a CPU.
    networks.unet.set_attn_processor(AttnProcessor())
    networks.text_encoder.set_attn_implementation("eager")
    network = TextToLatents(networks.unet, networks.text_encoder).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # left out of the annotations
    state = TrainingState(network, ema_decay=0.998, weight_decay=0.01)
    compiled = torch.compile(network, dynamic=False) if compile_network else network
    scheduler = build_scheduler()
    tokenizer = build_tokenizer()

    def loss(step: int) -> torch.Tensor:
        stage = plan.stage(step)
        latents, captions = unet_batch(plan.seed, step, stage.cells, stage.rows)
        input_ids = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
        scaled = latents * networks.vae.config.scaling_factor
        return unet_loss(compiled, scheduler, scaled, input_ids, seed=step)

    def check(step: int) -> None:
        requests = held_out_requests(CHECK_REQUESTS, seed=1)
        cells = plan.stage(step - 1).cells
        with torch.autocast("cpu", dtype=torch.bfloat16):
            networks = averaged_networks(work)
            pictures = paint(networks, requests, seed=1, num_inference_steps=CHECK_STEPS, cells=cells)
        logger.info("step %d, %d cells: %s", step, cells, score(requests, pictures))
        contact_sheet(pictures, [request.prompt for request in requests]).save(work / f"check-{step}.png")

    run(state, work / "unet.pt", loss, plan.learning_rate(), stop_after=stop_after, check=check)


def averaged_networks(work: Path) -> Networks:
    """The networks as they stand in the states of both phases, with the moving averages of their weights."""
    networks = build_networks(0)
    if (work / "vae.pt").exists():
        networks.vae.load_state_dict(averaged_weights(work / "vae.pt"))
    if (work / "unet.pt").exists():
        TextToLatents(networks.unet, networks.text_encoder).load_state_dict(averaged_weights(work / "unet.pt"))
    return Networks(networks.unet.eval(), networks.vae.eval(), networks.text_encoder.eval())


def main() -> None:
    """Command line of the training."""
    parser = argparse.ArgumentParser(description="Train the demo checkpoint.")
    parser.add_argument("phase", choices=["vae", "unet", "checkpoint"])
    parser.add_argument("--work", type=Path, required=True, help="folder for the states and the checkpoint")
    parser.add_argument("--threads", type=int, default=1, help="one is nearly as fast as two, and leaves a core free")
    parser.add_argument("--compile", action="store_true", help="halves a step of the unet phase; needs g++")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    if arguments.phase == "vae":
        train_vae(arguments.work, VaePlan())
    elif arguments.phase == "unet":
        train_unet(arguments.work, UnetPlan(), compile_network=arguments.compile)
    else:
        save_checkpoint(arguments.work / "checkpoint", averaged_networks(arguments.work), half=True)


if __name__ == "__main__":
    main()
