import json

import pytest

from proxy.adapters.price_file import load_prices
from proxy.core.pricing import PricesInvalid, ServiceTier

TOML = """
unit = "usd_per_million_tokens"
[models.llama]
prices.default = {input = 0.15, output = 0.6}
"""


def test_the_shipped_table_alone():
    assert len(load_prices().models()) == 119


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_an_operators_file_lies_over_it(tmp_path, suffix):
    path = tmp_path / f"prices.{suffix}"
    rows = {"llama": {"prices": {"default": {"input": 0.15, "output": 0.6}}}}
    path.write_text(TOML if suffix == "toml" else json.dumps({"unit": "usd_per_million_tokens", "models": rows}))
    book = load_prices(path)
    assert len(book.models()) == 120
    assert book.price("llama", 0).rates[ServiceTier.DEFAULT].input == 150_000


@pytest.mark.parametrize("content", [None, "x =", "models = 1", "[models.m]\nprices = 1", "\udcff"])
def test_a_file_that_is_wrong_is_named(tmp_path, content):
    path = tmp_path / "prices.toml"
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(PricesInvalid, match=r"prices\.toml"):
        load_prices(path)
