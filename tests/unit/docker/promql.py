"""A small reader of PromQL as docker/observability uses it: which metrics an expression has, and which labels of them.

Not a parser of the language: promtool checks that expressions are well formed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

WORDS = {"by", "and", "or", "on", "without", "unless", "le", "offset"}
_METRIC = re.compile(r"(?<![\w.:])([a-zA-Z_:][\w:]*)\b(?!\s*\()(?:\{([^}]*)\})?")
_GROUPED = re.compile(r"\bby\s*\(([^)]*)\)\s*\(")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_SHOWN = re.compile(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}")


def metric_names(expression: str) -> set[str]:
    """The metrics of an expression: names that are neither labels, functions nor words of the language."""
    return {name for name, _ in _selectors(expression)}


def labels_used(expression: str) -> dict[str, set[str]]:
    """By metric, the labels that an expression compares or groups it by. le is one, for a histogram's buckets."""
    used: dict[str, set[str]] = {name: set() for name in metric_names(expression)}
    for name, matchers in _selectors(expression):
        used[name] |= set(_MATCHER.findall(re.sub(r'"[^"]*"', '""', matchers)))
    for labels, inside in _groups(expression):
        for name in metric_names(inside):
            used[name] |= labels
    return used


def labels_left(expression: str, labels_of: Mapping[str, set[str]]) -> set[str]:
    """The labels that every sample of the result has. labels_of: those of each metric in the expression."""
    if "(" in expression.replace("rate(", "").replace("increase(", ""):  # aggregated: only what it is grouped by
        kept = [labels for labels, _ in _groups(expression)]
        return set.intersection(*kept) - {"le"} if kept else set()
    return set.intersection(*(labels_of[name] for name in metric_names(expression)))


def labels_shown(text: str) -> set[str]:
    """The labels that a legend or a summary shows."""
    return set(_SHOWN.findall(text))


def _selectors(expression: str) -> Iterator[tuple[str, str]]:
    """Each metric with what is between its braces."""
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)|\[[^\]]*\]", " ", expression)
    for found in _METRIC.finditer(_blank_strings_outside_braces(bare)):
        if found[1] not in WORDS:
            yield found[1], found[2] or ""


def _blank_strings_outside_braces(expression: str) -> str:
    parts = re.split(r"(\{[^}]*\})", expression)
    return "".join(part if part.startswith("{") else re.sub(r'"[^"]*"', '""', part) for part in parts)


def _groups(expression: str) -> Iterator[tuple[set[str], str]]:
    """The labels of each `by (...)`, and the expression that is grouped."""
    for found in _GROUPED.finditer(expression):
        depth, end = 1, found.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(expression[end], 0)
            end += 1
        yield {label.strip() for label in found[1].split(",")}, expression[found.end() : end - 1]
