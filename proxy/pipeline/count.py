"""Our own count of an exchange, where upstream's usage did not come.

Short texts are counted in the settlement. A long one, and the first of all, is settled by characters and counted in a
thread: its event is written when the count is there, and log and metrics wait for it with the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from proxy.core.count import Encoding, Said, encoding_of
from proxy.core.event import UsageEvent
from proxy.core.pricing import cost_pico_usd
from proxy.core.usage import Usage
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.services import Services

__all__ = ["Uncounted", "end_when_counted", "own_count"]


@dataclass(frozen=True, slots=True)
class Uncounted:
    """What is left to be counted."""

    encoding: Encoding
    asked: Said
    said: Said
    service_tier: str | None


def own_count(
    exchange: Exchange, services: Services, said: Said | None, counted_output_tokens: int, service_tier: str | None
) -> tuple[Usage, Uncounted | None]:
    """Count what was asked and `said`, or estimate it by characters, and tell what then is left to count."""
    by_characters = Usage(exchange.reserved_input_tokens, counted_output_tokens)
    if services.tokenizer is None or said is None:
        return by_characters, None
    encoding, asked = encoding_of(exchange.asked.model), exchange.kind.prompt(exchange.asked)
    counted = services.tokenizer.count(encoding, (asked, said))
    if counted is not None:
        return Usage(*counted), None
    return by_characters, Uncounted(encoding, asked, said, service_tier)


def end_when_counted(
    exchange: Exchange, services: Services, event: UsageEvent, left: Uncounted, on_counted: Callable[[int], None]
) -> None:
    """Count in a thread, then write the event: this one if that cannot be done.

    Until then the begin record stands for it, should the process die. `on_counted` is called then, exactly once, with
    the tokens in all, for limits and budgets to be put right; `exchange` has the cost.
    """
    if services.tokenizer is None:
        on_counted(event.usage.total_tokens)
        services.ledger.end(event)
        return
    done = exchange.counting = asyncio.get_running_loop().create_future()

    def write(counted: tuple[int, ...] | None) -> None:
        final = event
        if counted is not None:
            exchange.usage = Usage(*counted)
            if exchange.price is not None:
                exchange.cost_pico_usd = cost_pico_usd(exchange.price, exchange.usage, left.service_tier)
            final = replace(event, usage=exchange.usage, cost_pico_usd=exchange.cost_pico_usd)
        on_counted(final.usage.total_tokens)
        services.ledger.end(final)
        done.set_result(None)

    services.tokenizer.count_later(left.encoding, (left.asked, left.said), write)
