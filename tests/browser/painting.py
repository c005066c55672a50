"""The page as its users have it: what they see, click, type and paint."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from multsd_client.shapes import Mask, RunLengths
from tests.browser.chromium import protocol

T = TypeVar("T")

SECONDS = 60  # the longest that any state is waited for
POLL_SECONDS = 0.05
Point = tuple[float, float]


class Page:
    """The page in a browser. Points are in pixels of the picture unless something else is said."""

    def __init__(self, chrome: Chrome, url: str, downloads: Path) -> None:
        self.chrome = chrome
        self.url = url
        self.downloads = downloads
        protocol(chrome, "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})

    def open(self) -> None:
        """Load the page as somebody who has never been there."""
        self.chrome.get("about:blank")
        protocol(self.chrome, "Storage.clearDataForOrigin", {"origin": self.url, "storageTypes": "all"})
        self.load()

    def load(self) -> None:
        """Load the page, and wait until it has heard from the server."""
        self.chrome.get(f"{self.url}/")
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until the page's modules have run."""
        self.wait(lambda: self.script("return document.documentElement.dataset.ready"), "the page")

    def script(self, text: str, *arguments: Any) -> Any:
        """The value of a script's return statement."""
        return self.chrome.execute_script(text, *arguments)

    def wait(self, condition: Callable[[], T], what: str) -> T:
        """Wait for a true value of the condition."""
        wait = WebDriverWait(self.chrome, SECONDS, POLL_SECONDS, ignored_exceptions=[StaleElementReferenceException])
        return wait.until(lambda _: condition(), f"waited {SECONDS} s for {what}")

    def at(self, name: str) -> WebElement:
        """The element with an id."""
        return self.chrome.find_element(By.ID, name)

    def all(self, selector: str) -> list[WebElement]:
        """Elements by CSS selector."""
        return self.chrome.find_elements(By.CSS_SELECTOR, selector)

    def click(self, name: str) -> None:
        """Scroll to the element with an id, which may lie under the bar at the bottom, and click it."""
        self.script("arguments[0].scrollIntoView({block: 'center'})", self.at(name))
        self.at(name).click()

    def write(self, name: str, text: str) -> None:
        """Replace a field's text, and leave the field."""
        field = self.at(name)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text or Keys.DELETE, Keys.TAB)

    def note(self, field: str) -> str:
        """The remark that stands at a field, by the field's name."""
        [note] = self.all(f'[data-field="{field}"] .note')
        return note.text

    def begin(self, preset: str) -> None:
        """Start from a preset."""
        Select(self.at("preset")).select_by_visible_text(preset)

    def tool(self, name: str) -> None:
        """Take a tool."""
        [radio] = self.all(f'input[name="tool"][value="{name}"]')
        radio.click()

    def brush_size(self, pixels: int) -> None:
        """Set the brush's diameter, by its slider's keys."""
        slider = self.at("brush")
        now = int(slider.get_attribute("value") or 0)
        slider.send_keys((Keys.ARROW_RIGHT if pixels > now else Keys.ARROW_LEFT) * abs(pixels - now))

    def add_region(self, prompt: str) -> int:
        """Add a region with a prompt; its number on the page."""
        self.click("add-region")
        self.chrome.switch_to.active_element.send_keys(prompt)
        return len(self.all(".region"))

    def region_button(self, number: int, action: str) -> WebElement:
        """A button of a region's card; numbers from 1."""
        return self.all(".region")[number - 1].find_element(By.CSS_SELECTOR, f'[data-action="{action}"]')

    def drag(self, *points: Point, alt: bool = False) -> None:
        """Press the mouse at the first point, move through the others, let go."""
        with self.pressed(*points, alt=alt):
            pass

    @contextmanager
    def pressed(self, *points: Point, alt: bool = False) -> Iterator[None]:
        """Press the mouse at the first point, move through the others, and let go at the end."""
        self.scroll_to_canvas()
        if alt:
            ActionChains(self.chrome).key_down(Keys.ALT).perform()
        chain = ActionChains(self.chrome, duration=10)
        pointer = chain.w3c_actions.pointer_action
        first, *others = (self.in_window(point) for point in points)
        pointer.move_to_location(*first)  # type: ignore[no-untyped-call]
        pointer.pointer_down()  # type: ignore[no-untyped-call]
        for x, y in others:
            pointer.move_to_location(x, y)  # type: ignore[no-untyped-call]
        chain.perform()
        try:
            yield
        finally:
            ActionChains(self.chrome, duration=10).release().perform()
            if alt:
                ActionChains(self.chrome).key_up(Keys.ALT).perform()

    def in_window(self, point: Point) -> tuple[int, int]:
        """Where a point of the picture is fitted into the window, in CSS pixels, while nobody has zoomed."""
        place = self.script(
            "const r = document.getElementById('canvas').getBoundingClientRect(); return [r.x, r.y, r.width, r.height]"
        )
        left, top, width, height = (float(value) for value in place)
        picture_width, picture_height = (int(self.at(name).get_attribute("value") or 0) for name in ("width", "height"))
        scale = min(2.0, (width - 32) / picture_width, (height - 32) / picture_height)
        x = left + (width - picture_width * scale) / 2 + point[0] * scale
        y = top + (height - picture_height * scale) / 2 + point[1] * scale
        return round(x), round(y)

    def scroll_to_canvas(self) -> None:
        """Bring the canvas into the window."""
        self.script("document.getElementById('canvas').scrollIntoView({block: 'center'})")

    def request(self) -> dict[str, Any]:
        """The request's JSON as the page shows it."""
        self.click("open-export")
        text = self.at("json").get_attribute("value") or ""
        self.at("json").send_keys(Keys.ESCAPE)
        self.wait(lambda: not self.at("export").is_displayed(), "the dialog to close")
        body: dict[str, Any] = json.loads(text)
        return body

    def masks(self) -> list[Mask]:
        """The masks of the request: (height, width) uint8 of 0 and 1."""
        found = self.request().get("masks", [])
        return [RunLengths(tuple(mask["size"]), tuple(mask["counts"])).mask() for mask in found]

    def use_json(self, body: dict[str, Any]) -> None:
        """Import a request's JSON by pasting it."""
        self.click("open-import")
        # As a paste does: typing a long text key by key takes minutes.
        self.script("document.getElementById('import-text').value = arguments[0]", json.dumps(body))
        self.click("import-use")
        self.wait(lambda: not self.at("import").is_displayed(), "the import")

    def generate(self) -> None:
        """Have a picture made, and wait for the end of it."""
        self.click("generate")
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        """Wait until no picture is at work."""
        self.wait(lambda: not self.at("run").is_displayed(), "the picture")

    def wait_until_kept(self) -> None:
        """Wait until the browser's store has the work."""
        self.wait(lambda: self.at("saved").get_attribute("data-saved") == "yes", "the work to be kept")

    def picture_file(self) -> bytes:
        """The file that the button Download gives."""
        path = self.downloads / str(self.at("download").get_attribute("download"))
        partial = path.with_name(f"{path.name}.crdownload")
        path.unlink(missing_ok=True)
        self.click("download")
        # Chromium makes an empty file of the final name while it still writes the other one, then moves that onto it.
        self.wait(lambda: path.exists() and not partial.exists(), "the download")
        return path.read_bytes()

    def picture(self) -> npt.NDArray[np.uint8]:
        """The shown picture: (height, width, 3)."""
        with Image.open(io.BytesIO(self.picture_file())) as image:
            return np.asarray(image.convert("RGB"))

    def pixels_on_canvas(self) -> npt.NDArray[np.uint8]:
        """What the canvas element shows, (height, width, 3), in CSS pixels."""
        with Image.open(io.BytesIO(self.at("canvas").screenshot_as_png)) as image:
            return np.asarray(image.convert("RGB"))
