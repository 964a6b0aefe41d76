"""What all pages have in common: head, landmarks, and the headers that keep others out of them."""

from __future__ import annotations

from proxy.pipeline.exchange import Reply
from proxy.web.pages.assets import UPLOT, asset, url_of
from proxy.web.pages.html import Child, Html, el, join

__all__ = ["PAGE_HEADERS", "asset_reply", "page", "section"]

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_GUARDS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
PAGE_HEADERS = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", _POLICY),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Referrer-Policy", "same-origin"),
    ("X-Frame-Options", "DENY"),
    *_GUARDS,
)
_KEPT = "public, max-age=86400, immutable"
"""An address of a file names its content."""


def page(title: str, base: str, header: Child, main: Child, *, live: bool) -> bytes:
    """A whole page; its files are below `base`. A `live` one looks again by itself where there are scripts."""
    links = [el("link", rel="stylesheet", href=url_of(base, name)) for name in (f"{UPLOT}.css", "pages.css")]
    names = (f"{UPLOT}.js", "pages.js") if live else ()
    scripts = [el("script", src=url_of(base, name), defer=True) for name in names]
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("title", title),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="robots", content="noindex"),
        el("link", rel="icon", href="data:,"),
        *links,
        *scripts,
    )
    body = el(
        "body",
        el("a", "Skip to content", class_="skip", href="#main"),
        el("header", header),
        el("main", main, id="main", tabindex="-1"),
    )
    return join([Html("<!doctype html>\n"), el("html", head, body, lang="en")]).encode()


def section(name: str, title: str, *children: Child) -> Html:
    """A part of a page under a heading of its own; with a name by which a newer one takes its place."""
    heading = f"{name}-title"
    held = el("div", *children, id=name, data_live=True)
    return el("section", el("h2", title, id=heading), held, aria_labelledby=heading)


def asset_reply(name: str) -> Reply:
    """One of the files that pages load."""
    found = asset(name)
    headers = (("Content-Type", found.content_type), ("Cache-Control", _KEPT), *_GUARDS)
    return Reply(200, headers, found.content)
