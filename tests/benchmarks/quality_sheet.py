"""The contact sheet: what was asked for, the oracle, and every variant's picture, a request a row.

Lengths are pixels.
"""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from demo_checkpoint.language import COLOURS
from demo_checkpoint.pictures import Pixels
from tests.benchmarks.quality_requests import Request

TILE = 208  # the longer side of a picture
_SPACE, _HEADER, _TEXT = 8, 30, 200
_OUTLINE = 3  # of a mask, in the sheet
_INK, _PAPER = (25, 25, 25), (255, 255, 255)
_WALL = (170, 170, 170)  # behind the masks: no colour of the language


def contact_sheet(
    requests: Sequence[Request], pictures: Sequence[Mapping[str, Pixels]], titles: Mapping[str, str]
) -> Image.Image:
    """One row for each request: its prompts, its masks, and its pictures by variant, in the order of the titles."""
    width = _TEXT + (len(titles) + 1) * (TILE + _SPACE) + _SPACE
    sheet = Image.new("RGB", (width, _HEADER + len(requests) * (TILE + _SPACE)), _PAPER)
    _write_header(sheet, ["masks", *titles.values()])
    for row, (request, by_variant) in enumerate(zip(requests, pictures, strict=True)):
        top = _HEADER + row * (TILE + _SPACE)
        _write_prompts(sheet, request, top)
        tiles = [draw_masks(request), *(tile(by_variant[name]) for name in titles)]
        for column, each in enumerate(tiles):
            sheet.paste(each, (_TEXT + column * (TILE + _SPACE), top))
    return sheet


def tile(pixels: Pixels) -> Image.Image:
    """A picture, its longer side TILE."""
    image = Image.fromarray(pixels)
    image.thumbnail((TILE, TILE), Image.Resampling.BOX)
    return image


def draw_masks(request: Request) -> Image.Image:
    """The masks, filled palely and outlined in the colours that are asked for."""
    pixels = np.full((request.height, request.width, 3), _WALL, np.float32)
    thickness = round(_OUTLINE * max(request.height, request.width) / TILE)
    for region in request.regions:
        colour = np.array(COLOURS[region.thing.colour], np.float32)
        edge = region.mask & ~ndimage.binary_erosion(region.mask, iterations=thickness)
        pixels[region.mask] = pixels[region.mask] * 0.65 + colour * 0.35
        pixels[edge] = colour
    return tile(np.rint(pixels).astype(np.uint8))


def _write_header(sheet: Image.Image, titles: Sequence[str]) -> None:
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        x = _TEXT + column * (TILE + _SPACE) + TILE // 2
        draw.text((x, _HEADER // 2), title, fill=_INK, font=_font(18), anchor="mm")


def _write_prompts(sheet: Image.Image, request: Request, top: int) -> None:
    lines = [f"{request.width} x {request.height}", "", *request.prompts]
    text = "\n".join(part for line in lines for part in textwrap.wrap(line, 24) or [""])
    ImageDraw.Draw(sheet).multiline_text((_SPACE, top + 4), text, fill=_INK, font=_font(15), spacing=4)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
