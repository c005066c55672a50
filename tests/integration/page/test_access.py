"""The page loads light and without errors, and everybody can use it: by keys, by touch, in a narrow window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from selenium.webdriver import ActionChains, Chrome, Keys

from multsd_gateway.stack.supervisor import Stack
from tests.browser.axe import serious_violations
from tests.browser.chromium import console_errors, fingers, running_browser, window
from tests.browser.painting import Page
from tests.integration.page.test_painting import small

WIDE, NARROW = (1280, 860), (380, 800)  # width and height in CSS pixels
MAX_FIRST_LOAD = 300_000  # bytes
MOST_TABS = 80

_LOADED = """
return [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
  .map((entry) => [entry.name, entry.transferSize]);
"""
_OUTSIDE = """
const most = document.documentElement.clientWidth + 1;
return [...document.querySelectorAll("body *:not(.quiet, svg[hidden] *, .strip *)")].filter((element) => {
  const { left, right, width } = element.getBoundingClientRect();
  return width > 0 && (left < 0 || right > most);
}).map((element) => element.outerHTML.slice(0, 120));
"""

_TOO_LOW = """
return [...document.querySelectorAll("button, .button, select, .tools label, .segments label")].filter((element) => {
  const { width, height } = element.getBoundingClientRect();
  return width > 0 && Math.min(width, height) < 36;
}).map((element) => element.outerHTML.slice(0, 120));
"""


def test_the_first_load_is_small_of_this_origin_and_without_complaint(chrome: Chrome, page: Page) -> None:
    page.open()
    loaded = page.script(_LOADED)

    assert len(loaded) > 10, "modules, style and icon are files of their own"
    assert all(name.startswith(page.url) for name, _ in loaded)
    assert sum(size for _, size in loaded) <= MAX_FIRST_LOAD
    assert console_errors(chrome) == []


def test_what_the_browser_has_is_not_sent_again(page: Page, gateway: httpx.Client) -> None:
    for name, _ in page.script(_LOADED):
        if "/limits" in name:
            continue
        first = gateway.get(name)
        again = gateway.get(name, headers={"If-None-Match": first.headers["ETag"]})
        assert (first.status_code, again.status_code, again.content) == (200, 304, b""), name


def test_the_policy_keeps_code_and_addresses_of_others_out(page: Page) -> None:
    refused = page.chrome.execute_async_script(
        """
        const done = arguments[arguments.length - 1];
        const refused = [];
        const attempt = (name, action) => { try { action(); } catch { refused.push(name); } };
        attempt("markup", () => { document.body.innerHTML = "<b>text</b>"; });
        document.addEventListener("securitypolicyviolation", (event) => {
          refused.push(event.effectiveDirective);
          if (refused.includes("img-src") && refused.includes("connect-src")) done(refused);
        });
        document.createElement("img").src = "http://127.0.0.1:9/picture.png";
        fetch("http://127.0.0.1:9/").catch(() => {});
        """
    )
    assert {"markup", "img-src", "connect-src"} <= set(refused)


def test_axe_finds_no_serious_violation_light_dark_or_narrow(chrome: Chrome, page: Page) -> None:
    small(page)
    page.add_region("a green heart")
    page.region_button(2, "hide").click()
    page.generate()
    page.write("guidance_scale", "101")
    page.generate()
    for dark, (width, height) in ((False, WIDE), (True, NARROW)):
        window(chrome, width=width, height=height, dark=dark)
        assert serious_violations(chrome) == []
        page.click("open-export")
        assert serious_violations(chrome) == []
        page.at("json").send_keys(Keys.ESCAPE)
        page.click("open-import")
        assert serious_violations(chrome) == []
        page.click("import-cancel")


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the element with an id, or the one radio of a group, has the focus."""
    for _ in range(MOST_TABS):
        focused = page.chrome.switch_to.active_element
        if name in (focused.get_attribute("id"), focused.get_attribute("name")):
            return
        ActionChains(page.chrome).send_keys(Keys.TAB).perform()
    raise AssertionError(f"Tab does not lead to {name}")


def press(page: Page, *keys: str) -> None:
    ActionChains(page.chrome).send_keys(*keys).perform()


def test_a_picture_is_made_with_nothing_but_keys(page: Page) -> None:
    tab_to(page, "preset")
    press(page, "Blank")
    page.wait(lambda: not page.all(".region"), "the blank canvas")
    tab_to(page, "prompt")
    press(page, "white background")
    tab_to(page, "add-region")
    press(page, Keys.ENTER, "a red square")
    for name, text in {"width": "256", "height": "256", "ddim_steps": "2", "bootstrapping": "1"}.items():
        tab_to(page, name)
        press(page, text)
    tab_to(page, "tool")
    press(page, *[Keys.ARROW_RIGHT] * 2)
    tab_to(page, "canvas")
    press(page, *[Keys.ARROW_LEFT] * 8, *[Keys.ARROW_UP] * 4, Keys.ENTER)
    press(page, *[Keys.ARROW_RIGHT] * 10, *[Keys.ARROW_DOWN] * 6)
    ActionChains(page.chrome).key_down(Keys.SHIFT).send_keys(Keys.ARROW_DOWN).key_up(Keys.SHIFT).perform()
    press(page, Keys.ENTER)
    ActionChains(page.chrome).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    page.wait(lambda: page.all("#strip button"), "the picture")

    expected = np.zeros((256, 256), np.uint8)
    expected[128 - 32 : 128 + 17, 128 - 64 : 128 + 16] = 1
    assert np.array_equal(page.masks()[0], expected)
    assert page.picture().shape == (256, 256, 3)
    assert page.at("announcer").text.startswith("The picture is ready")


def focus(page: Page) -> str:
    """The id, or what a region's button does, of the element that has the focus."""
    focused = page.chrome.switch_to.active_element
    return str(focused.get_attribute("id") or focused.get_attribute("data-action") or focused.tag_name)


def test_the_focus_is_never_lost_with_what_had_it(page: Page) -> None:
    page.region_button(1, "down").send_keys(Keys.ENTER)
    assert focus(page) == "up", "the last region of the list cannot go further down"
    page.region_button(2, "up").send_keys(Keys.ENTER)
    assert focus(page) == "down"

    small(page)
    page.generate()
    page.at("forget").send_keys(Keys.ENTER)
    page.wait(lambda: not page.at("results").is_displayed(), "the last picture to go")
    assert focus(page) == "generate"


def test_a_shape_that_keys_began_goes_with_the_focus(blank: Page) -> None:
    blank.add_region("x")
    blank.tool("rectangle")
    tab_to(blank, "canvas")
    press(blank, Keys.ENTER, *[Keys.ARROW_RIGHT] * 4, *[Keys.ARROW_DOWN] * 4)
    press(blank, Keys.TAB)
    tab_to(blank, "prompt")
    without = blank.pixels_on_canvas()
    blank.at("canvas").send_keys(Keys.ENTER)
    blank.at("canvas").send_keys(Keys.ESCAPE)
    tab_to(blank, "prompt")

    assert np.array_equal(blank.pixels_on_canvas(), without)
    assert not blank.masks()[0].any()


def test_whatever_has_the_focus_shows_it(page: Page) -> None:
    seen = set()
    for _ in range(MOST_TABS):
        press(page, Keys.TAB)
        focused = page.chrome.switch_to.active_element
        if focused.tag_name == "body":
            break
        name = focused.get_attribute("id") or focused.get_attribute("outerHTML")
        around = page.script(
            """
            const shown = document.activeElement.closest("label:has(input[type=radio])") ?? document.activeElement;
            return getComputedStyle(shown).outlineStyle;
            """
        )
        assert around != "none", name
        seen.add(name)
    assert {"preset", "canvas", "prompt", "add-region", "seed", "generate"} <= seen


def test_380_pixels_are_enough_to_paint_by_touch_and_to_generate(chrome: Chrome, blank: Page) -> None:
    window(chrome, width=NARROW[0], height=NARROW[1], touch=True)
    assert blank.script(_OUTSIDE) == []
    assert blank.script("return matchMedia('(pointer: coarse)').matches")
    small(blank)
    blank.add_region("a red square")
    assert blank.script(_TOO_LOW) == []
    blank.scroll_to_canvas()
    left, top, right, bottom = *blank.in_window((64, 48)), *blank.in_window((192, 144))
    fingers(chrome, "touchStart", (left, top))
    for share in (0.25, 0.5, 0.75, 1):
        fingers(chrome, "touchMove", (left + (right - left) * share, top + (bottom - top) * share))
    fingers(chrome, "touchEnd")
    [stroke] = blank.masks()
    assert stroke[96, 128] == 1
    assert 0.05 < stroke.mean() < 0.6

    zoom = blank.at("zoom").get_attribute("textContent")
    middle = ((left + right) / 2, (top + bottom) / 2)
    fingers(chrome, "touchStart", (middle[0] - 20, middle[1]), (middle[0] + 20, middle[1]))
    fingers(chrome, "touchMove", (middle[0] - 60, middle[1]), (middle[0] + 60, middle[1]))
    fingers(chrome, "touchEnd")
    assert blank.at("zoom").get_attribute("textContent") != zoom
    assert np.array_equal(blank.masks()[0], stroke), "two fingers move the view and paint nothing"

    blank.generate()
    assert blank.picture().shape == (192, 256, 3)
    assert blank.script(_OUTSIDE) == []
    assert blank.script("return document.documentElement.scrollWidth <= innerWidth")


def test_however_many_regions_there_are_only_their_list_scrolls(blank: Page) -> None:
    for number in range(8):
        blank.add_region(f"region {number}")
    assert blank.script("const list = document.querySelector('.scroll'); return list.scrollHeight > list.clientHeight")
    assert blank.script("return [document.documentElement.scrollHeight - innerHeight, scrollY]") == [0, 0]


@pytest.fixture
def touched(stack: Stack, chrome: Chrome, tmp_path: Path) -> Iterator[Page]:  # noqa: ARG001 - chrome: skips without one
    """A blank canvas under fingers, in a browser of its own: once it has left a page it touches no other."""
    with running_browser() as browser:
        window(browser, width=WIDE[0], height=WIDE[1], touch=True)
        page = Page(browser, stack.url, tmp_path)
        page.open()
        page.begin("Blank canvas")
        yield page


def pinch(page: Page) -> None:
    """Two fingers, one after the other, that go apart about the canvas's middle."""
    page.scroll_to_canvas()
    x, y = page.in_window((256, 256))
    zoom = page.at("zoom").get_attribute("textContent")
    fingers(page.chrome, "touchStart", (x - 20, y))
    fingers(page.chrome, "touchStart", (x - 20, y), (x + 20, y))
    fingers(page.chrome, "touchMove", (x - 60, y), (x + 60, y))
    page.wait(lambda: page.at("zoom").get_attribute("textContent") != zoom, "another zoom")
    fingers(page.chrome, "touchEnd")
    page.click("zoom-fit")


def test_two_fingers_leave_everything_as_it_was(touched: Page) -> None:
    before = touched.request()
    undo = touched.at("undo").is_enabled()
    for tool in ("brush", "rectangle", "fill"):
        touched.tool(tool)
        pinch(touched)
        assert touched.request() == before, "no region is made"
        assert touched.at("undo").is_enabled() == undo

    touched.all('input[name="show"][value="picture"]')[0].click()
    pinch(touched)
    assert touched.all('input[name="show"]:checked')[0].get_attribute("value") == "picture"

    touched.add_region("a red square")
    touched.region_button(1, "hide").click()
    for tool in ("brush", "rectangle", "fill"):
        touched.tool(tool)
        pinch(touched)
        assert touched.all(".region .name")[0].text == "Region 1, hidden", tool
    touched.region_button(1, "hide").click()
    assert not touched.masks()[0].any()


def beside_the_hint(page: Page) -> npt.NDArray[np.uint8]:
    """The upper three quarters of what the canvas shows."""
    pixels = page.pixels_on_canvas()
    return pixels[: pixels.shape[0] * 3 // 4]


def test_a_region_that_is_painted_on_is_seen_before_it_is_the_documents(blank: Page) -> None:
    blank.tool("brush")
    empty = beside_the_hint(blank)
    with blank.pressed((100, 200), (400, 200)):
        assert blank.all(".region") == []
        during = beside_the_hint(blank)
        assert (during != empty).any(axis=2).mean() > 0.05, "more than the brush's own mark"
    blank.wait(lambda: len(blank.all(".region")) == 1, "the region")
    assert np.array_equal(beside_the_hint(blank), during)
    blank.click("undo")
    assert blank.all(".region") == [], "a first stroke is one step"

    blank.click("redo")
    blank.region_button(1, "hide").click()
    with blank.pressed((100, 200), (400, 200)):
        assert np.array_equal(beside_the_hint(blank), during)
        assert blank.all(".region .name")[0].text == "Region 1, hidden"
    assert blank.all(".region .name")[0].text == "Region 1"
