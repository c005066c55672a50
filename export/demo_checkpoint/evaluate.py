"""The held-out check: `python -m demo_checkpoint.evaluate CHECKPOINT` paints prompts and counts what a rule finds.

The pictures come from seeds that training never saw, without masks, with the HTTP API's guidance unless told otherwise.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image, ImageDraw

from demo_checkpoint.arguments import at_least, folder_with
from demo_checkpoint.core import Core
from demo_checkpoint.language import COLOURS, PLAIN, SHAPES, TEXTURES, Ground, Thing, caption
from demo_checkpoint.networks import Networks, load_networks
from demo_checkpoint.pictures import Pixels
from demo_checkpoint.recognise import ground_share, recognise
from demo_checkpoint.sampling import sample

BATCH = 8
MIN_GROUND = 0.8  # of the background, in the colour that was named
_TILE = 160


@dataclass(frozen=True)
class Request:
    """A prompt and what has to be seen for it."""

    thing: Thing
    ground: Ground | None

    @property
    def prompt(self) -> str:
        """The caption of a picture that shows exactly this."""
        return caption((self.thing,), self.ground)


@dataclass(frozen=True)
class Score:
    """Shares of the requests, 0 to 1; ground only over the requests that name one."""

    requests: int
    colour: float
    shape: float
    ground: float


def held_out_requests(count: int, seed: int) -> list[Request]:
    """Requests with every colour and shape in turn; every third names a background."""
    rng = np.random.default_rng((seed, 3))
    return [_request(rng, i) for i in range(count)]


def score(requests: Sequence[Request], pictures: Sequence[Pixels]) -> Score:
    """What the rule finds in a request's picture, averaged."""
    seen = [recognise(picture, request.thing) for request, picture in zip(requests, pictures, strict=True)]
    grounds = [
        ground_share(picture, request.ground.colour, outside=found.mask) >= MIN_GROUND
        for request, picture, found in zip(requests, pictures, seen, strict=True)
        if request.ground
    ]
    shapes = [found.shape == request.thing.shape for request, found in zip(requests, seen, strict=True)]
    colours = [found.colour_right for found in seen]
    return Score(len(requests), float(np.mean(colours)), float(np.mean(shapes)), float(np.mean(grounds or [False])))


def paint(
    networks: Networks,
    requests: Sequence[Request],
    seed: int,
    *,
    num_inference_steps: int = 35,
    guidance_scale: float = 7.5,
    core: Core | None = None,
    scheduler: DDIMScheduler | None = None,
) -> list[Pixels]:
    """A picture for every request, in batches; core and scheduler: see `sample`."""
    pictures: list[Pixels] = []
    for start in range(0, len(requests), BATCH):
        prompts = [request.prompt for request in requests[start : start + BATCH]]
        pictures += sample(
            networks,
            prompts,
            seed=seed + start,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            core=core,
            scheduler=scheduler,
        )
    return pictures


def contact_sheet(pictures: Sequence[Pixels], titles: Sequence[str], columns: int = 10) -> Image.Image:
    """Pictures side by side, each with its title."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * _TILE, rows * (_TILE + 14)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        x, y = i % columns * _TILE, i // columns * (_TILE + 14)
        sheet.paste(Image.fromarray(picture).resize((_TILE - 4, _TILE - 4)), (x, y))
        draw.text((x, y + _TILE - 3), title[:30], fill="black")
    return sheet


def main() -> None:
    """Command line: print the score as JSON, and write the pictures that it counts if asked to."""
    parser = argparse.ArgumentParser(description="Count the held-out prompts that the checkpoint's pictures obey.")
    parser.add_argument("checkpoint", type=folder_with("unet", "vae", "text_encoder", "scheduler"))
    parser.add_argument("--requests", type=at_least(1), default=100)
    parser.add_argument("--seed", type=at_least(0), default=1000)
    parser.add_argument("--steps", type=at_least(1), default=35)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--sheet", type=Path, help="PNG to write the pictures to")
    parser.add_argument("--threads", type=at_least(1), default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    requests = held_out_requests(arguments.requests, arguments.seed)
    networks = load_networks(arguments.checkpoint)
    pictures = paint(
        networks,
        requests,
        arguments.seed,
        num_inference_steps=arguments.steps,
        guidance_scale=arguments.guidance,
        scheduler=DDIMScheduler.from_pretrained(arguments.checkpoint / "scheduler", local_files_only=True),
    )
    if arguments.sheet:
        contact_sheet(pictures, [request.prompt for request in requests]).save(arguments.sheet)
    print(json.dumps(asdict(score(requests, pictures))))  # noqa: T201


def _request(rng: np.random.Generator, i: int) -> Request:
    colours = list(COLOURS)
    thing = Thing(colours[i % len(colours)], SHAPES[(i + i // len(colours)) % len(SHAPES)])
    if i % 3:
        return Request(thing, None)
    others = [colour for colour in colours if colour != thing.colour]
    return Request(thing, Ground(str(rng.choice(others)), str(rng.choice([PLAIN, *TEXTURES]))))


if __name__ == "__main__":
    main()
