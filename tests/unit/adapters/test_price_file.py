import json
import threading

import pytest

from proxy.adapters.price_file import load_prices, read_price_file, replacing, shipped_table
from proxy.core.pricing import PricesInvalid, ServiceTier

FORMS = {
    "prices.toml": 'unit = "usd_per_million_tokens"\n[models.llama]\nprices.default = {input = 0.15, output = 0.6}\n',
    "prices.json": '{"unit": "usd_per_million_tokens",'
    ' "models": {"llama": {"prices": {"default": {"input": 0.15, "output": 0.6}}}}}',
    "prices.csv": "model,input,output\nllama,0.15,0.6\n",
    "flat.json": '\ufeff{"models": {"llama": {"usd_per_million_tokens": {"input": 0.15, "output": 0.6}}}}',
}


def test_the_shipped_table_alone():
    table = shipped_table()
    assert len(load_prices().models()) == len(table.prices) == 119
    assert (str(table.as_of), bool(table.source)) == ("2026-11-21", True)


@pytest.mark.parametrize("name", FORMS)
def test_an_operators_file_lies_over_it(tmp_path, name):
    path = tmp_path / name
    path.write_text(FORMS[name])
    book = load_prices(path)
    assert len(book.models()) == 120
    assert book.price("llama", 0).rates[ServiceTier.DEFAULT].input == 150_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prices.toml", None, "prices.toml: cannot read the file: No such file"),
        ("prices.toml", "a = 1\nx =", "prices.toml:2: is not TOML: Invalid value"),
        ("prices.toml", "\udcff", "prices.toml: the file is not UTF-8"),
        ("prices.toml", "[models.m]\nprices = 1", "prices.toml: models.m.prices: expected an object"),
        (
            "prices.toml",
            "[models.m]\nprices.default = {input = nan, output = 1}",
            "default.input: must be zero or more",
        ),
        ("prices.json", "{\n", "prices.json:2: is not JSON"),
        ("prices.json", "[]", "prices.json:1: expected an object"),
        ("prices.json", '{"models":\n{"m": 1,\n"m": 2}}', "prices.json:3: models.m: is there twice"),
        ("prices.json", '{"models": {\n"m":\n{"pricse": {}}}}', "prices.json:3: models.m.pricse: unknown field"),
        ("prices.json", "[" * 100_000, "prices.json: is nothing that could be a price table"),
        ("prices.json", '{"models": ' + "9" * 5_000 + "}", "prices.json: is nothing that could be a price table"),
        ("prices.csv", "model,input,output\nm,x,1\n", "prices.csv:2: models.m.0.prices.default.input: is no decimal"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_the_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(PricesInvalid) as caught:
        load_prices(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


def test_lines_of_toml_come_from_whoever_knows_them(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text("\n[models.m]\nprices = 1\n")
    with pytest.raises(PricesInvalid, match=r"prices\.toml:3: models\.m\.prices"):
        read_price_file(path, lambda text: {("models", "m", "prices"): text.count("\n")})


def test_digits_beyond_a_float_are_seen(tmp_path):
    path = tmp_path / "prices.json"
    path.write_text('{"models": {"m": {"prices": {"default": {"input": 0.99999999999999999999, "output": 1}}}}}')
    with pytest.raises(PricesInvalid, match="is not a whole number"):
        load_prices(path)


def test_a_file_is_replaced_whole_and_only_when_told(tmp_path):
    path = tmp_path / "data" / "prices.json"
    with replacing(path) as put:
        assert not path.exists()
        put("one")
    assert (path.read_text(), path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == ("one", 0o600, 0o700)
    with pytest.raises(RuntimeError), replacing(path):
        raise RuntimeError
    assert path.read_text() == "one"
    assert [each.name for each in path.parent.iterdir()] == ["prices.json"]


def test_two_who_replace_a_file_take_turns(tmp_path):
    path = tmp_path / "numbers.json"
    path.write_text("[]")

    def add(number):
        with replacing(path) as put:
            put(json.dumps([*json.loads(path.read_text()), number]))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(json.loads(path.read_text())) == list(range(8))
