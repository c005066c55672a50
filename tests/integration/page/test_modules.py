"""The page's own arithmetic against the client's and the server's: masks that both sides understand alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from multsd_client.masks import stretch
from multsd_client.shapes import Mask, Polygon, RunLengths
from tests.browser.painting import Page

_CALL = """
const [module, code, argument, done] = arguments;
const masks = import(new URL(module, document.baseURI).href);
const calls = {
  stretched: (m, { runs, width, height }) => m.runLengths(m.stretched(m.maskOfRuns(runs), width, height)),
  polygon: (m, { points, width, height }) => {
    const mask = m.emptyMask(width, height);
    m.paintPolygon(mask, points);
    return m.runLengths(mask);
  },
  roundTrip: (m, { runs }) => m.runLengths(m.maskOfRuns(runs)),
  stroke: (m, { from, to, radius, width, height }) => {
    const mask = m.emptyMask(width, height);
    m.paintStroke(mask, from, to, radius, 1);
    return m.runLengths(mask);
  },
  ellipse: (m, { box, width, height }) => {
    const mask = m.emptyMask(width, height);
    m.paintEllipse(mask, box, 1);
    return m.runLengths(mask);
  },
  fill: (m, { runs, start, barrier }) => {
    const mask = m.copied(m.maskOfRuns(runs));
    m.floodFill(mask, start, 1, [m.maskOfRuns(barrier)]);
    return m.runLengths(mask);
  },
};
masks.then((m) => done(calls[code](m, argument)), (error) => done(String(error)));
"""


def call(page: Page, name: str, **argument: Any) -> Mask:
    """A function of core/masks.js, by way of run lengths."""
    found = page.chrome.execute_async_script(_CALL, "page/core/masks.js", name, argument)
    assert isinstance(found, dict), found
    return RunLengths(tuple(found["size"]), tuple(found["counts"])).mask()


def random_mask(seed: int, height: int, width: int) -> Mask:
    return (np.random.default_rng(seed).random((height, width)) > 0.6).astype(np.uint8)


def test_run_lengths_are_the_clients(page: Page) -> None:
    for seed, mask in enumerate([random_mask(0, 5, 7), np.ones((3, 2), np.uint8), np.zeros((2, 3), np.uint8)]):
        runs = RunLengths.from_mask(mask).to_json()
        assert np.array_equal(call(page, "roundTrip", runs=runs), mask), seed


def test_masks_of_another_size_are_stretched_as_the_server_does(page: Page) -> None:
    mask = random_mask(1, 37, 53)
    runs = RunLengths.from_mask(mask).to_json()
    for width, height in ((64, 64), (53, 37), (20, 90), (106, 74)):
        expected = stretch(mask, width=width, height=height)
        assert np.array_equal(call(page, "stretched", runs=runs, width=width, height=height), expected)
    # Among 1429 rows there is one whose centre lies between two of 10.
    stripes: Mask = (np.arange(10)[:, None] % 2).astype(np.uint8)
    found = call(page, "stretched", runs=RunLengths.from_mask(stripes).to_json(), width=1, height=1429)
    assert np.array_equal(found, stretch(stripes, width=1, height=1429))


def test_polygons_hold_the_servers_pixels(page: Page) -> None:
    points = np.random.default_rng(2).uniform(-10, 74, (9, 2))  # crosses itself and the edges
    expected = Polygon(tuple((float(x), float(y)) for x, y in points)).mask(64, 64)
    assert np.array_equal(call(page, "polygon", points=points.tolist(), width=64, height=64), expected)


def test_outlines_through_the_centres_of_pixels_hold_the_servers_pixels(page: Page) -> None:
    random = np.random.default_rng(3)
    for seed in range(40):
        points = random.integers(-10, 50, (6, 2)) / (2 if seed % 2 else 1)
        expected = Polygon(tuple((float(x), float(y)) for x, y in points)).mask(20, 20)
        found = call(page, "polygon", points=points.tolist(), width=20, height=20)
        assert np.array_equal(found, expected), points


def test_a_stroke_is_all_pixels_near_its_line(page: Page) -> None:
    (x0, y0), (x1, y1), radius = (10.3, 50.2), (52.9, 13.7), 6.5
    found = call(
        page, "stroke", **{"from": {"x": x0, "y": y0}}, to={"x": x1, "y": y1}, radius=radius, width=64, height=60
    )
    ys, xs = np.mgrid[0.5:60, 0.5:64]
    along = np.clip(((xs - x0) * (x1 - x0) + (ys - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2), 0, 1)
    distance = np.hypot(xs - x0 - along * (x1 - x0), ys - y0 - along * (y1 - y0))
    assert np.array_equal(found, (distance <= radius).astype(np.uint8))


def test_an_ellipse_is_all_pixels_inside_of_it(page: Page) -> None:
    found = call(page, "ellipse", box={"x0": -5.5, "y0": 8.25, "x1": 50, "y1": 41}, width=64, height=48)
    ys, xs = np.mgrid[0.5:48, 0.5:64]
    expected = ((xs - 22.25) / 27.75) ** 2 + ((ys - 24.625) / 16.375) ** 2 <= 1
    assert np.array_equal(found, expected.astype(np.uint8))


def test_a_fill_stops_at_the_mask_at_other_regions_and_at_the_edges(page: Page) -> None:
    mask, barrier = random_mask(3, 40, 60), random_mask(4, 40, 60)
    start = (25, 31)  # row, column
    mask[start] = barrier[start] = 0
    found = call(
        page,
        "fill",
        runs=RunLengths.from_mask(mask).to_json(),
        barrier=RunLengths.from_mask(barrier).to_json(),
        start={"x": start[1] + 0.5, "y": start[0] + 0.5},
    )
    areas, _ = ndimage.label((mask == 0) & (barrier == 0))
    assert np.array_equal(found, mask | (areas == areas[start]).astype(np.uint8))
