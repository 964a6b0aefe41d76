"""Pages are made of elements: nothing that anybody calls something becomes markup."""

from __future__ import annotations

import hashlib
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.money import PICO_PER_USD
from proxy.core.overview import Level
from proxy.web.pages.assets import ASSETS, asset, url_of
from proxy.web.pages.figures import bar, gauge, money, percent, places, table
from proxy.web.pages.html import Html, el, join
from proxy.web.pages.layout import page

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x00"), max_size=40)
HOSTILE = st.sampled_from(
    ["<script>", "</td>", "\"onclick='x'", "&amp;", "-->", "]]>", "'", '"', "<", "&lt", "javascript:"]
)


class Reader(HTMLParser):
    """What a browser makes of it: elements, their attributes, text."""

    def __init__(self, markup):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(str(markup))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append(dict(attrs))

    def handle_data(self, data):
        self.text += data


@given(st.lists(TEXTS | HOSTILE, min_size=1).map("".join), st.lists(TEXTS | HOSTILE, min_size=1).map("".join))
def test_whatever_it_holds_is_text(text, attribute):
    read = Reader(el("p", el("b", text), title=attribute))
    assert read.tags == ["p", "b"]
    assert read.text == text
    assert read.attributes == [{"title": attribute}, {}]


def test_what_is_markup_stays_markup_and_nothing_is_nothing():
    assert el("p", Html("<b>a</b>"), None, 3) == "<p><b>a</b>3</p>"
    assert join([]) == ""
    assert type(join(["<"])) is type(el("p")) is Html
    assert el("input", required=True, hidden=False, value=None, for_="x", aria_label="y") == (
        '<input required for="x" aria-label="y">'
    )


def test_text_that_is_put_together_with_markup_is_text_again():
    assert el("p", f"a {el('b', 'c')}") == "<p>a &lt;b&gt;c&lt;/b&gt;</p>"


@pytest.mark.parametrize(
    ("pico_usd", "digits", "shown"),
    [
        (0, None, "$0.00"),
        (1, None, "$0.000000"),
        (9_999_999_999, None, "$0.010000"),
        (10_000_000_000, None, "$0.01"),
        (1_234_567 * PICO_PER_USD + 994_000_000_000, None, "$1,234,567.99"),
        (9_999_999_999, 2, "<$0.01"),
        (-9_999_999_999, 2, ">-$0.01"),
        (5_000_000_000, 6, "$0.005000"),
        (-3 * PICO_PER_USD, None, "-$3.00"),
    ],
)
def test_money(pico_usd, digits, shown):
    assert money(pico_usd, digits) == shown


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [(0, 0, "–"), (0, 7, "0 %"), (2, 3, "67 %"), (4_999, 5_000, "99 %"), (7, 7, "100 %"), (9, 7, "129 %")],  # noqa: RUF001
)
def test_all_is_said_of_nothing_less(part, whole, shown):
    assert percent(part, whole) == shown
    assert ('aria-valuenow="100"' in bar("Used", part, whole, "")) == (part >= whole)


def test_the_points_of_a_column_are_in_one_line():
    assert (places(PICO_PER_USD), places(PICO_PER_USD - 1), places(0)) == (2, 6, 6)


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.none() | st.integers(0, 10**12))
def test_a_bar_is_full_at_most_and_says_how_full(part, whole, mark):
    read = Reader(bar("label", part, whole, "told", mark))
    meter, _, filled, *marks = read.attributes
    assert 0 <= float(filled["width"]) <= 100
    assert (filled["class"] == "bar-full") == (part >= whole)
    assert meter["role"] == "meter"
    assert (meter["aria-label"], meter["aria-valuetext"]) == ("label", "told")
    assert float(meter["aria-valuenow"]) <= float(meter["aria-valuemax"]) == 100
    assert len(marks) == (mark is not None and whole > 0)
    assert all(0 <= float(each["x"]) <= 99 for each in marks)


@pytest.mark.parametrize(
    ("level", "told"),
    [
        (None, "no limit"),
        (Level(20, 20, 20), "0 of 20 "),
        (Level(20, 20, 0), "20 of 20 none left"),
        (Level(60, 5, 2), "3 of 5, 60 a minute "),
        (Level(60, 60, None), "60 a minute, use not known"),
    ],
)
def test_a_limit_in_words(level, told):
    assert Reader(gauge("x", level)).text == told


def test_a_table_says_what_it_is_and_what_its_columns_are():
    read = Reader(table("Caption", ("Name", ">Figure"), [el("tr", el("th", "a", scope="row"), el("td", "1"))], "none"))
    cells = [
        (tag, given.get("scope")) for tag, given in zip(read.tags, read.attributes, strict=True) if tag in {"th", "td"}
    ]
    assert cells == [("th", "col"), ("th", "col"), ("th", "row"), ("td", None)]
    assert "caption" in read.tags
    assert Reader(table("Caption", ("Name",), [], "There is none.")).text == "There is none."


def test_files_of_a_page_have_the_address_of_their_content():
    for name in ASSETS:
        content = files("proxy.web.pages").joinpath("static", name).read_bytes()
        assert url_of("/page", name) == f"/page/{name}?v={hashlib.sha256(content).hexdigest()[:12]}"
        assert asset(name).content == content
    with pytest.raises(KeyError):
        asset("uplot-LICENSE")
    shown = page("<t>", "/page", None, None, live=True).decode()
    assert all(url_of("/page", name) in shown for name in ASSETS)
    assert "<title>&lt;t&gt;</title>" in shown
    assert ".js" not in page("t", "/page", None, None, live=False).decode()


def test_the_chart_library_is_the_one_that_was_released():
    """uPlot 1.6.32, as the registry of npm has it: https://github.com/leeoniya/uPlot."""
    static = files("proxy.web.pages").joinpath("static")
    released = {
        "uplot-1.6.32.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
        "uplot-1.6.32.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    }
    vendored = {each.name for each in static.iterdir() if each.name.startswith("uplot") and "LICENSE" not in each.name}
    assert vendored == set(released)
    for name, digest in released.items():
        assert hashlib.sha256(static.joinpath(name).read_bytes()).hexdigest() == digest
    licence = static.joinpath("uplot-LICENSE").read_text("utf-8")
    assert "MIT License" in licence
    assert "Leon Sorokin" in licence
