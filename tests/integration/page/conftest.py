"""The page in a real Chromium, in front of the suite's real stack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from multsd_gateway.stack.supervisor import Stack
from tests.browser.chromium import console_errors, missing_programs, running_browser, window
from tests.browser.painting import Page


@pytest.fixture(scope="session")
def chrome() -> Iterator[Chrome]:
    """One browser for all tests of the page."""
    if missing := missing_programs():
        pytest.skip(f"{' and '.join(missing)} missing: apt-get install chromium chromium-driver")
    with running_browser() as running:
        yield running


@pytest.fixture
def page(chrome: Chrome, stack: Stack, tmp_path: Path) -> Page:
    """The page, just opened by somebody who was never there, in a window of ordinary size."""
    window(chrome, width=1280, height=860)
    page = Page(chrome, stack.url, tmp_path)
    page.open()
    console_errors(chrome)  # those of the test before
    return page


@pytest.fixture
def blank(page: Page) -> Page:
    """The page with a blank canvas."""
    page.begin("Blank canvas")
    return page
