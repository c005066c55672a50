"""axe-core (MPL-2.0, beside this file with its licence) finds what keeps people from using a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome

AXE = Path(__file__).parent / "axe-core-4.14.1" / "axe.min.js"
SERIOUS = ("serious", "critical")

_RUN = """
const done = arguments[arguments.length - 1];
axe.run(document, { resultTypes: ["violations"] })
  .then((found) => done(found.violations), (error) => done(String(error)));
"""


def serious_violations(chrome: Chrome) -> list[str]:
    """The page's serious and critical violations as it is now: rule, and the elements at fault."""
    chrome.execute_script(AXE.read_text(encoding="utf-8"))
    violations: list[dict[str, Any]] = chrome.execute_async_script(_RUN)
    assert isinstance(violations, list), violations
    return [
        f"{each['id']} ({each['impact']}): {[node['html'] for node in each['nodes']]}"
        for each in violations
        if each["impact"] in SERIOUS
    ]
