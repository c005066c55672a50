"""Work leaves the page and comes back: through a reload, as JSON, as a command, inside a picture."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from selenium.webdriver import Keys
from selenium.webdriver.support.ui import Select

from multsd_client import pictures, replay
from tests.browser.painting import Page
from tests.integration.page.test_painting import small

IMAGE_MASK = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQAAAADsdIMmAAAAGElEQVR42mNgYGBgsGFiYGJgYmBgYGAAAALUAEMQ6XlWAAAAAElFTkSuQmCC"
)


def test_a_reload_keeps_masks_prompts_settings_and_pictures(page: Page) -> None:
    small(page)
    page.tool("ellipse")
    page.drag((20, 20), (120, 100))
    page.add_region("a green heart")
    page.generate()
    picture = page.picture_file()
    page.wait_until_kept()
    body = page.request()

    page.load()

    assert page.request() == body
    assert page.picture_file() == picture


def test_two_tabs_do_not_overwrite_each_others_work(page: Page) -> None:
    page.write("prompt", "of the first tab")
    page.wait_until_kept()
    first = page.chrome.current_window_handle
    page.chrome.switch_to.new_window("tab")
    try:
        page.load()
        assert page.request()["bg_prompt"] == "of the first tab", "a new tab begins with what was kept last"
        page.write("prompt", "of the second tab")
        page.wait_until_kept()
        page.load()
        assert page.request()["bg_prompt"] == "of the second tab"
    finally:
        page.chrome.close()
        page.chrome.switch_to.window(first)
    page.load()
    assert page.request()["bg_prompt"] == "of the first tab"


def test_a_duplicated_tab_goes_on_with_a_copy_of_the_work(page: Page) -> None:
    page.write("prompt", "of the first tab")
    page.wait_until_kept()
    name = "return sessionStorage.getItem('multsd-tab')"
    first, named = page.chrome.current_window_handle, page.script(name)
    page.script("window.open('/')")  # has a copy of this tab's own store, as a duplicate of the tab has
    page.chrome.switch_to.window(page.chrome.window_handles[-1])
    second = page.chrome.current_window_handle
    try:
        page.wait_until_ready()
        assert page.request()["bg_prompt"] == "of the first tab"
        page.wait(lambda: page.script(name) != named, "a name of its own")
        page.chrome.switch_to.window(first)
        page.write("prompt", "of the first tab, later")
        page.wait_until_kept()
        page.chrome.switch_to.window(second)
        page.load()
        assert page.request()["bg_prompt"] == "of the first tab", "though nothing was changed here"
        page.write("prompt", "of the second tab")
        page.wait_until_kept()
    finally:
        page.chrome.close()
        page.chrome.switch_to.window(first)
    page.load()
    assert page.request()["bg_prompt"] == "of the first tab, later"
    assert page.script(name) == named, "a reload changes no name"


def test_a_request_that_is_imported_is_exported_the_same(blank: Page) -> None:
    mask = {"size": [128, 192], "counts": [1000, 500, 23076]}
    body = {
        "bg_prompt": "white\nbackground \U0001f3a8 \"'",
        "bg_nprompt": "text",
        "fg_prompt": ["a red star", "a blue cross"],
        "fg_nprompt": ["blurry", ""],
        "masks": [mask, {"size": [128, 192], "counts": [24576]}],
        "width": 192,
        "height": 128,
        "ddim_steps": 9,
        "bootstrapping": 0,
        "guidance_scale": 3.5,
        "scheduler": "euler_a",
        "seed": 5,
        "view_stride": 16,
        "output_format": "webp",
        "quality": 80,
    }
    blank.use_json(body)

    assert blank.request() == body


def test_what_the_page_has_no_field_for_is_named_as_left_out(blank: Page) -> None:
    blank.use_json({"bg_prompt": "x", "deadline_s": 9, "scribble": None, "colour": "red"})

    assert blank.at("message").text == "Left out, since the page has no field for it: deadline_s, colour."
    assert blank.request()["bg_prompt"] == "x"


def test_every_kind_of_mask_can_be_imported(blank: Page) -> None:
    shapes = [
        IMAGE_MASK,
        {"box": [16, 16, 48, 48]},
        {"polygon": [[16, 16], [48, 16], [48, 48], [16, 48]]},
        {"size": [4, 4], "counts": [5, 2, 2, 2, 5]},
    ]
    blank.use_json({"bg_prompt": "x", "fg_prompt": ["a"] * 4, "masks": shapes, "width": "64", "height": "64"})

    masks = blank.masks()
    assert len(masks) == 4
    expected = np.zeros((64, 64), np.uint8)
    expected[16:48, 16:48] = 1
    assert all(np.array_equal(mask, expected) for mask in masks)


REFUSED_MASKS = [
    ({"box": [1, 2]}, "masks[0]: box: expected 4 numbers, found 2"),
    ({"box": [8, 8, 1, 1]}, "masks[0]: box: expected 0 <= x0 < x1 and 0 <= y0 < y1, found 8,8,1,1"),
    ({"box": [-5, 0, 8, 8]}, "masks[0]: box: expected whole numbers of 0 to 100000, found -5"),
    ({"box": [600, 0, 700, 8]}, "masks[0]: box: expected it on the 512x512 canvas, found 600,0,700,8"),
    ({"box": [0, 0, 8, 8], "colour": 1}, 'masks[0]: box: expected no other names, found "colour"'),
    ({"polygon": [[0, 0], [8, 8]]}, "masks[0]: polygon: expected at least 3 points, found 2"),
    ({"polygon": [[0, 0], [8, "x"], [8, 0]]}, "masks[0]: polygon[1]: expected two numbers of -100000 to 100000"),
    ({"size": [0, 0], "counts": []}, "masks[0]: size: expected [height, width] of at least 1, found 0,0"),
    ({"size": [2, 2], "counts": [1]}, "masks[0]: expected run lengths of 4 pixels in all, found 1"),
    ({"size": [2, 2], "counts": [-1, 5]}, "masks[0]: counts: expected whole numbers of 0 to 10000000000, found -1"),
    ({"size": [100000, 100000], "counts": [10**10]}, "masks[0]: expected a mask of at most"),
    ("not base64!", "masks[0]: expected an image in base64, found invalid base64"),
    ("data:image/png,abcd", "masks[0]: expected a data: URL with base64, found another encoding"),
]


def test_masks_that_the_server_refuses_are_refused(page: Page, gateway: httpx.Client) -> None:
    before = page.request()
    page.click("open-import")
    for mask, message in REFUSED_MASKS:
        body = {"bg_prompt": "x", "fg_prompt": ["y"], "masks": [mask], "ddim_steps": 1}
        assert gateway.post("multsd", json=body).status_code == 400, mask
        page.script("document.getElementById('import-text').value = arguments[0]", json.dumps(body))
        page.click("import-use")
        page.wait(lambda message=message: page.at("import-note").text.startswith(message), message)  # type: ignore[misc]
    page.click("import-cancel")
    assert page.request() == before


def test_a_seed_of_64_bits_keeps_its_digits(blank: Page) -> None:
    blank.click("open-import")
    blank.at("import-text").send_keys('{"bg_prompt": "x", "seed": 18446744073709551615}')
    blank.click("import-use")

    assert blank.request()["seed"] == "18446744073709551615"


def test_raw_line_breaks_in_strings_are_read_as_the_server_reads_them(blank: Page, gateway: httpx.Client) -> None:
    prompts = '"bg_prompt": "white\nbackground,\tsaid \\"so\\"\n\\\\", \n"fg_prompt": ["a\nb"]'
    text = f'{{\n\t{prompts}, "masks": [{{"box": [0, 0, 9, 9]}}]}}'
    with pytest.raises(json.JSONDecodeError, match="control character"):
        json.loads(text)
    short = text.replace("{", '{"ddim_steps": 1, "width": 64, "height": 64, ', 1)
    assert gateway.post("multsd", content=short, headers={"Content-Type": "application/json"}).status_code == 200
    blank.click("open-import")
    blank.script("document.getElementById('import-text').value = arguments[0]", text)
    blank.click("import-use")
    blank.wait(lambda: not blank.at("import").is_displayed(), "the import")

    body = blank.request()
    assert body["bg_prompt"] == 'white\nbackground,\tsaid "so"\n\\'
    assert body["fg_prompt"] == ["a\nb"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "This is neither JSON nor a picture."),
        ('{"bg_prompt": "x", "fg_prompt": ["y"]}', "masks: expected 1 (one per fg_prompt), found 0"),
        ('{"bg_prompt": 1}', "bg_prompt: expected a string"),
        (json.dumps({"fg_prompt": ["x"] * 33}), "fg_prompt: expected at most 32 prompts, found 33"),
        ('{"bg_prompt": "x", "output_format": "gif"}', 'output_format: expected jpeg, png, webp, found "gif"'),
        ('{"bg_prompt": "x", "output_format": ["png"]}', 'output_format: expected jpeg, png, webp, found ["png"]'),
        ('{"bg_prompt": "x", "width": 100000, "height": 100000}', "expected width x height of at most 4194304 pixels"),
    ],
)
def test_what_cannot_be_imported_is_told_and_changes_nothing(page: Page, text: str, message: str) -> None:
    before = page.request()
    page.click("open-import")
    page.at("import-text").send_keys(text)
    page.click("import-use")
    page.wait(lambda: page.at("import-note").is_displayed(), "the error")

    assert page.at("import-note").text.startswith(message)
    page.click("import-cancel")
    assert page.request() == before


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_downloaded_picture_brings_its_settings_back(page: Page, tmp_path: Path, output_format: str) -> None:
    small(page)
    Select(page.at("output_format")).select_by_visible_text(output_format)
    page.generate()
    sent = page.request()
    path = tmp_path / f"picture.{output_format}"
    path.write_bytes(page.picture_file())
    page.begin("Blank canvas")
    page.click("open-import")
    page.at("import-file").send_keys(str(path))
    page.wait(lambda: not page.at("import").is_displayed(), "the import")

    carried, _ = replay.read(path.read_bytes())
    again = page.request()
    assert again == {name: carried[name] for name in again}
    assert again == sent | {"guidance_scale": 7.5, "scheduler": "ddim", "view_stride": 8}


def test_a_picture_whose_parameters_unpack_to_more_than_any_has_is_not_unpacked(page: Page, tmp_path: Path) -> None:
    record = {"multsd": 1, "request": {"bg_prompt": "x"}, "padding": " " * 20_000_000}
    info = PngInfo()
    info.add_itxt(pictures.KEYWORD, json.dumps(record), zip=True)
    path = tmp_path / "picture.png"
    Image.new("RGB", (64, 64)).save(path, pnginfo=info)
    assert path.stat().st_size < 100_000

    page.click("open-import")
    page.at("import-file").send_keys(str(path))
    page.wait(lambda: page.at("import-note").is_displayed(), "the error")

    most = pictures.MAX_TEXT
    assert page.at("import-note").text == f"expected parameters of at most {most} bytes in the picture, found more"
    page.click("import-cancel")


def test_a_picture_of_somebody_else_says_that_it_carries_nothing(page: Page, tmp_path: Path) -> None:
    for image_format in ("png", "jpeg", "webp"):
        path = tmp_path / f"other.{image_format}"
        Image.new("RGB", (64, 64)).save(path)
        page.click("open-import")
        page.at("import-file").send_keys(str(path))
        page.wait(lambda: page.at("import-note").is_displayed(), "the error")
        assert page.at("import-note").text == "this picture carries no parameters"
        page.click("import-cancel")


def test_use_these_settings_goes_back_to_what_made_a_picture(page: Page) -> None:
    small(page)
    page.write("seed", "")
    page.generate()
    first = page.request()
    told = page.at("shown-seed").text
    page.begin("Heart")
    page.all("#strip button")[0].click()
    page.click("use-again")

    again = page.request()
    assert told == f"Seed {again.pop('seed')}", "the one that was drawn"
    assert again == first


def test_the_command_paints_the_same_picture(page: Page, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed here")
    small(page)
    page.write("prompt", "it's a white background")
    page.generate()
    page.click("open-export")
    command = str(page.at("curl").get_attribute("value"))
    page.at("curl").send_keys(Keys.ESCAPE)

    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, timeout=60)  # noqa: S607

    assert (tmp_path / "picture.png").read_bytes() == page.picture_file()


_COMMAND = """
const [body, server, done] = arguments;
const json = import(new URL("page/core/json.js", document.baseURI).href);
json.then(({ curlCommand }) => done(curlCommand(body, server)), (error) => done(String(error)));
"""
_HOSTILE = [
    "png; touch harmed #",
    "png$(touch harmed)",
    "png`touch harmed`",
    "png'; touch harmed; '",
    'png"\ntouch harmed\n"',
    "../../harmed",
    "\nEND\ntouch harmed\n",
    "\\'; touch harmed; \\'",
]


@pytest.mark.parametrize("text", _HOSTILE)
def test_a_command_is_one_word_for_each_argument_whatever_it_is_made_of(page: Page, tmp_path: Path, text: str) -> None:
    body = {"bg_prompt": text, "scheduler": text, "output_format": text}
    url = f"http://127.0.0.1:9/{text}/multsd"
    command = page.chrome.execute_async_script(_COMMAND, body, {"url": url, "withToken": True})
    told = """curl() { printf '%s\\0' "$@" > arguments; cat > body; }"""

    subprocess.run(
        ["bash", "-c", f"{told}\n{command}"],  # noqa: S607
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "MULTSD_TOKEN": "a; touch harmed"},
        check=True,
        timeout=60,
    )

    headers = ("Content-Type: application/json", "Accept: image/jpeg", "Authorization: Bearer a; touch harmed")
    assert (tmp_path / "arguments").read_text().split("\0") == [
        *("-s", url),
        *(word for header in headers for word in ("-H", header)),
        *("--data-binary", "@-", "-o", "picture.jpeg", ""),
    ]
    assert json.loads((tmp_path / "body").read_text()) == body
    assert {path.name for path in tmp_path.iterdir()} == {"arguments", "body"}


def test_one_click_copies_what_is_shown(page: Page) -> None:
    page.chrome.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"origin": page.url, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]},
    )
    body = page.request()
    page.click("open-export")
    page.click("copy-json")
    page.wait(lambda: page.at("copied").text == "Copied.", "the copy")

    read = "const done = arguments[0]; navigator.clipboard.readText().then(done, (error) => done(String(error)))"
    assert json.loads(page.chrome.execute_async_script(read)) == body
