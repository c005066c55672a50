"""Every bad input of the API: its status, the field that is named, and what is said about it."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import zlib
from typing import Any

import pytest
from PIL import Image

from multsd_gateway.app import create_app
from multsd_gateway.inference import ModelDescription
from tests.unit.gateway.fakes import FakePainter, ask, image_base64, mask_base64, post, seed_request, settings

PNG = base64.b64decode(mask_base64())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", 1000)
        + b"IDAT"
    )


def _animation(image_format: str) -> str:
    frames = [Image.new("L", (64, 64), grey) for grey in (0, 128, 255)]
    return image_base64(frames[0], image_format, save_all=True, append_images=frames[1:])


def _without(name: str) -> dict[str, Any]:
    return {key: value for key, value in seed_request().items() if key != name}


def _raw(name: str, literal: str) -> bytes:
    """A valid request whose field holds a literal that json.dumps would not write."""
    return json.dumps(seed_request(**{name: "@"})).replace('"@"', literal).encode()


FIELDS: dict[str, tuple[Any, str, str]] = {
    # counts that differ
    "too few masks": (seed_request(masks=[]), "masks", "expected 1 (one per fg_prompt), found 0"),
    "too many masks": (seed_request(masks=[mask_base64()] * 2), "masks", "expected 1 (one per fg_prompt), found 2"),
    "too few prompts": (seed_request(fg_prompt=[]), "masks", "expected 0 (one per fg_prompt), found 1"),
    "negative prompts": (
        seed_request(fg_nprompt=["a", "b"]),
        "fg_nprompt",
        "expected 1 (one per fg_prompt) or 1 for all, found 2",
    ),
    "too many regions": (
        seed_request(fg_prompt=["a"] * 33, masks=["x"] * 33),
        "fg_prompt",
        "expected at most 32 prompts, found 33",
    ),
    "very many regions": (seed_request(fg_prompt=[1] * 5000), "fg_prompt", "expected at most 1000 items, found 5000"),
    # a string where a list belongs
    "prompt not a list": (seed_request(fg_prompt="a dog"), "fg_prompt", 'expected a list, found "a dog"'),
    "negative not a list": (seed_request(fg_nprompt="x"), "fg_nprompt", 'expected a list, found "x"'),
    "masks not a list": (seed_request(masks="abc"), "masks", 'expected a list, found "abc"'),
    # missing and mistyped
    "nothing": ({}, "bg_prompt", "expected a value, found nothing"),
    "no background": (_without("bg_prompt"), "bg_prompt", "expected a value, found nothing"),
    "null background": (seed_request(bg_prompt=None), "bg_prompt", "expected a value, found nothing"),
    "number for text": (seed_request(bg_prompt=7), "bg_prompt", "expected a string, found 7"),
    "list for text": (seed_request(bg_prompt=["a"]), "bg_prompt", "expected a string, found a list of 1"),
    "object for text": (seed_request(bg_nprompt={}), "bg_nprompt", "expected a string, found an object"),
    "null in list": (seed_request(fg_prompt=[None]), "fg_prompt[0]", "expected a string, found null"),
    "a mask of nothing known": (
        seed_request(masks=[{"a": 1}]),
        "masks[0]",
        'expected an image or an object with one of "box", "polygon", "counts", found an object with 0',
    ),
    "two shapes in one": (
        seed_request(masks=[{"box": [0, 0, 8, 8], "polygon": []}]),
        "masks[0]",
        'expected an image or an object with one of "box", "polygon", "counts", found an object with 2',
    ),
    "a shape and more": (
        seed_request(masks=[{"box": [0, 0, 8, 8], "colour": 1}]),
        "masks[0]",
        'box: expected no other names, found "colour"',
    ),
    "a box of three": (seed_request(masks=[{"box": [0, 0, 8]}]), "masks[0]", "box: expected 4 numbers, found 3"),
    "a box of text": (
        seed_request(masks=[{"box": "0,0,8,8"}]),
        "masks[0]",
        'box: expected a list of numbers, found "0,0,8,8"',
    ),
    "a box turned over": (
        seed_request(masks=[{"box": [8, 0, 8, 8]}]),
        "masks[0]",
        "box: expected 0 <= x0 < x1 and 0 <= y0 < y1, found 8,0,8,8",
    ),
    "a box outside": (
        seed_request(masks=[{"box": [64, 0, 70, 8]}]),
        "masks[0]",
        "box: expected it on the 64x64 canvas, found 64,0,70,8",
    ),
    "a huge box": (
        seed_request(masks=[{"box": [0, 0, 10**999, 8]}]),
        "masks[0]",
        f"box: expected 0 to 100000, found 1{'0' * 39}...",
    ),
    "a polygon of two": (
        seed_request(masks=[{"polygon": [[0, 0], [1, 1]]}]),
        "masks[0]",
        "polygon: expected at least 3 points, found 2",
    ),
    "a point of three": (
        seed_request(masks=[{"polygon": [[0, 0, 0], [1, 1], [2, 2]]}]),
        "masks[0]",
        "polygon[0]: expected 2 numbers, found 3",
    ),
    "a point far away": (
        seed_request(masks=[{"polygon": [[0, 0], [1, 1e9], [2, 2]]}]),
        "masks[0]",
        "polygon[1]: expected -100000 to 100000, found 1000000000.0",
    ),
    "a polygon of no list": (
        seed_request(masks=[{"polygon": 7}]),
        "masks[0]",
        "polygon: expected a list of points, found 7",
    ),
    "many points": (
        seed_request(masks=[{"polygon": [[0, 0]] * 1001}]),
        "masks[0]",
        "polygon: expected at most 1000 points, found 1001",
    ),
    "runs without a size": (
        seed_request(masks=[{"counts": [4096]}]),
        "masks[0]",
        "size: expected a list of numbers, found null",
    ),
    "runs that do not add up": (
        seed_request(masks=[{"size": [64, 64], "counts": [1, 2]}]),
        "masks[0]",
        "counts: expected 4096 pixels in all (64 x 64), found 3",
    ),
    "a negative run": (
        seed_request(masks=[{"size": [1, 1], "counts": [2, -1]}]),
        "masks[0]",
        "counts: expected 0 to 10000000000, found -1",
    ),
    "runs of no pixels": (
        seed_request(masks=[{"size": [0, 8], "counts": []}]),
        "masks[0]",
        "size: expected [height, width] of at least 1, found [0, 8]",
    ),
    "a bomb of runs": (
        seed_request(masks=[{"size": [100_000, 100_000], "counts": [10**10]}]),
        "masks[0]",
        "expected a mask of at most 16777216 pixels, found 100000x100000",
    ),
    "text for number": (seed_request(width="wide"), "width", 'expected a whole number, found "wide"'),
    "empty number": (seed_request(width=""), "width", 'expected a whole number, found ""'),
    "boolean for number": (seed_request(height=True), "height", "expected a whole number, found true"),
    "list for number": (seed_request(height=[512]), "height", "expected a whole number, found a list of 1"),
    "fraction": (seed_request(ddim_steps=1.5), "ddim_steps", "expected a whole number, found 1.5"),
    "fraction in text": (seed_request(ddim_steps="1.5"), "ddim_steps", 'expected a whole number, found "1.5"'),
    "exponent": (seed_request(width="1e999"), "width", 'expected a whole number, found "1e999"'),
    "NaN in text": (seed_request(seed="NaN"), "seed", 'expected a whole number, found "NaN"'),
    "Infinity in text": (seed_request(seed="Infinity"), "seed", 'expected a whole number, found "Infinity"'),
    "underscores": (seed_request(width="5_12"), "width", 'expected a whole number, found "5_12"'),
    "other digits": (
        seed_request(width="\u0665\u0661\u0662"),
        "width",
        'expected a whole number, found "\u0665\u0661\u0662"',
    ),
    "many digits": (seed_request(seed="9" * 30), "seed", f'expected a whole number, found "{"9" * 30}"'),
    "float overflow": (_raw("width", "1e999"), "width", "expected a whole number, found Infinity"),
    "guidance not a number": (
        seed_request(guidance_scale="x"),
        "guidance_scale",
        'expected a finite number, found "x"',
    ),
    "guidance infinite": (
        _raw("guidance_scale", "1e999"),
        "guidance_scale",
        "expected a finite number, found Infinity",
    ),
    "guidance boolean": (seed_request(guidance_scale=True), "guidance_scale", "expected a finite number, found true"),
    "guidance huge": (seed_request(guidance_scale="9e300"), "guidance_scale", "expected 0 to 100, found 9e+300"),
    "half a surrogate pair": (
        _raw("bg_prompt", '"\\ud800"'),
        "bg_prompt",
        'expected valid Unicode, found half a surrogate pair in "?"',
    ),
    # sizes and ranges
    "negative width": (seed_request(width=-512), "width", "expected 64 to 8192, found -512"),
    "zero height": (seed_request(height="0"), "height", "expected 64 to 8192, found 0"),
    "small": (seed_request(width=63), "width", "expected 64 to 8192, found 63"),
    "absurd width": (seed_request(width=10**9), "width", "expected 64 to 8192, found 1000000000"),
    "thousand digits": (_raw("width", "9" * 1000), "width", f"expected 64 to 8192, found {'9' * 40}..."),
    "too many pixels": (
        seed_request(width=4096, height=4096),
        "width",
        "expected width x height of at most 4194304 pixels, found 4096 x 4096",
    ),
    "too many mask pixels": (
        seed_request(width=2048, height=2048, fg_prompt=["a"] * 17, fg_nprompt=[], masks=["x"] * 17),
        "masks",
        "expected at most 33554432 mask pixels, found 17 masks of 2048 x 2048",
    ),
    "no steps": (seed_request(ddim_steps=0), "ddim_steps", "expected 1 to 200, found 0"),
    "too many steps": (seed_request(ddim_steps="201"), "ddim_steps", "expected 1 to 200, found 201"),
    "negative bootstrapping": (seed_request(bootstrapping=-1), "bootstrapping", "expected 0 to 1000, found -1"),
    "negative seed": (seed_request(seed=-1), "seed", "expected 0 to 18446744073709551615, found -1"),
    "seed too large": (
        seed_request(seed=2**64),
        "seed",
        "expected 0 to 18446744073709551615, found 18446744073709551616",
    ),
    "negative guidance": (seed_request(guidance_scale=-1), "guidance_scale", "expected 0 to 100, found -1.0"),
    "stride": (seed_request(view_stride=0), "view_stride", "expected 1 to "),  # 1024, or a served model's window
    "format": (seed_request(output_format="tiff"), "output_format", 'expected jpeg, png, webp, found "tiff"'),
    "quality": (seed_request(quality=101), "quality", "expected 1 to 100, found 101"),
    "previews": (seed_request(preview_every=-1), "preview_every", "expected 0 to 200, found -1"),
    "no time": (seed_request(deadline_s=0), "deadline_s", "expected 0.1 to 300, found 0.0"),
    "too much time": (seed_request(deadline_s="301"), "deadline_s", "expected 0.1 to 300, found 301.0"),
    # prompts
    "bytes, not characters": (
        seed_request(bg_prompt="\u00e4" * 5001),
        "bg_prompt",
        "expected at most 10000 bytes, found 10002",
    ),
    "a prompt of 1 MB": (
        seed_request(bg_prompt="x" * 2**20),
        "bg_prompt",
        "expected at most 10000 bytes, found 1048576",
    ),
    "a long region prompt": (
        seed_request(fg_prompt=["x" * 10_001]),
        "fg_prompt[0]",
        "expected at most 10000 bytes, found 10001",
    ),
    "a long scheduler": (seed_request(scheduler="x" * 50), "scheduler", "expected at most 40 bytes, found 50"),
    # masks
    "base64 padding": (
        seed_request(masks=["abc"]),
        "masks[0]",
        "expected an image in base64, found invalid base64: Incorrect padding",
    ),
    "base64 characters": (
        seed_request(masks=["!!!!"]),
        "masks[0]",
        "expected an image in base64, found invalid base64: Only base64 data is allowed",
    ),
    "not ASCII": (
        seed_request(masks=["\u00e4"]),
        "masks[0]",
        "expected an image in base64, found invalid base64: a character that is not ASCII",
    ),
    "empty mask": (seed_request(masks=[""]), "masks[0]", "expected an image in base64, found nothing"),
    "empty data URL": (
        seed_request(masks=["data:image/png;base64,"]),
        "masks[0]",
        "expected an image in base64, found nothing",
    ),
    "data URL without base64": (
        seed_request(masks=["data:image/svg+xml,<svg/>"]),
        "masks[0]",
        "expected a data: URL with base64, found another encoding",
    ),
    "text as a mask": (
        seed_request(masks=[_base64(b"hello, world")]),
        "masks[0]",
        "expected a PNG, JPEG, WEBP, GIF, BMP image, found 12 bytes of something else",
    ),
    "another format": (
        seed_request(masks=[image_base64(Image.new("L", (64, 64)), "TIFF")]),
        "masks[0]",
        "expected a PNG, JPEG, WEBP, GIF, BMP image, found",
    ),
    "truncated": (
        seed_request(masks=[_base64(PNG[:-30])]),
        "masks[0]",
        "expected a whole PNG image, found a broken one",
    ),
    "huge by its header": (
        seed_request(masks=[_base64(_png_header(8000, 8000))]),
        "masks[0]",
        "expected an image of at most 16777216 pixels, found 8000x8000",
    ),
    "a bomb by its header": (
        seed_request(masks=[_base64(_png_header(60000, 60000))]),
        "masks[0]",
        "expected an image of at most 16777216 pixels, found 3600000000",
    ),
    "suspicious by its header": (
        seed_request(masks=[_base64(_png_header(10000, 10000))]),
        "masks[0]",
        "expected an image of at most 16777216 pixels, found",
    ),
    "animated GIF": (
        seed_request(masks=[_animation("GIF")]),
        "masks[0]",
        "expected a still image, found an animated GIF",
    ),
    "animated WebP": (
        seed_request(masks=[_animation("WEBP")]),
        "masks[0]",
        "expected a still image, found an animated WEBP",
    ),
    "animated PNG": (
        seed_request(masks=[_animation("PNG")]),
        "masks[0]",
        "expected a still image, found an animated PNG",
    ),
    "the second mask": (
        seed_request(fg_prompt=["a", "b"], fg_nprompt=[], masks=[mask_base64(), "?"]),
        "masks[1]",
        "expected an image in base64, found invalid base64: Only base64 data is allowed",
    ),
    # the body
    "not JSON": (b"{bg_prompt: 1}", "body", "expected JSON, found an error at line 1 column 2"),
    "empty body": (b"", "body", "expected JSON, found an error at line 1 column 1"),
    "not an object": (b'["a"]', "body", "expected a JSON object, found a list of 1"),
    "NaN": (_raw("width", "NaN"), "width", "expected a whole number, found NaN"),
    "Infinity": (_raw("guidance_scale", "-Infinity"), "guidance_scale", "expected a finite number, found -Infinity"),
    "100 000 brackets": (b"[" * 100_000, "body", "expected at most 16 nested lists and objects, found more"),
    "100 000 objects": (b'{"a":' * 100_000, "body", "expected at most 16 nested lists and objects, found more"),
    "very many lists": (b'{"a":[' + b"[]," * 50_000, "body", "expected at most 42000 lists and objects, found more"),
    "invalid UTF-8": (b'{"bg_prompt": "\xff"}', "body", "expected UTF-8, found byte 0xff at position 15"),
    "ten thousand digits": (_raw("width", "9" * 10_000), "body", "expected JSON, found Exceeds the limit"),
    "a name twice": (b'{"width": 64, "width": 65}', "width", "expected once, found more than once"),
}


@pytest.mark.parametrize(("body", "field", "message"), FIELDS.values(), ids=FIELDS.keys())
def test_bad_input_is_a_400_that_names_field_expected_and_found(body: Any, field: str, message: str) -> None:
    painter = FakePainter()

    reply = post(body, painter=painter)

    assert reply.status_code == 400
    notes = [note for note in reply.json()["errors"] if note["field"] == field]
    assert notes, reply.json()["errors"]
    assert notes[0]["message"].startswith(message)
    assert f"{field}: {message}"[:20] in reply.json()["message"]
    assert len(reply.content) < 4000, "a reply never echoes what is large"
    assert painter.requests == []


@pytest.mark.parametrize("path", ["/multsd", "/multsd/stream"])
def test_a_body_above_the_limit_is_a_413(path: str) -> None:
    reply = post(b"x" * 1001, path=path, max_body_bytes=1000)

    assert reply.status_code == 413
    assert reply.json()["message"] == "body: expected at most 1000 bytes, found 1001"


def test_bad_input_to_the_stream_is_an_ordinary_400() -> None:
    reply = post(seed_request(masks=["abc"]), path="/multsd/stream")

    assert reply.status_code == 400
    assert reply.json()["errors"][0]["field"] == "masks[0]"


def test_every_fault_is_told_at_once() -> None:
    reply = post(seed_request(width="x", height="y", seed=-1))

    assert [note["field"] for note in reply.json()["errors"]] == ["width", "height", "seed"]


def _faults(body: dict[str, Any], *, query: str = "", painter: FakePainter | None = None) -> list[str]:
    reply = post(body, path=f"/multsd{query}", painter=painter)
    assert reply.status_code == 400
    return [note["field"] for note in reply.json()["errors"]]


def test_a_field_that_cannot_be_read_hides_no_other_fault() -> None:
    assert _faults({"guidance_scale": "nan", "quality": 0, "view_stride": 0}) == [
        "bg_prompt",
        "guidance_scale",
        "view_stride",
        "quality",
    ]
    assert _faults(seed_request(sede=1, seed=-1, width="x"), query="?strict=1") == ["sede", "width", "seed"]


@pytest.mark.parametrize("name", ["fg_prompt", "masks", "fg_nprompt"])
def test_a_list_that_cannot_be_read_is_not_counted(name: str) -> None:
    assert _faults(seed_request(**{name: "x"})) == [name]


@pytest.mark.parametrize("name", ["width", "height"])
def test_a_side_that_cannot_be_read_makes_no_area(name: str) -> None:
    assert _faults(seed_request(width=8192, height=8192) | {name: "x"}) == [name]


def test_an_unknown_scheduler_is_told_with_the_rest_where_the_model_named_its_own() -> None:
    painter = FakePainter(description=ModelDescription(frozenset(), {"samplers": "ddim, euler"}))

    assert _faults(seed_request(scheduler="elder", seed=-1), painter=painter) == ["scheduler", "seed"]
    assert _faults(seed_request(scheduler="elder", seed=-1)) == ["seed"]
    assert painter.requests == []
    assert post(seed_request(scheduler="euler"), painter=painter).status_code == 200
    reply = post(seed_request(width=1, height=1, ddim_steps=0, masks=[]))
    assert [note["field"] for note in reply.json()["errors"]] == ["masks", "width", "height", "ddim_steps"]


def test_unknown_fields_are_errors_when_strict() -> None:
    reply = post(seed_request(widht=512), path="/multsd?strict=1")

    assert reply.status_code == 400
    assert reply.json()["errors"] == [
        {"field": "widht", "message": 'unknown field, not used; did you mean "width"?'},
    ]


def test_a_compressed_body_is_refused_by_name() -> None:
    app = create_app(settings(), FakePainter())

    reply = ask(app, "POST", "/multsd", content=gzip.compress(b"{}"), headers={"Content-Encoding": "gzip"})

    assert reply.status_code == 400
    assert reply.json()["errors"] == [{"field": "body", "message": "expected no Content-Encoding, found gzip"}]
