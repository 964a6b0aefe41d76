"""What tokens cost."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from proxy.core.registry import BadValue
from proxy.core.views.prices import PricesView
from proxy.web.admin import examples
from proxy.web.admin.accounts import Day
from proxy.web.admin.desk import Desk
from proxy.web.admin.operation import ModelName, Nothing, Operation, Strict, or_none

__all__ = ["OPERATIONS"]

_MAX_TABLE_BYTES = 8 * 1024 * 1024


class PriceQuery(Strict, frozen=True, kw_only=True):
    model: Annotated[ModelName, Meta(description="This model alone: every row it has.")] | UnsetType = UNSET
    at: Annotated[Day, Meta(description="Prices of this day (UTC); absent: today's.")] | UnsetType = UNSET


class NewPrices(Strict, frozen=True, kw_only=True):
    """Prices to add to the operator's table."""

    content: Annotated[
        str, Meta(min_length=1, description="A price table, as text: amounts are read as they are written.")
    ]
    format: Literal["json", "toml", "csv"] = "json"
    start: (
        Annotated[Day, Meta(description="Day (UTC) that rows without one hold from; absent: tomorrow.")] | UnsetType
    ) = msgspec.field(default=UNSET, name="from")


class PricesImported(msgspec.Struct, frozen=True, kw_only=True):
    """What an import has changed. Servers read prices when they start."""

    file: str
    start: Annotated[str, Meta(description="Day (UTC).")] = msgspec.field(name="from")
    models: Annotated[list[str], Meta(description="Those with a row they did not have.")]
    passed_over: Annotated[list[str], Meta(description="What has no place in a price table of ours.")]


def list_prices(desk: Desk, params: PriceQuery, _: Nothing) -> PricesView:
    return desk.pricing.list_prices(or_none(params.model), or_none(params.at))


def import_prices(desk: Desk, _: Nothing, body: NewPrices) -> PricesImported:
    done = desk.pricing.import_prices(body.content, body.format, or_none(body.start))
    return PricesImported(
        file=done.file, start=str(done.start), models=list(done.models), passed_over=list(done.passed_over)
    )


OPERATIONS = (
    Operation(
        name="listPrices",
        method="GET",
        path="/prices",
        summary="Show what tokens cost, and where the prices come from.",
        command="prices list",
        handle=list_prices,
        params=PriceQuery,
        result=PricesView,
        example=examples.PRICES,
        raises=(BadValue,),
    ),
    Operation(
        name="importPrices",
        method="POST",
        path="/prices/import",
        summary="Add the prices of a table to the operator's, from a day on. Servers read them when they start.",
        command="prices import",
        handle=import_prices,
        body=NewPrices,
        example_body={"format": "csv", "content": "model,input,output\ngpt-5-mini,0.25,2.00\n", "from": "2027-01-01"},
        result=PricesImported,
        example=PricesImported(
            file="/var/lib/tollgate/prices.json", start="2027-01-01", models=["gpt-5-mini"], passed_over=[]
        ),
        raises=(BadValue,),
        max_body_bytes=_MAX_TABLE_BYTES,
    ),
)
