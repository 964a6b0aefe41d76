"""Money as integer pico-dollars: sums and products are exact, rounding happens only when an amount is printed."""

from __future__ import annotations

import re

__all__ = ["PICO_DIGITS", "PICO_PER_USD", "BadAmount", "format_usd", "format_usd_per_million", "parse_usd"]

PICO_DIGITS = 12
"""Decimal places of a dollar that exist."""

PICO_PER_USD = 10**PICO_DIGITS

_AMOUNT = re.compile(r"(-?)([0-9]{1,18})(?:\.([0-9]{1,12}))?", re.ASCII)


class BadAmount(ValueError):
    """The text is not an amount of dollars that can be kept exactly."""


def parse_usd(text: str) -> int:
    """Pico-dollars of a decimal amount such as `12.50`; raises `BadAmount`.

    At most twelve decimal places, because more do not exist; no exponent, sign `+`, currency sign or separators.
    """
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise BadAmount(f"not an amount in dollars with at most {PICO_DIGITS} decimal places: {text[:40]!r}")
    sign, whole, decimals = match.groups(default="")
    pico: int = int(whole) * PICO_PER_USD + int(decimals.ljust(PICO_DIGITS, "0"))
    return -pico if sign else pico


def format_usd(pico_usd: int, digits: int = 2) -> str:
    """The amount in dollars with `digits` decimal places (0 to 12), rounded half to even."""
    if digits == PICO_DIGITS and pico_usd >= 0:
        # With all of them nothing is rounded.
        return f"{pico_usd // PICO_PER_USD}.{pico_usd % PICO_PER_USD:012d}"
    if not 0 <= digits <= PICO_DIGITS:
        raise ValueError(f"digits must be from 0 to {PICO_DIGITS}, not {digits}")
    unit = 10 ** (PICO_DIGITS - digits)
    units, rest = divmod(abs(pico_usd), unit)
    if 2 * rest > unit or (2 * rest == unit and units % 2):
        units += 1
    sign = "-" if pico_usd < 0 and units else ""
    whole, decimals = divmod(units, 10**digits)
    return f"{sign}{whole}.{decimals:0{digits}d}" if digits else f"{sign}{whole}"


def format_usd_per_million(pico_usd_per_token: int) -> str:
    """A price in dollars per million tokens, exactly; with cents, and with as many more places as it has."""
    whole, rest = divmod(pico_usd_per_token, PICO_PER_USD // 10**6)
    return f"{whole}.{f'{rest:06d}'.rstrip('0').ljust(2, '0')}"
