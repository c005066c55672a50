"""Train the checkpoint: `python -m demo_checkpoint.train PHASE --work FOLDER`, phases vae, latents, unet in this order.

Every phase can be stopped at any time; the same command goes on from the last state that was written.
"""

import argparse
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor

from demo_checkpoint.evaluate import held_out_requests, paint, score
from demo_checkpoint.networks import WINDOW, Networks, build_networks, build_scheduler, save_checkpoint
from demo_checkpoint.train_unet import Pool, TextToLatents, UnetPlan, encode_pictures, unet_batch, unet_loss
from demo_checkpoint.train_vae import VaePlan, vae_batch, vae_loss
from demo_checkpoint.training_state import LearningRate, TrainingState

logger = logging.getLogger(__name__)

SAVE_EVERY = 100  # steps: about a minute's work is lost at worst
LOG_EVERY = 25
CHECK_EVERY = 500  # steps between held-out checks, which cost about as much as 50
CHECK_REQUESTS = 24
CHECK_STEPS = 20
POOL = {WINDOW // 2: 3000, WINDOW: 4000}  # pictures by side in cells; each is seen mirrored and turned
SCALE_PICTURES = 64  # enough to know the latents' spread to a few per cent


def run(
    state: TrainingState,
    path: Path,
    loss: Callable[[int], torch.Tensor],
    learning_rate: LearningRate,
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
    """Train the autoencoder; the state is work/vae.pt, the result work/vae."""
    vae = build_networks(plan.seed).vae.to(memory_format=torch.channels_last)
    state = TrainingState(vae, ema_decay=0.995)

    def loss(step: int) -> torch.Tensor:
        pictures = vae_batch(plan.seed, step).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return vae_loss(vae, pictures, torch.Generator().manual_seed(step))

    run(state, work / "vae.pt", loss, plan.learning_rate(), stop_after=stop_after)
    vae.load_state_dict(state.averaged_weights())
    latents = encode_pictures(vae, plan.seed, WINDOW, SCALE_PICTURES).latents.float()
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    vae.to(memory_format=torch.contiguous_format).save_pretrained(work / "vae")


def encode_latents(work: Path, seed: int) -> None:
    """Encode the pools work/latents-32.safetensors and work/latents-64.safetensors, where they are missing."""
    vae = load_vae(work)
    for cells, count in POOL.items():
        path = pool_path(work, cells)
        if not path.exists():
            logger.info("encoding %d pictures of %d cells", count, cells)
            encode_pictures(vae, seed, cells, count).save(path)


def train_unet(work: Path, plan: UnetPlan, *, stop_after: int | None = None) -> None:
    """Train UNet and text encoder; the state is work/unet.pt, the checkpoint so far work/checkpoint."""
    vae, networks = load_vae(work), build_networks(plan.seed)
    networks.unet.set_attn_processor(AttnProcessor())  # the fused kernel's backward pass is slow in bfloat16 on a CPU
    network = TextToLatents(networks.unet, networks.text_encoder).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = TrainingState(network, ema_decay=0.998, weight_decay=0.01)
    scheduler = build_scheduler()
    pools: dict[int, Pool] = {}

    def loss(step: int) -> torch.Tensor:
        cells = plan.cells(step)
        if cells not in pools:
            pools[cells] = Pool.load(pool_path(work, cells))
        latents, input_ids = unet_batch(pools[cells], plan.seed, step, plan.rows(step))
        return unet_loss(network, scheduler, latents, input_ids, seed=step)

    def check(step: int) -> None:
        averaged = averaged_networks(state, vae)
        save_checkpoint(work / "checkpoint", averaged, half=True)
        if plan.cells(step) == WINDOW:
            requests = held_out_requests(CHECK_REQUESTS, seed=1)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                pictures = paint(averaged, requests, seed=1, num_inference_steps=CHECK_STEPS)
            logger.info("step %d: %s", step, score(requests, pictures))

    run(state, work / "unet.pt", loss, plan.learning_rate(), stop_after=stop_after, check=check)


def averaged_networks(state: TrainingState, vae: AutoencoderKL) -> Networks:
    """The checkpoint's networks with the moving average of the weights."""
    networks = build_networks(0)
    network = TextToLatents(networks.unet, networks.text_encoder)
    network.load_state_dict(state.averaged_weights())
    return Networks(networks.unet.eval(), vae, networks.text_encoder.eval())


def load_vae(work: Path) -> AutoencoderKL:
    """The trained autoencoder."""
    return AutoencoderKL.from_pretrained(work / "vae", local_files_only=True, use_safetensors=True).eval()


def pool_path(work: Path, cells: int) -> Path:
    """Where the pool of one size lies."""
    return work / f"latents-{cells}.safetensors"


def main() -> None:
    """Command line of the training."""
    parser = argparse.ArgumentParser(description="Train the demo checkpoint.")
    parser.add_argument("phase", choices=["vae", "latents", "unet"])
    parser.add_argument("--work", type=Path, required=True, help="folder for states, latents and the checkpoint")
    parser.add_argument("--threads", type=int, default=1, help="one is nearly as fast as two, and leaves a core free")
    parser.add_argument("--steps", type=int, default=UnetPlan.steps, help="of the unet phase")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    if arguments.phase == "vae":
        train_vae(arguments.work, VaePlan())
    elif arguments.phase == "latents":
        encode_latents(arguments.work, VaePlan.seed)
    else:
        train_unet(arguments.work, UnetPlan(steps=arguments.steps))


if __name__ == "__main__":
    main()
