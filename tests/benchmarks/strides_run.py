"""What fewer views cost: `make bench-strides`. h x w canvas in latent cells.

Pictures of 512x1024 pixels are painted with views 8, 16 and 32 latent cells apart: UNet rows, seconds, how well regions
hold their masks, and whether the views' edges show. Then a large canvas is decoded in tiles and whole.
"""

import asyncio
import json
import statistics
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.table import Table
from torch import Tensor

from checkpoint_files import load_checkpoint
from decoding import decode
from demo_checkpoint.pictures import random_picture
from demo_checkpoint.train_vae import cell_colours, to_tensor
from pipeline import TILE_OVERLAP
from tests.benchmarks.console import wide_console
from tests.benchmarks.quality_metrics import score_picture
from tests.benchmarks.quality_oracle import oracle_picture
from tests.benchmarks.quality_painting import VARIANTS, OnnxNetworks, Painter
from tests.benchmarks.quality_requests import Request, make_request
from views import make_views

STRIDES = (8, 16, 32)
SIZE = (512, 1024)
BOOTSTRAPPED = next(variant for variant in VARIANTS if variant.name == "20")
LARGE = 192  # cells, 1536 pixels: two tiles in each direction
LARGE_PICTURES = 4
Row = dict[str, Any]


def main(
    requests: Annotated[int, typer.Option(min=1, help="How many pictures each stride paints.")] = 12,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of each picture.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each network.")] = 2,
    repository: Annotated[Path, typer.Option(exists=True, file_okay=False, help="A composed model repository.")] = Path(
        "build/model_repository"
    ),
    output: Annotated[Path, typer.Option(help="Folder of strides.json.")] = Path("build/bench"),
) -> None:
    """Measure what the stride and the tiles cost."""
    torch.set_num_threads(threads)
    checkpoint = load_checkpoint(repository / "multidiffusion" / "1" / "checkpoint")
    networks = OnnxNetworks(repository, threads)
    painter = Painter(checkpoint, networks, num_inference_steps=steps)
    asked = [make_request(index, SIZE) for index in range(requests)]
    rows = [_stride_row(stride, asked, painter) for stride in STRIDES]
    tiles = _tiles_row(networks, tile=checkpoint.vae_tile, cell=checkpoint.vae_scale_factor)
    _print(rows, tiles, requests=requests, steps=steps)
    output.mkdir(parents=True, exist_ok=True)
    figures = {"strides": rows, "tiles": tiles, "requests": requests, "steps": steps}
    (output / "strides.json").write_text(json.dumps(figures, indent=1) + "\n")


def _stride_row(stride: int, requests: list[Request], painter: Painter) -> Row:
    rows, seconds, over_oracle, at_edges, elsewhere = [], [], [], [], []
    for request in requests:
        started = time.perf_counter()
        pixels, count = painter.paint(request, BOOTSTRAPPED, stride)
        seconds.append(time.perf_counter() - started)
        rows.append(count)
        score = score_picture(pixels, oracle_picture(request), request)
        over_oracle += [region.over_oracle for region in score.regions]
        steps = _steps_at_edges(pixels, painter.checkpoint.vae_scale_factor, painter.checkpoint.window, stride)
        at_edges.append(steps[0])
        elsewhere.append(steps[1])
    return {
        "stride": stride,
        "rows": statistics.mean(rows),
        "seconds": statistics.median(seconds),
        "iou_over_oracle": statistics.mean(over_oracle),
        "seams": statistics.mean(at_edges) / statistics.mean(elsewhere),
    }


def view_edges(width: int, *, window: int, stride: int) -> list[int]:
    """Cells in a canvas `width` cells wide at which a view begins or ends, the canvas's own edges left out."""
    lefts = {view.left for view in make_views(window, width, window=window, stride=stride)}
    return sorted((lefts | {left + window for left in lefts}) - {0, width})


def _steps_at_edges(pixels: npt.NDArray[Any], cell: int, window: int, stride: int) -> tuple[float, float]:
    """The step between pixel columns where a window begins or ends, and at the other cells."""
    width = pixels.shape[1] // cell
    edges = view_edges(width, window=window, stride=stride)
    others = set(range(1, width)) - set(edges)
    at_edges, elsewhere = (_steps_between_columns(pixels, (at * cell for at in each)) for each in (edges, others))
    return at_edges, elsewhere


def _steps_between_columns(pixels: npt.NDArray[Any], columns: Iterable[int]) -> float:
    """Mean absolute difference of the pixels right and left of some columns, in 1/255."""
    at: Collection[int] = list(columns)
    right, left = (pixels[:, [column + side for column in at]].astype(np.float32) for side in (0, -1))
    return float(np.abs(right - left).mean())


def _tiles_row(networks: OnnxNetworks, *, tile: int, cell: int) -> Row:
    """Canvases of the training's kind, decoded in tiles and whole."""
    overlap = tile // TILE_OVERLAP

    async def decoded(latents: Tensor, largest: int) -> npt.NDArray[np.float32]:
        sample: Tensor = await decode(latents, networks.vae_decoder, tile=largest, overlap=overlap, cell=cell)
        return ((sample[0] / 2 + 0.5).clamp(0, 1) * 255).permute(1, 2, 0).numpy()

    differences: list[npt.NDArray[np.float32]] = []
    seams: dict[str, list[tuple[float, float]]] = {"tiles": [], "whole": []}
    for seed in range(LARGE_PICTURES):
        picture = random_picture(np.random.default_rng(seed), LARGE * cell).pixels
        latents = cell_colours(to_tensor([picture]), cell)  # (1, 4, h, w)
        pixels = {"tiles": asyncio.run(decoded(latents, tile)), "whole": asyncio.run(decoded(latents, LARGE))}
        differences.append(np.abs(pixels["tiles"] - pixels["whole"]))
        for name, each in pixels.items():
            at_edges, elsewhere = _steps_at_edges(each, cell, tile, tile - overlap)
            seams[name].append((at_edges, elsewhere))
    ratios = {name: np.mean(steps, axis=0) for name, steps in seams.items()}
    return {
        "side": LARGE * cell,
        "mean_difference": float(np.mean(differences)),
        "largest": float(np.max(differences)),
        **{f"seams_{name}": float(at_edges / elsewhere) for name, (at_edges, elsewhere) in ratios.items()},
    }


def _print(rows: list[Row], tiles: Row, *, requests: int, steps: int) -> None:
    console = wide_console()
    title = f"{SIZE[1]}x{SIZE[0]}, {requests} requests of 1 to 4 masks, {steps} steps, a fifth of them bootstrapped"
    table = Table("stride, cells", "UNet rows", "seconds", "IoU / oracle", "seams", title=title)
    for row in rows:
        figures = f"{row['rows']:.0f}", f"{row['seconds']:.1f}", f"{row['iou_over_oracle']:.2f}", f"{row['seams']:.2f}"
        table.add_row(str(row["stride"]), *figures)
    table.caption = "seams: the step between columns where a view begins or ends, over that at other cells"
    console.print(table)
    console.print(
        f"{tiles['side']} pixels square decoded in tiles, against whole: {tiles['mean_difference']:.3f} of 255 on "
        f"average, {tiles['largest']:.1f} at most; the step at the tiles' edges over that at other cells is "
        f"{tiles['seams_tiles']:.2f}, {tiles['seams_whole']:.2f} decoded whole"
    )
