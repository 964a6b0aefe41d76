"""The table of our own headers: what can be left out, and that the README has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.core.own_headers import OWN_HEADERS, SWITCHABLE, Answer, left_out

README = (Path(__file__).parents[3] / "README.md").read_text()


def test_the_readme_has_the_table():
    (shown,) = re.findall(r"^\| header \| says \| on \|\n\|---\|---\|---\|\n((?:\|.*\|\n)+)", README, re.MULTILINE)
    told = {tuple(Answer): "every answer"}
    assert shown.splitlines() == [
        f"| `{header.name}` | {header.says} | {told.get(header.on, ', '.join(header.on))} |" for header in OWN_HEADERS
    ]


def test_a_name_stands_for_one_header_or_for_those_it_begins():
    assert left_out([]) == frozenset()
    assert left_out(["X-Tollgate-Cost-USD", "ratelimit"]) == {"x-tollgate-cost-usd", "ratelimit"}
    assert left_out(["x-ratelimit-*"]) == {
        f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")
    }


def test_what_clients_and_support_need_stays():
    fixed = {header.name.lower() for header in OWN_HEADERS} - SWITCHABLE.keys()
    assert fixed == {"x-request-id", "retry-after", "retry-after-ms", "x-should-retry"}
    for name in (*fixed, "content-type", "x-tollgate-costs", ""):
        with pytest.raises(KeyError):
            left_out([name])


def test_every_header_is_there_once_and_on_something():
    names = [name.lower() for header in OWN_HEADERS for name in (header.name, *header.names)]
    assert len(names) == len(set(names))
    assert all(header.on for header in OWN_HEADERS)
    assert all(header.name.endswith("*") == bool(header.names) for header in OWN_HEADERS)
