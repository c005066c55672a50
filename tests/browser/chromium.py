"""Debian's Chromium, headless, driven by Selenium through Debian's chromedriver: nothing is downloaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

PROGRAMS = ("chromium", "chromedriver")


def missing_programs() -> list[str]:
    """Which of the programs are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextmanager
def running_browser() -> Iterator[webdriver.Chrome]:
    """A browser with a profile of its own, ended on the way out."""
    browser, driver = (str(shutil.which(name)) for name in PROGRAMS)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    # Chromium's sandbox needs a user other than root, and containers have little shared memory.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


def protocol(chrome: webdriver.Chrome, command: str, parameters: Mapping[str, Any]) -> None:
    """Send a command of the Chrome DevTools Protocol."""
    chrome.execute_cdp_cmd(command, dict(parameters))


def window(
    chrome: webdriver.Chrome, *, width: int, height: int, dark: bool = False, touch: bool = False, ratio: float = 1
) -> None:
    """The page's size in CSS pixels, its colour scheme, whether fingers touch it, and its screen's own pixels."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": ratio, "mobile": touch}
    protocol(chrome, "Emulation.setDeviceMetricsOverride", metrics)
    protocol(chrome, "Emulation.setTouchEmulationEnabled", {"enabled": touch})
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    motion = {"name": "prefers-reduced-motion", "value": "reduce"}  # colours are the final ones at once
    protocol(chrome, "Emulation.setEmulatedMedia", {"features": [scheme, motion]})


def console_errors(chrome: webdriver.Chrome) -> list[str]:
    """What the console has said since the last call, warnings and worse."""
    entries = chrome.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]


def fingers(chrome: webdriver.Chrome, kind: str, *points: tuple[float, float]) -> None:
    """One touch event: kind is touchStart, touchMove or touchEnd; points in CSS pixels of the window."""
    touches = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
    protocol(chrome, "Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
