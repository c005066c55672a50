"""The corpus of hostile images and bodies: refused or painted, quickly, and never a server error."""

from __future__ import annotations

import logging
import time
import tracemalloc

import pytest

from tests.unit.gateway.fakes import post
from tests.unit.gateway.hostile import bodies, images

BODIES = bodies()

# Harmless after all, or read leniently on purpose; everything else is refused.
PAINTED = {
    "image: a PNG with a ZIP behind it",
    "image: a wrong checksum",
    "image: an animation of no frames",
    "image: an animation of four billion",
    "image: a palette image without a palette",
    "image: BMP, its middle turned over",
    "image: too many pixels",
    "names that are special elsewhere",
    "ten thousand unknown names",
    "a name of a megabyte",
    "a tiny number",
    "minus zero",
    "an exponent",
    "format characters in a prompt",
    "counts of text",
    "a million runs",
    "runs of nothing",
    "a polygon of one place",
    "a polygon of tiny steps",
}
SECONDS = 5.0
PEAK_BYTES = 150_000_000


@pytest.mark.filterwarnings("ignore:Invalid APNG")  # as in a server, where a warning is no error
@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_answered_quickly_and_is_no_server_error(name: str, caplog: pytest.LogCaptureFixture) -> None:
    began = time.process_time()  # of this process, which serves: others may be at work
    with caplog.at_level(logging.WARNING):
        reply = post(BODIES[name])

    assert reply.status_code == (200 if name in PAINTED else 400), reply.text[:500]
    assert len(reply.content) < 20_000
    assert time.process_time() - began < SECONDS
    assert caplog.text == ""


@pytest.mark.filterwarnings("ignore:Invalid APNG")
def test_no_hostile_image_takes_much_memory() -> None:
    tracemalloc.start()
    try:
        for name in images():
            post(BODIES[f"image: {name}"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < PEAK_BYTES
