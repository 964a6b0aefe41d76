from __future__ import annotations

import csv
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cli.output import echo_csv, echo_json, echo_json_rows, echo_table, instant, printable


def test_tables_align_and_numbers_stand_to_the_right(capsys):
    echo_table(("team", "requests", "cost"), [("growth", 1_234_567, "1.50"), ("ml", None, "12.00")], right=("cost",))
    assert capsys.readouterr().out.splitlines() == [
        "team     requests   cost",
        "growth  1,234,567   1.50",
        "ml              -  12.00",
    ]


def test_a_table_of_nothing_is_its_header(capsys):
    echo_table(("team", "tier"), [])
    assert capsys.readouterr().out == "team  tier\n"


def test_wide_letters_and_combining_marks_keep_columns_straight(capsys):
    echo_table(("label", "id"), [("日本", "a"), ("e\u0301t", "b")])
    assert capsys.readouterr().out.splitlines() == ["label  id", "日本   a", "e\u0301t     b"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本", "plain é 日本"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x9b31m", r"\x9b31m"),
        ("evil\u202etxt", r"evil\u202etxt"),
    ],
)
def test_what_steers_a_terminal_is_escaped(text, shown):
    assert printable(text) == shown


@given(st.text())
def test_nothing_printed_is_unprintable(text):
    assert printable(text).isprintable()


@given(st.lists(st.text(max_size=8), min_size=1, max_size=3))
def test_csv_reads_back_as_what_it_shows(row):
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        echo_csv(["c"] * len(row), [row])
    read = list(csv.reader(io.StringIO(out.getvalue())))[1]
    assert [cell.removeprefix("'") for cell in read] == [printable(cell).removeprefix("'") for cell in row]
    assert not any(cell.startswith(("=", "+", "@")) for cell in read)
    assert all(re.fullmatch(r"-[0-9]+(\.[0-9]+)?", cell) for cell in read if cell.startswith("-"))


def test_csv_keeps_numbers_as_they_are(capsys):
    echo_csv(("a", "b", "c"), [(-5, "=1+1", None), ("-0.25", "-1+1", "\uff1d1")])
    assert capsys.readouterr().out == "a,b,c\n-5,'=1+1,\n-0.25,'-1+1,'\uff1d1\n"


def test_csv_and_json_come_out_while_rows_are_made(capsys):
    def rows():
        for number in range(2_000):
            yield number
            shown.append(capsys.readouterr().out)

    shown = []
    echo_csv(("a",), ([number] for number in rows()))
    assert any(shown[:-1])
    assert "".join([*shown, capsys.readouterr().out]).split() == ["a", *map(str, range(2_000))]
    shown.clear()
    echo_json_rows({"a": number} for number in rows())
    assert any(shown[:-1])
    whole = "".join([*shown, capsys.readouterr().out])
    assert whole == json.dumps([{"a": number} for number in range(2_000)]) + "\n"


@pytest.mark.parametrize("rows", [[], [{}], [1, 2]])
def test_a_json_array_in_pieces_is_one_array(capsys, rows):
    echo_json_rows(rows)
    assert capsys.readouterr().out == json.dumps(rows) + "\n"


def test_json_is_one_line_of_ascii(capsys):
    echo_json({"label": "\u202e\x9b\n"})
    shown = capsys.readouterr().out
    assert shown.isascii()
    assert shown.count("\n") == 1
    assert json.loads(shown) == {"label": "\u202e\x9b\n"}


def test_instants_are_seconds_in_utc():
    assert instant(1_767_225_599_999) == "2025-12-31T23:59:59Z"
    assert instant(None) is None
