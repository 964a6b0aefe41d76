import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from proxy.core.errors import InvalidKey, MissingKey
from proxy.core.keys import may_be_imported
from proxy.pipeline.authenticate import authenticate, presented_key

MODEL = b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x"}]}'


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"Authorization": "Bearer sk-tg_x"}, "sk-tg_x"),
        ({"authorization": "bearer sk-tg_x"}, "sk-tg_x"),
        ({"Authorization": "BEARER   sk-tg_x  "}, "sk-tg_x"),
        ({"Authorization": "Bearer my team key 1"}, "my team key 1"),
        ({"Authorization": "Bearer my  two  spaces"}, "my  two  spaces"),
        ({"Authorization": "Bearer Bearer of news"}, "Bearer of news"),
        ({"api-key": "my team key 1"}, "my team key 1"),
        ({"Api-Key": " sk-tg_x "}, "sk-tg_x"),
        ({"Authorization": "Bearer first", "api-key": "second"}, "first"),
    ],
)
def test_a_key_is_read_as_it_was_sent(headers, key):
    assert presented_key(CIMultiDict(headers)) == key


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer   "},
        {"Authorization": "Basic dXNlcjpwYXNz"},
        {"Authorization": "my team key 1"},
        {"api-key": " "},
        {"x-api-key": "sk-tg_x"},
    ],
)
def test_what_carries_no_key_has_none(headers):
    with pytest.raises(MissingKey):
        presented_key(CIMultiDict(headers))


@given(st.text(min_size=1, max_size=60).filter(may_be_imported))
def test_whatever_may_be_imported_arrives_as_it_is(key):
    for headers in ({"Authorization": f"Bearer {key}"}, {"api-key": key}):
        assert presented_key(CIMultiDict(headers)) == key


@given(st.text(st.characters(max_codepoint=0x7F)), st.sampled_from("äéñø£¿ÿ"), st.sampled_from(" .0az"))
def test_what_clients_write_in_latin_1_is_read_in_it(before, letter, after):
    key = f"a{before}{letter}{after}z"
    as_read = key.encode("latin-1").decode("utf-8", "surrogateescape")
    assert as_read != key
    for headers in ({"Authorization": f"Bearer {as_read}"}, {"api-key": as_read}):
        assert presented_key(CIMultiDict(headers)) == key


def test_of_two_headers_the_first_counts():
    for name, said in (("Authorization", "Bearer {}"), ("api-key", "{}")):
        twice = CIMultiDict([(name, said.format("first")), (name.upper(), said.format("second"))])
        assert presented_key(twice) == "first"


@pytest.mark.parametrize("header", ["Authorization", "api-key"])
async def test_a_key_with_spaces_leads_to_its_team(bench, registry, header):
    key = "my team key number 1"
    registry.import_keys("growth", [key])
    exchange = await bench.exchange(MODEL, headers=CIMultiDict({header: f"Bearer {key}"[7 * (header == "api-key") :]}))
    await authenticate(exchange, bench.services)
    assert exchange.principal.team.name == "growth"
    exchange.headers = CIMultiDict({header: f"Bearer {key} 2"[7 * (header == "api-key") :]})
    with pytest.raises(InvalidKey):
        await authenticate(exchange, bench.services)
