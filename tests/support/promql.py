"""Enough of PromQL to hold expressions to declarations: which metrics they name, and which labels they ask of them.

Expressions of this project write an aggregation's labels before its argument (`sum by (team) (...)`), which is held
by `misformed`; strings in them have no brackets of their own that do not close.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

__all__ = ["labels_asked", "metrics_named", "misformed", "whole_names"]

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_METRIC = re.compile(r"(?<![\w:$\"])([a-z_][a-z0-9_]*:[a-z0-9_:]+|tollgate_[a-z0-9_]+|up)(?![\w:(])(\{[^{}]*\})?")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_AGGREGATION = re.compile(r"\b(?:sum|min|max|avg|count|topk|bottomk|quantile|group|stddev)\b\s*")
_BY = re.compile(r"by\s*\(([^()]*)\)\s*")
_OF_TARGETS = frozenset({"instance", "job"})


def metrics_named(expression: str) -> set[str]:
    """Every metric and recorded series of an expression."""
    return {name for name, _ in _selectors(expression)}


def labels_asked(expression: str) -> Iterator[tuple[str, str]]:
    """(metric, label) for each label that is matched, or kept by an aggregation around the metric."""
    for name, matchers in _selectors(expression):
        for label in _MATCHER.findall(_STRING.sub('""', matchers)):
            yield name, label
    for labels, argument in _aggregations(expression):
        for name in metrics_named(argument):
            for label in labels:
                yield name, label


def whole_names(name: str, declared: Mapping[str, frozenset[str]]) -> frozenset[str] | None:
    """The labels a series has, None for one that nobody declares. Histograms are declared without suffix."""
    if name == "up":
        return _OF_TARGETS
    if name in declared:
        return declared[name] | _OF_TARGETS
    for suffix, more in (("_bucket", {"le"}), ("_count", set()), ("_sum", set())):
        base = name.removesuffix(suffix)
        if base != name and base in declared:
            return declared[base] | more | _OF_TARGETS
    return None


def misformed(expression: str) -> str | None:
    """What keeps an expression from being read here: an aggregation with its labels behind, or `without`."""
    if re.search(r"\bwithout\s*\(", expression):
        return "without"
    if re.search(r"\)\s*by\s*\(", expression):
        return "by behind the argument"
    return None


def _selectors(expression: str) -> Iterator[tuple[str, str]]:
    for found in _METRIC.finditer(_outside_strings(expression)):
        start, end = found.span(2)
        yield found[1], expression[start:end] if start >= 0 else ""


def _outside_strings(expression: str) -> str:
    """The same length, with the text of strings blanked."""
    return _STRING.sub(lambda found: '"' + " " * (len(found[0]) - 2) + '"', expression)


def _aggregations(expression: str) -> Iterator[tuple[list[str], str]]:
    text = _outside_strings(expression)
    for found in _AGGREGATION.finditer(text):
        at, labels = found.end(), []
        by = _BY.match(text, at)
        if by:
            at, labels = by.end(), [label.strip() for label in by[1].split(",") if label.strip()]
        if at < len(text) and text[at] == "(":
            yield labels, expression[at : _closing(text, at) + 1]


def _closing(text: str, opened: int) -> int:
    depth = 0
    for at in range(opened, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at
    raise AssertionError(f"a bracket is not closed: {text}")
