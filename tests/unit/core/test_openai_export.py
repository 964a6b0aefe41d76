"""Exports in the shapes of OpenAI's API specification and of its dashboard."""

import json
from datetime import UTC, date, datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.openai_export import ExportInvalid, read_export
from proxy.core.reconcile import Entry

DAY = date(2025, 10, 27)
START = int(datetime(2025, 10, 27, tzinfo=UTC).timestamp())


def bucket(*results, start=START, width=86_400):
    return {"object": "bucket", "start_time": start, "end_time": START + width, "results": list(results)}


def page(*buckets, **more):
    return json.dumps({"object": "page", "data": list(buckets), "has_more": False, "next_page": None} | more)


COMPLETIONS = {
    "object": "organization.usage.completions.result",
    "input_tokens": 7_162,
    "output_tokens": 500,
    "input_cached_tokens": 1_280,
    "input_uncached_tokens": 5_882,
    "input_cache_write_tokens": 3,
    "input_audio_tokens": 0,
    "output_audio_tokens": 2,
    "num_model_requests": 5,
    "project_id": None,
    "api_key_id": None,
    "model": "gpt-4o-2024-08-06",
    "batch": None,
}
COUNTED = {
    "requests": 5,
    "input_tokens": 7_162,
    "cached_input_tokens": 1_280,
    "cache_write_tokens": 3,
    "output_tokens": 500,
    "audio_output_tokens": 2,
}


def test_a_page_of_the_usage_api():
    export = read_export(page(bucket(COMPLETIONS), bucket(start=START + 86_400, width=172_800)))
    assert export.entries == [Entry(DAY, "gpt-4o-2024-08-06", COUNTED)]
    assert export.days == {DAY, date(2025, 10, 28)}
    assert not export.more


def test_embeddings_and_what_is_not_by_model():
    embeddings = {"object": "organization.usage.embeddings.result", "input_tokens": 16, "num_model_requests": 2}
    stores = {"object": "organization.usage.vector_stores.result", "usage_bytes": 1_024, "project_id": None}
    export = read_export(page(bucket(embeddings | {"model": None}, stores)))
    assert export.entries == [Entry(DAY, None, {"requests": 2, "input_tokens": 16})]


@pytest.mark.parametrize(
    ("value", "pico_usd"),
    [
        (0.06, 60_000_000_000),
        ("0.003835980000000000000000000000", 3_835_980_000),
        ("0.0000000000005", Fraction(1, 2)),
        (1, 10**12),
        ("1E-7", 100_000),
        ("-0.5", -(10**12) // 2),
    ],
)
def test_a_page_of_the_costs_api_is_exact(value, pico_usd):
    result = {
        "object": "organization.costs.result",
        "amount": {"value": value, "currency": "usd"},
        "line_item": "gpt-4o-2024-08-06, cached input",
        "project_id": None,
    }
    export = read_export(page(bucket(result)))
    assert export.entries == [Entry(DAY, "gpt-4o-2024-08-06", {"cost_pico_usd": pico_usd})]
    ungrouped = read_export(page(bucket(result | {"line_item": None})))
    assert ungrouped.entries == [Entry(DAY, None, {"cost_pico_usd": pico_usd})]


@given(st.integers(0, 10**12))
def test_a_decimal_is_never_a_float_on_the_way(micro):
    amount = f"{micro // 10**6}.{micro % 10**6:06d}"
    text = page(bucket({"amount": {"value": "?", "currency": "usd"}})).replace('"?"', amount)
    (entry,) = read_export(text).entries
    assert entry.amounts["cost_pico_usd"] == micro * 10**6


def test_pages_and_buckets_in_a_list_and_the_older_name_of_results():
    old = bucket(COMPLETIONS)
    old["result"] = old.pop("results")
    later = bucket(COMPLETIONS, start=START + 86_340)
    both = f"[{page(bucket(COMPLETIONS), has_more=True)}, {page(old)}]"
    assert [entry.day for entry in read_export(both).entries] == [DAY, DAY]
    assert not read_export(both).more
    assert read_export(page(bucket(COMPLETIONS), has_more=True)).more
    assert read_export(json.dumps([later])).days == {DAY}
    assert len(read_export(json.dumps(bucket(COMPLETIONS))).entries) == 1


USAGE_CSV = (
    "\ufeffstart_time,end_time,start_time_iso,end_time_iso,project_id,num_model_requests,user_id,api_key_id,model,batch,"
    "service_tier,input_tokens,output_tokens,input_cached_tokens,input_audio_tokens,output_audio_tokens\r\n"
    f"{START},{START + 60},2025-10-27T00:00:00+00:00,2025-10-27T00:01:00+00:00,"
    "proj_1,3.0,,key_1,gpt-4o,,,4212,1673,0,0,0\r\n"
    f"{START + 60},{START + 120},2025-10-27T00:01:00+00:00,2025-10-27T00:02:00+00:00,,,,,,,,,,,,\r\n"
)
COST_CSV = (
    "start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,quantity,quantity_unit,line_item\n"
    "1790467200,1790553600,2026-09-27T00:00:00+00:00,2026-09-28T00:00:00+00:00,,,,,\n"
    '1790553600,1790640000,2026-09-28T00:00:00,2026-09-29T00:00:00,0.5,USD,1000,tokens,"gpt-5-nano, input_tokens"\n'
)


def test_the_dashboards_export_of_activity():
    export = read_export(USAGE_CSV)
    counted = {"requests": 3, "input_tokens": 4_212, "cached_input_tokens": 0, "output_tokens": 1_673}
    assert export.entries == [Entry(DAY, "gpt-4o", counted | {"audio_output_tokens": 0})]
    assert export.days == {DAY}


def test_the_dashboards_export_of_cost():
    export = read_export(COST_CSV)
    assert export.entries == [Entry(date(2026, 9, 28), "gpt-5-nano", {"cost_pico_usd": 5 * 10**11})]
    assert export.days == {date(2026, 9, 27), date(2026, 9, 28)}


def test_a_day_can_be_told_in_words():
    export = read_export("start_time_iso,model,input_tokens\n2025-10-27T23:30:00-01:00,m,1\n2025-10-27T23:30:00,m,1\n")
    assert [entry.day for entry in export.entries] == [date(2025, 10, 28), DAY]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is neither JSON nor CSV"),
        ("{", "is not JSON"),
        ("{}", "bucket 1: expected start_time and results"),
        ("[]", "has no bucket"),
        ("[1]", "bucket 1: expected start_time"),
        ("[" * 100_000, "is nested too deeply"),
        (page(), "has no bucket"),
        (page(bucket(1)), "bucket 1, result 1: expected an object"),
        (page(bucket(), {"results": []}), "bucket 2: expected start_time"),
        (page(bucket(start="soon")), "bucket 1: start_time is no time"),
        (page(bucket(start=10**30)), "start_time is no time"),
        (page(bucket(width=86_401)), "is wider than a day"),
        (page(bucket({"input_tokens": -1})), "bucket 1, result 1: input_tokens: -1 is no count"),
        (page(bucket({"input_tokens": 1.5})), "input_tokens: 1.5 is no count"),
        (page(bucket({"input_tokens": True})), "'True' is no number"),
        (page(bucket({"input_tokens": 1, "model": 5})), "a name is expected to be text"),
        (page(bucket({"amount": {"value": 1, "currency": "eur"}})), "compared in usd, not in eur"),
        (page(bucket({"amount": {"value": "1e999999", "currency": "usd"}})), "is no number"),
        (page(bucket({"amount": {"value": "1", "currency": None}})), "not in None"),
        ('{"data": [NaN]}', "is not JSON: NaN is no value"),
        ("a,b\n1,2\n", "is neither JSON nor CSV with a column start_time"),
        ("start_time,b\n1,2\n", "line 1: expected amount_value, or some of num_model_requests"),
        ("start_time,input_tokens\n1\n", "line 2: expected 2 values"),
        ("start_time,input_tokens\n1,2,3\n", "line 2: expected 2 values"),
        ("start_time,input_tokens\n1,x\n", "line 2: input_tokens: 'x' is no number"),
        ('start_time,input_tokens\n1,"2\n', "line 2: unexpected end of data"),
    ],
)
def test_what_is_no_export_is_refused_with_its_place(text, message):
    with pytest.raises(ExportInvalid) as caught:
        read_export(text)
    assert message in str(caught.value)


@given(st.text(max_size=80))
def test_any_text_is_an_export_or_is_refused(text):
    try:
        read_export(text)
    except ExportInvalid as error:
        assert str(error)  # noqa: PT017 - either is right
