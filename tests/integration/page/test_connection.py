"""The server wants a token, goes away, comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from selenium.webdriver import Chrome

from multsd_gateway.stack.processes import Child
from tests.browser.chromium import protocol, window
from tests.browser.painting import Page
from tests.integration.page.test_painting import small
from tests.integration.requests_and_pictures import request_body
from tests.stand_in.proxy import running_proxy
from tests.stand_in.triton import running_gateway, running_stand_in

TOKEN = "a-token-of-enough-characters"  # noqa: S105 - of this test only


@pytest.fixture
def guarded(chrome: Chrome, triton_grpc: str, tmp_path: Path) -> Iterator[tuple[Page, Child]]:
    """The page of a gateway of its own, which wants a token; and the gateway."""
    (tmp_path / "tokens").write_text(f"{TOKEN}\n")
    with running_gateway(tmp_path, triton_grpc, {"MULTSD_TOKEN_FILE": str(tmp_path / "tokens")}) as (child, url):
        window(chrome, width=1280, height=860)
        page = Page(chrome, url, tmp_path)
        page.open()
        yield page, child


@contextmanager
def offline(page: Page) -> Iterator[None]:
    """Cut the page off from the network for a while."""
    speed = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    protocol(page.chrome, "Network.enable", {})
    protocol(page.chrome, "Network.emulateNetworkConditions", {"offline": True, **speed})
    try:
        yield
    finally:
        protocol(page.chrome, "Network.emulateNetworkConditions", {"offline": False, **speed})


def give(page: Page, token: str) -> None:
    page.at("token").clear()
    page.at("token").send_keys(token)
    page.at("token").submit()


def test_a_token_is_asked_for_and_one_that_is_unknown_refused(guarded: tuple[Page, Child]) -> None:
    page, _ = guarded
    page.wait(lambda: page.at("token-form").is_displayed(), "the field for the token")
    give(page, "another-token-of-enough")
    page.wait(lambda: page.at("token-note").text == "The server does not know this token.", "the refusal")
    give(page, TOKEN)
    page.wait(lambda: not page.at("token-form").is_displayed(), "the token to be taken")
    page.wait(lambda: page.all(".region"), "the preset")
    small(page)
    page.generate()

    assert page.picture().shape == (192, 256, 3)
    page.click("open-export")
    command = str(page.at("curl").get_attribute("value"))
    assert "Bearer $MULTSD_TOKEN" in command
    assert TOKEN not in command


def test_an_error_has_the_focus_though_a_token_was_refused_before(guarded: tuple[Page, Child]) -> None:
    page, _ = guarded
    page.wait(lambda: page.at("token-form").is_displayed(), "the field for the token")
    give(page, "another-token-of-enough")
    page.wait(lambda: page.at("token-note").text == "The server does not know this token.", "the refusal")
    give(page, TOKEN)
    page.wait(lambda: page.all(".region"), "the preset")
    assert page.at("token").get_attribute("aria-invalid") == "false"

    page.write("ddim_steps", "100000")
    page.script("document.getElementById('token').setAttribute('aria-invalid', 'true')")
    page.generate()
    assert page.chrome.switch_to.active_element.get_attribute("id") == "ddim_steps", "what is hidden is no fault"


def test_a_connection_that_is_lost_mid_way_is_told_and_the_work_kept(guarded: tuple[Page, Child]) -> None:
    page, child = guarded
    page.wait(lambda: page.at("token-form").is_displayed(), "the field for the token")
    give(page, TOKEN)
    page.wait(lambda: page.all(".region"), "the preset")
    page.write("ddim_steps", "150")
    body = page.request()
    page.click("generate")
    page.wait(lambda: page.at("run-text").text.startswith("Step"), "progress")
    child.process.kill()
    page.wait_until_idle()

    assert page.at("message").text == "The connection was lost before the picture was ready."
    assert page.at("lost").is_displayed()
    assert page.request() == body


def test_a_token_that_no_header_can_carry_is_refused_at_its_field(guarded: tuple[Page, Child]) -> None:
    page, _ = guarded
    page.wait(lambda: page.at("token-form").is_displayed(), "the field for the token")
    give(page, "žeton-of-enough-characters")
    assert page.at("token-note").text.startswith("Expected letters, digits and signs of ASCII")
    assert page.at("token").get_attribute("aria-invalid") == "true"

    give(page, TOKEN)
    page.wait(lambda: not page.at("token-form").is_displayed(), "the token to be taken")
    assert page.chrome.switch_to.active_element.get_attribute("id") == "prompt"


def test_a_stream_that_dies_without_a_word_is_told_though_the_server_answers(chrome: Chrome, tmp_path: Path) -> None:
    """As behind a proxy that has forgotten the connection: no byte comes any more, new connections work."""
    with (
        running_stand_in(tmp_path, seconds=600) as triton,
        running_gateway(tmp_path, triton.grpc, {"MULTSD_HEARTBEAT_SECONDS": "1"}) as (_, url),
        running_proxy(int(url.rsplit(":", 1)[1])) as proxy,
    ):
        window(chrome, width=1280, height=860)
        page = Page(chrome, f"http://127.0.0.1:{proxy.port}", tmp_path)
        page.open()
        page.write("prompt", "white background")
        page.click("generate")
        page.wait(lambda: page.at("run-text").text, "the start")
        page.script("return new Promise((done) => setTimeout(done, 4500));")  # heartbeats keep it, for longer than 3
        assert not page.at("message").is_displayed()
        proxy.deafen()
        page.wait_until_idle()

        assert page.at("message").text == "The connection was lost before the picture was ready."


def test_a_server_that_goes_away_while_nothing_is_asked_of_it_is_missed(
    chrome: Chrome, triton_grpc: str, tmp_path: Path
) -> None:
    with running_gateway(tmp_path, triton_grpc) as (child, url):
        window(chrome, width=1280, height=860)
        page = Page(chrome, url, tmp_path)
        page.open()
        page.write("prompt", "white background")
        child.process.kill()
        page.wait(lambda: page.at("lost").is_displayed(), "the message")
        assert page.request()["bg_prompt"] == "white background"


def test_the_page_finds_a_server_that_came_back(page: Page) -> None:
    page.write("prompt", "white background")
    with offline(page):
        page.wait(lambda: page.at("lost").is_displayed(), "the message")
    page.wait(lambda: not page.at("lost").is_displayed(), "the server to be found")

    assert page.request()["bg_prompt"] == "white background"


def test_what_was_said_of_a_lost_connection_goes_when_it_is_back(page: Page) -> None:
    with offline(page):
        page.click("generate")
        page.wait(lambda: page.at("message").text == "The server cannot be reached.", "the message")
    page.wait(lambda: not page.at("lost").is_displayed(), "the server to be found")
    assert page.at("message").text == "The server is there again. The picture was not made."


def test_work_survives_a_lost_connection_where_the_browser_keeps_nothing(page: Page) -> None:
    source = "indexedDB.open = () => { throw new DOMException('no', 'SecurityError'); };"
    added = page.chrome.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
    try:
        page.load()
        page.begin("Blank canvas")
        page.write("prompt", "white background")
        page.add_region("a red square")
        before = page.request()
        with offline(page):
            page.wait(lambda: page.at("lost").is_displayed(), "the message")
        page.wait(lambda: not page.at("lost").is_displayed(), "the server to be found")
        assert page.request() == before
        window(page.chrome, width=380, height=800)
        assert page.at("saved").is_displayed()
        assert page.at("saved").text.startswith("This browser keeps nothing")
    finally:
        protocol(page.chrome, "Page.removeScriptToEvaluateOnNewDocument", {"identifier": added["identifier"]})


def test_a_reload_says_that_it_dropped_the_picture_that_was_at_work(page: Page) -> None:
    page.write("ddim_steps", "150")
    page.click("generate")
    page.wait(lambda: page.at("run-text").text.startswith("Step"), "progress")
    page.load()
    assert page.at("message").text == "The picture that was on its way was dropped when the page was left."
    page.load()
    assert not page.at("message").is_displayed()


def test_the_place_in_the_queue_is_told(chrome: Chrome, triton_grpc: str, tmp_path: Path) -> None:
    """Eight requests run at once and the next waits: the page comes after it."""
    long = request_body(ddim_steps=150)
    with running_gateway(tmp_path, triton_grpc) as (_, url), ExitStack() as others:
        window(chrome, width=1280, height=860)
        page = Page(chrome, url, tmp_path)
        page.open()
        lines = []  # kept: an iterator that nobody holds closes its reply
        for seed in range(9):
            client = others.enter_context(httpx.Client(base_url=url, timeout=60))
            stream = others.enter_context(client.stream("POST", "/multsd/stream", json={**long, "seed": seed}))
            lines.append(stream.iter_lines())
            next(lines[-1])
        page.click("generate")
        page.wait(lambda: page.at("run-text").text == "Waiting, one picture before this one", "the place in the queue")
        others.close()
        page.wait_until_idle()
        assert page.all("#strip button")
