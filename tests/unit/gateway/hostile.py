"""A corpus of images and bodies that somebody might send to do harm, each made here. None is to be a server error."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import zlib
from typing import Any

from PIL import Image

from tests.unit.gateway.fakes import mask_base64, seed_request

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
CUTS = (1, 8, 20, 33, 60)  # bytes that are left
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def file_of(image_format: str, size: tuple[int, int] = (64, 64)) -> bytes:
    """A small, good image."""
    buffer = io.BytesIO()
    Image.new("L", size, 255).save(buffer, image_format)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes, *, length: int | None = None, good_sum: bool = True) -> bytes:
    """A PNG chunk; length: the one it claims."""
    check = zlib.crc32(kind + data) ^ (0 if good_sum else 1)
    return struct.pack(">I", len(data) if length is None else length) + kind + data + struct.pack(">I", check)


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 0, interlace: int = 0) -> bytes:
    """A PNG of a claimed size, made of the given chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return PNG_SIGNATURE + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def pixels(size: int) -> bytes:
    """An IDAT of so many zeros."""
    return chunk(b"IDAT", zlib.compress(bytes(size)))


def text_bomb(kind: bytes) -> bytes:
    """A text chunk of 50 KB that unpacks to 50 MB."""
    packed = zlib.compress(bytes(50_000_000), 9)
    head = b"k\0\0" if kind in (b"zTXt", b"iCCP") else b"k\0\1\0\0\0"
    return chunk(kind, head + packed)


def images() -> dict[str, bytes]:
    """The hostile images by name."""
    row = 64 * 64 + 64
    corpus = {
        "nothing but a PNG signature": PNG_SIGNATURE,
        "no header": PNG_SIGNATURE + chunk(b"IDAT", b""),
        "no pixels": png(64, 64),
        "no width": png(0, 64, pixels(row)),
        "too few pixels": png(64, 64, pixels(10)),
        "too many pixels": png(64, 64, pixels(5_000_000)),
        "pixels that are no zlib": png(64, 64, chunk(b"IDAT", b"\xff" * 100)),
        "a wrong checksum": png(64, 64, chunk(b"IDAT", zlib.compress(bytes(row)), good_sum=False)),
        "a chunk that claims 2 GB": png(64, 64, chunk(b"IDAT", b"x", length=2**31 - 1)),
        "a chunk that claims 4 GB": png(64, 64, chunk(b"IDAT", b"x", length=2**32 - 1)),
        "an unknown depth": png(64, 64, pixels(row), depth=7),
        "an unknown colour type": png(64, 64, pixels(row), colour=9),
        "a palette image without a palette": png(64, 64, pixels(row), colour=3),
        "interlaced, cut": png(64, 64, pixels(10), interlace=1),
        "two billion wide": png(2**31 - 1, 1, pixels(row)),
        "one wide, two billion high": png(1, 2**31 - 1, pixels(row)),
        "a text that unpacks to 50 MB": png(64, 64, text_bomb(b"zTXt"), pixels(row)),
        "an international one": png(64, 64, text_bomb(b"iTXt"), pixels(row)),
        "a profile that unpacks to 50 MB": png(64, 64, text_bomb(b"iCCP"), pixels(row)),
        "a thousand header chunks": png(64, 64, *[chunk(b"IHDR", bytes(13))] * 1000, pixels(row)),
        "an animation of no frames": png(64, 64, chunk(b"acTL", bytes(8)), pixels(row)),
        "an animation of four billion": png(64, 64, chunk(b"acTL", b"\xff" * 8), pixels(row)),
        "a JPEG of 65535 squared": b"\xff\xd8"
        b"\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x11\x00\x02\x11\x01\x03\x11\x01",
        "a JPEG of markers": b"\xff\xd8" + b"\xff\xe1\x00\x02" * 20_000,
        "a GIF of 65535 squared": b"GIF89a\xff\xff\xff\xff\x80\x00\x00"
        + bytes(6)
        + b",\0\0\0\0\xff\xff\xff\xff\x00\x08",
        "a GIF frame outside": b"GIF89a\x08\x00\x08\x00\x80\x00\x00"
        + bytes(6)
        + b",\xff\xff\xff\xff\x08\x00\x08\x00\x00\x08",
        "a BMP of two billion": b"BM"
        + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, *[0] * 6),
        "a BMP upside down": b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, -64, -(2**31), 1, 8, *[0] * 6),
        "a BMP of runs that never end": b"BM"
        + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, 64, 64, 1, 8, 1, *[0] * 5)
        + b"\xff\x01" * 50_000,
        "a WebP that claims 4 GB": b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 40,
        "an SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(/etc/passwd) (r) file\n",
        "a TIFF": file_of("TIFF"),
        "an icon": file_of("ICO"),
        "a PDF": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "a ZIP": b"PK\x03\x04" + bytes(100),
        "a PNG with a ZIP behind it": file_of("PNG") + b"PK\x03\x04" + bytes(1000),
        "only NUL": bytes(10_000),
    }
    for image_format in FORMATS:
        good = file_of(image_format)
        corpus |= {f"{image_format}, cut after {left}": good[:left] for left in CUTS}
        corpus[f"{image_format}, its middle turned over"] = bytes(
            byte ^ 0xFF if len(good) // 3 < i < len(good) // 2 else byte for i, byte in enumerate(good)
        )
    return corpus


def bodies() -> dict[str, bytes]:
    """The hostile bodies by name."""
    good = json.dumps(seed_request()).encode()
    corpus: dict[str, bytes] = {f"image: {name}": _with_mask(_base64(data)) for name, data in images().items()}
    corpus |= {
        "UTF-16": json.dumps(seed_request()).encode("utf-16"),
        "UTF-32": json.dumps(seed_request()).encode("utf-32"),
        "Latin-1": json.dumps(seed_request(bg_prompt="\u00e4"), ensure_ascii=False).encode("latin-1"),
        "packed": gzip.compress(good),
        "a form": b"bg_prompt=a&width=64",
        "multipart": b'--x\r\nContent-Disposition: form-data; name="bg_prompt"\r\n\r\na\r\n--x--\r\n',
        "XML": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
        "NUL": b"\0" * 1000,
        "two objects": good * 2,
        "an object and more": good + b" trailing",
        "a comment": b"/* a */" + good,
        "a number": b"1" * 5000,
        "a string that never ends": b'{"bg_prompt": "' + b"x" * 100_000,
        "escapes": b'{"bg_prompt": "' + b"\\" * 99_999,
        "half pairs": b'{"bg_prompt": "\\ud800\\udc00\\ud800"}',
        "names that are special elsewhere": json.dumps(
            seed_request(**{"__proto__": {}, "constructor": 1, "__class__": "x", "model_config": {}})
        ).encode(),
        "ten thousand unknown names": json.dumps(seed_request() | {f"n{i}": i for i in range(9_000)}).encode(),
        "a name of a megabyte": json.dumps(seed_request() | {"x" * 10**6: 1}).encode(),
        "a number of 4000 digits": _raw("seed", "9" * 4000),
        "a tiny number": _raw("guidance_scale", "1e-999"),
        "minus zero": _raw("guidance_scale", "-0.0"),
        "an exponent": _raw("width", "6.4e1"),
        "format characters in a prompt": json.dumps(seed_request(bg_prompt="%s{0}${x}\u202e\r\n\x1b[31m")).encode(),
        "a data URL of a file": _with_mask("data:text/html;base64,PHNjcmlwdD4="),
        "a URL": _with_mask("http://169.254.169.254/latest/meta-data/"),
        "a path": _with_mask("/etc/passwd"),
        "a megabyte of padding": _with_mask("=" * 10**6),
        "white space": _with_mask(" " * 10**6),
        "counts of text": _with_mask({"size": ["64", "64"], "counts": ["4096"]}),
        "a million runs": _with_mask({"size": [1000, 1000], "counts": [1] * 10**6}),
        "runs of nothing": _with_mask({"size": [64, 64], "counts": [0] * 10**5 + [4096]}),
        "a polygon of one place": _with_mask({"polygon": [[1, 1]] * 1000}),
        "a polygon of tiny steps": _with_mask({"polygon": [[1e-300, i * 1e-300] for i in range(900)]}),
        "a polygon of NaN in text": _with_mask({"polygon": [["NaN", 0], [1, 1], [2, 2]]}),
    }
    return corpus


def _with_mask(mask: Any) -> bytes:
    return json.dumps(seed_request(masks=[mask])).encode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _raw(name: str, literal: str) -> bytes:
    return json.dumps(seed_request(**{name: "@", "masks": [mask_base64()]})).replace('"@"', literal).encode()
