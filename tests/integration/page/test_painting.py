"""Regions are painted, a picture is made of them, on the real stack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from selenium.webdriver import ActionChains, Chrome, Keys

from demo_checkpoint.recognise import colour_mask
from tests.browser.chromium import console_errors, window
from tests.browser.painting import Page
from tests.integration.test_isolation import FEW, STEPS, Statistics, wait_for

MARGIN = 16  # pixels beside an edge, where two cells of different colours meet


def box_mask(x0: int, y0: int, x1: int, y1: int, side: int = 512) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    mask = np.zeros((side, side), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def small(page: Page, *, steps: int = 2) -> None:
    """A picture that takes about a second."""
    for name, text in {"width": "256", "height": "192", "ddim_steps": str(steps), "bootstrapping": "1"}.items():
        page.write(name, text)
    page.write("seed", "7")


def test_two_painted_regions_have_their_colours_in_the_picture(blank: Page) -> None:
    blank.write("prompt", "yellow background")
    blank.add_region("a blue square")
    blank.tool("rectangle")
    blank.drag((40, 146), (230, 366))
    blank.add_region("a red square")
    blank.tool("brush")
    blank.brush_size(100)
    for y in (200, 256, 312):
        blank.drag((340, y), (430, y))
    for name, text in {"ddim_steps": "35", "bootstrapping": "7", "seed": "1"}.items():
        blank.write(name, text)
    blank.generate()

    picture = blank.picture()
    assert picture.shape == (512, 512, 3)
    assert colour_mask(picture, "blue")[146 + MARGIN : 366 - MARGIN, 40 + MARGIN : 230 - MARGIN].mean() > 0.6
    assert colour_mask(picture, "red")[200:312, 340 + MARGIN : 430 - MARGIN].mean() > 0.6
    around = np.ones((512, 512), np.bool_)
    around[146 - MARGIN : 366 + MARGIN, 40 - MARGIN : 230 + MARGIN] = False
    around[150 - MARGIN : 362 + MARGIN, 290 - MARGIN : 480 + MARGIN] = False
    assert colour_mask(picture, "yellow")[around].mean() > 0.8
    assert console_errors(blank.chrome) == []


def test_the_page_begins_with_the_first_preset(page: Page) -> None:
    body = page.request()
    assert (body["bg_prompt"], body["fg_prompt"]) == ("yellow background", ["a blue square", "a red square"])


@pytest.mark.parametrize("preset", ["Blue and red", "Star and moon", "Heart"])
def test_a_preset_of_the_demo_checkpoint_gives_its_colours(page: Page, preset: str) -> None:
    page.begin(preset)
    body = page.request()
    page.generate()

    picture, masks = page.picture(), page.masks()
    for prompt, mask in zip(body["fg_prompt"], masks, strict=True):
        assert colour_mask(picture, prompt.split()[1])[mask == 1].mean() > 0.5
    ground = ~np.any(np.array(masks) == 1, axis=0)
    assert colour_mask(picture, body["bg_prompt"].split()[0])[ground].mean() > 0.5


def test_the_picture_and_the_regions_are_shown_in_turn(page: Page) -> None:
    small(page)
    page.generate()
    page.wait(lambda: page.at("canvas").get_attribute("data-shown"), "the picture on the canvas")
    page.script("document.activeElement.blur()")

    seen = []
    for expected in ("picture", "regions", "both"):
        [checked] = page.all('input[name="show"]:checked')
        assert checked.get_attribute("value") == expected
        seen.append(page.pixels_on_canvas())
        ActionChains(page.chrome).send_keys("m").perform()

    assert [bool((a == b).all()) for a, b in [(seen[0], seen[1]), (seen[1], seen[2])]] == [False, False]


def test_a_picture_shows_itself_while_it_is_painted_and_cancel_stops_the_work(page: Page, triton_grpc: str) -> None:
    statistics = Statistics(triton_grpc)
    calls, ended = statistics.unet_calls(), statistics.ended_requests()
    page.write("ddim_steps", str(STEPS))
    before = page.pixels_on_canvas()
    page.click("generate")
    page.wait(lambda: page.at("run-text").text.startswith("Step"), "progress")
    page.wait(lambda: not np.array_equal(page.pixels_on_canvas(), before), "a preview")
    page.click("cancel")
    page.wait_until_idle()

    assert page.at("message").text == "Cancelled."
    assert page.all("#strip button") == []
    wait_for(lambda: statistics.ended_requests() > ended, "the request to end")
    assert statistics.unet_calls() - calls < FEW


def test_what_is_chosen_to_be_seen_stays_and_a_stroke_is_not_disturbed(page: Page) -> None:
    small(page, steps=20)
    page.click("generate")
    page.wait(lambda: page.at("run-text").text.startswith("Step"), "progress")
    page.all('input[name="show"][value="regions"]')[0].click()
    page.wait_until_idle()
    assert page.all('input[name="show"]:checked')[0].get_attribute("value") == "regions"

    page.click("generate")
    page.tool("rectangle")
    page.at("canvas").send_keys(Keys.ENTER)
    page.wait_until_idle()
    assert len(page.all("#strip button")) == 2
    assert page.all('input[name="show"]:checked')[0].get_attribute("value") == "both"


def test_an_error_stands_at_the_field_that_caused_it(page: Page) -> None:
    page.write("ddim_steps", "100000")
    page.write("guidance_scale", "101")
    page.generate()

    assert page.note("ddim_steps") == "expected 1 to 200, found 100000"
    assert not page.at("notes").is_displayed(), "no error of a field that the page does not have"
    assert page.note("guidance_scale") == "expected 0 to 100, found 101.0"
    field = page.chrome.switch_to.active_element
    assert field.get_attribute("id") == "ddim_steps"
    assert field.get_attribute("aria-invalid") == "true"
    described = page.at(str(field.get_attribute("aria-describedby")))
    assert described.text == page.note("ddim_steps")

    small(page)
    assert page.note("ddim_steps") == "", "it goes as soon as the field is mended"


def test_an_error_of_a_region_stands_at_its_card_wherever_that_is_by_then(blank: Page) -> None:
    small(blank)
    blank.add_region("a red circle")
    blank.add_region("x")
    too_long = "y" * 10_001
    blank.script(
        "const field = arguments[0]; field.value = arguments[1]; field.dispatchEvent(new Event('input'))",
        blank.all(".region textarea")[2],
        too_long,
    )
    blank.generate()
    blank.region_button(2, "up").click()

    assert blank.all(".region")[0].find_element("css selector", ".note.error").text == (
        "expected at most 10000 bytes, found 10001"
    )


def test_a_size_that_cannot_be_is_refused_at_its_field(page: Page) -> None:
    page.write("width", "63")
    assert page.note("width") == "expected 64 to 8192, found 63"
    page.write("width", "8193")
    assert page.note("width") == "expected 64 to 8192, found 8193"
    page.click("generate")
    assert page.note("width") == "expected 64 to 8192, found 8193", "nothing is painted that was not asked for"
    assert page.chrome.switch_to.active_element.get_attribute("id") == "width"
    assert not page.at("run").is_displayed()
    page.write("height", "200")
    assert page.note("width") == "expected 64 to 8192, found 8193"
    page.write("width", "300")
    assert page.note("width") == ""
    assert [mask.shape for mask in page.masks()] == [(200, 300)] * 2
    page.write("height", "x")
    page.begin("Blank canvas")
    assert (page.note("height"), page.at("height").get_attribute("value")) == ("", "512")


def test_the_size_that_is_being_written_is_the_one_that_is_painted(page: Page) -> None:
    small(page)
    page.at("height").send_keys(Keys.CONTROL, "a")
    page.at("height").send_keys("128", Keys.CONTROL, Keys.ENTER)
    page.wait(lambda: page.all("#strip button"), "the picture")
    page.wait_until_idle()

    assert page.picture().shape == (128, 256, 3)


def test_a_picture_of_another_size_keeps_its_proportions(blank: Page) -> None:
    small(blank)
    blank.generate()
    blank.write("width", "64")
    blank.wait(lambda: blank.at("canvas").get_attribute("data-shown"), "the picture on the canvas")
    shown = blank.pixels_on_canvas()
    height, width, _ = shown.shape
    above, middle = (shown[height // 2 + row, width // 2 - 30 : width // 2 + 30] for row in (-160, 0))

    assert len(np.unique(above, axis=0)) == 2, "the checkerboard: 64 pixels of 256 leave three quarters free"
    assert len(np.unique(middle, axis=0)) > 2


_RATIO = """
const canvas = document.getElementById("canvas");
return [canvas.width / canvas.clientWidth, canvas.height / canvas.clientHeight];
"""


def test_the_canvas_has_the_pixels_of_whatever_screen_it_is_on(chrome: Chrome, page: Page) -> None:
    page.write("prompt", "x")
    before = page.pixels_on_canvas()
    height, width, _ = before.shape
    for ratio in (2, 1.25, 1):
        window(chrome, width=1280, height=860, ratio=ratio)
        page.wait(lambda ratio=ratio: page.script(_RATIO) == pytest.approx([ratio] * 2, abs=0.01), "its pixels")  # type: ignore[misc]
        shown = Image.fromarray(page.pixels_on_canvas()).resize((width, height))
        assert np.abs(np.asarray(shown).astype(int) - before).mean() < 2, ratio


def test_a_warning_stands_beside_its_region(page: Page) -> None:
    small(page)
    page.add_region("a black cross")
    page.generate()

    [card] = [card for card in page.all(".region") if card.find_elements("css selector", ".note:not([hidden])")]
    assert card.find_element("css selector", ".name").text == "Region 3"
    assert "empty" in card.find_element("css selector", ".note:not([hidden])").text


def import_while_it_is_painted(page: Page) -> None:
    """Generate, and have another document by the time the server has answered."""
    page.script(
        """
        const ask = window.fetch;
        window.fetch = async (address, options) => {
          const reply = await ask(address, options);
          if (String(address).includes("/stream")) await new Promise((go) => { window.goOn = go; });
          return reply;
        };
        """
    )
    page.click("generate")
    page.wait(lambda: page.script("return window.goOn !== undefined"), "the server's answer")
    page.use_json({"bg_prompt": "white background", "fg_prompt": ["a blue cross"], "masks": [{"box": [0, 0, 64, 64]}]})
    page.script("window.goOn()")
    page.wait_until_idle()


def notes(page: Page) -> list[str]:
    """All remarks that are shown beside fields, and above the button."""
    return [note.text for note in page.all(".note") if note.text]


def test_a_warning_of_a_document_is_not_said_of_the_next(blank: Page) -> None:
    small(blank)
    blank.add_region("a black cross")
    import_while_it_is_painted(blank)

    assert len(blank.all("#strip button")) == 1
    assert notes(blank) == []
    assert blank.request()["fg_prompt"] == ["a blue cross"]
    blank.click("use-again")
    blank.wait(lambda: any("empty" in note for note in notes(blank)), "the warning, where it belongs")


def test_an_error_of_a_document_is_not_said_of_the_next(page: Page) -> None:
    small(page)
    page.write("ddim_steps", "100000")
    import_while_it_is_painted(page)

    told = "The document of before was not painted: ddim_steps: expected 1 to 200, found 100000."
    assert page.at("message").text == told
    assert page.note("ddim_steps") == ""
    assert page.all("[aria-invalid='true']") == []


def test_no_two_regions_of_a_visit_have_the_same_number(page: Page) -> None:
    def numbers() -> set[str]:
        return {str(card.get_attribute("data-region")) for card in page.all(".region")}

    seen: set[str] = set()
    for preset in ("Heart", "Blue and red", "Star and moon"):
        page.begin(preset)
        assert not numbers() & seen
        seen |= numbers()
    page.region_button(2, "delete").click()
    page.add_region("x")
    assert len(seen | numbers()) == 6


def test_every_tool_changes_the_mask_as_it_should(blank: Page) -> None:
    blank.add_region("x")
    blank.tool("rectangle")
    blank.drag((100, 100), (300, 300))
    [rectangle] = blank.masks()
    assert np.abs(rectangle.astype(int) - box_mask(100, 100, 300, 300)).sum() <= 2 * 4 * 200, "at most a pixel's edge"

    blank.drag((150, 150), (250, 250), alt=True)
    [frame] = blank.masks()
    assert frame[200, 200] == 0
    assert frame[120, 120] == 1

    blank.tool("fill")
    blank.drag((200, 200))
    assert np.array_equal(blank.masks()[0], rectangle)

    blank.tool("eraser")
    blank.brush_size(20)
    blank.drag((100, 200), (300, 200))
    [erased] = blank.masks()
    assert erased[195:205, 110:290].sum() == 0
    assert erased[220, 200] == 1

    blank.region_button(1, "clear").click()
    blank.tool("ellipse")
    blank.drag((128, 192), (384, 320))
    [ellipse] = blank.masks()
    assert float(ellipse.sum()) == pytest.approx(np.pi * 128 * 64, rel=0.03)
    blank.region_button(1, "invert").click()
    assert np.array_equal(blank.masks()[0], 1 - ellipse)


def test_brackets_that_need_altgr_set_the_brush_and_other_combinations_do_not(page: Page) -> None:
    def press(**modifiers: bool) -> int:
        page.script(
            "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: ']', bubbles: true, ...arguments[0]}))",
            modifiers,
        )
        return int(page.at("brush").get_attribute("value") or 0)

    before = press(ctrlKey=True, altKey=True)
    assert press(altKey=True) == press(ctrlKey=True) == before
    assert press(ctrlKey=True, altKey=True, modifierAltGraph=True) > before


def test_a_mask_comes_from_an_image_as_the_server_reads_it(blank: Page, tmp_path: Path) -> None:
    image = Image.new("RGBA", (256, 256), (255, 255, 255, 0))
    ImageDraw.Draw(image).rectangle((64, 0, 127, 255), fill=(255, 0, 0, 255))
    image.save(tmp_path / "mask.png")
    blank.add_region("x")
    blank.at("mask-file").send_keys(str(tmp_path / "mask.png"))

    blank.wait(lambda: blank.masks()[0].any(), "the mask")
    assert np.array_equal(blank.masks()[0], box_mask(128, 0, 256, 512))

    (tmp_path / "mask.png").write_text("no image")
    blank.at("mask-file").send_keys(str(tmp_path / "mask.png"))
    blank.wait(lambda: blank.all(".region .note.error"), "the error")
    blank.drag((400, 400), (420, 400))
    assert blank.all(".region .note.error:not([hidden])") == [], "painting mends the mask"


def test_a_hidden_region_is_left_out_and_the_order_is_the_lists(blank: Page) -> None:
    for prompt in ("first", "second", "third"):
        blank.add_region(prompt)
    blank.region_button(3, "up").click()
    assert blank.request()["fg_prompt"] == ["first", "third", "second"]

    blank.region_button(2, "hide").click()
    assert blank.request()["fg_prompt"] == ["first", "second"]


def control(page: Page, *keys: str) -> None:
    """Press keys one after the other while Ctrl is down."""
    ActionChains(page.chrome).key_down(Keys.CONTROL).send_keys(*keys).key_up(Keys.CONTROL).perform()


def test_undo_and_redo_by_keys_go_through_strokes_and_prompts(blank: Page) -> None:
    blank.add_region("a red circle")
    blank.tool("rectangle")
    blank.drag((100, 100), (200, 200))
    blank.drag((300, 300), (400, 400))
    both = blank.masks()[0].sum()

    blank.script("document.activeElement.blur()")
    control(blank, "z")
    assert blank.masks()[0].sum() == pytest.approx(both / 2, rel=0.02)
    control(blank, "z", "z")
    assert blank.request()["fg_prompt"] == [""], "a prompt that was typed in one go is one step"
    control(blank, "y", "y", "y")
    assert blank.masks()[0].sum() == both
    assert blank.request()["fg_prompt"] == ["a red circle"]


@pytest.mark.parametrize("tool", ["brush", "rectangle"])
def test_undo_while_something_is_painted_gives_that_up_alone(blank: Page, tool: str) -> None:
    blank.add_region("x")
    blank.write("width", "256")
    blank.tool("rectangle")
    blank.drag((50, 100), (100, 200))
    [before] = blank.masks()
    blank.tool(tool)
    without = blank.pixels_on_canvas()

    with blank.pressed((150, 100), (200, 300)):
        control(blank, "z")
    blank.tool(tool)  # so that no mark of it is on the canvas
    assert np.array_equal(blank.pixels_on_canvas(), without)
    assert np.array_equal(blank.masks()[0], before)

    with blank.pressed((150, 100), (200, 300)):
        control(blank, "y")
    [after] = blank.masks()
    assert (after >= before).all()
    assert after[200, 175] == 1, "there is nothing to redo: the stroke goes on"
    blank.click("undo")
    assert np.array_equal(blank.masks()[0], before)


def test_a_stroke_is_given_up_where_its_mask_was_changed_meanwhile(blank: Page) -> None:
    blank.add_region("x")
    blank.tool("rectangle")
    blank.drag((100, 100), (200, 200))
    blank.tool("brush")
    with blank.pressed((300, 300), (400, 300)):
        blank.script("arguments[0].click()", blank.region_button(1, "clear"))

    assert not blank.masks()[0].any()


def test_the_dice_rolls_a_seed_and_an_empty_one_is_the_servers_choice(page: Page) -> None:
    small(page)
    page.write("seed", "")
    assert "seed" not in page.request()
    page.click("dice")
    assert 0 <= page.request()["seed"] < 2**32
