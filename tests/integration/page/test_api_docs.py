"""The API's page in a real Chromium: Swagger UI runs under its own policy, and asks nobody else for anything."""

from __future__ import annotations

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from multsd_gateway.stack.supervisor import Stack
from tests.browser.chromium import console_errors

_LOADED = "return performance.getEntriesByType('resource').map(each => each.name)"


def test_the_apis_page_lists_every_path_and_loads_nothing_from_elsewhere(chrome: Chrome, stack: Stack) -> None:
    console_errors(chrome)  # those of the test before
    chrome.get(f"{stack.url}/docs")

    shown = WebDriverWait(chrome, 30).until(lambda seen: seen.find_elements(By.CSS_SELECTOR, ".opblock-summary-path"))
    assert {"/multsd", "/multsd/stream", "/limits"} <= {each.get_attribute("data-path") for each in shown}
    assert console_errors(chrome) == []
    loaded = chrome.execute_script(_LOADED)
    assert loaded
    assert [address for address in loaded if not address.startswith(f"{stack.url}/")] == []
