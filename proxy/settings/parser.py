"""Whether HTTP is read by aiohttp's compiled parser; its other one, in Python, is not as strict."""

from __future__ import annotations

__all__ = ["INSTALL_PARSER", "has_compiled_parser"]

INSTALL_PARSER = (
    "unset AIOHTTP_NO_EXTENSIONS, and install a wheel of aiohttp for this platform: pip install --only-binary aiohttp "
    "--force-reinstall aiohttp"
)


def has_compiled_parser() -> bool:
    """Whether the parser that aiohttp serves with here is the compiled one."""
    from aiohttp import http_parser  # noqa: PLC0415 - costly, and a server needs it anyway

    return http_parser.HttpRequestParser is not http_parser.HttpRequestParserPy
