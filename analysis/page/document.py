"""An html document with its style and its script inside: no network, nothing that was not ours can run."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One part of the page, with an entry in its table of contents."""

    key: str
    title: str
    body: str
    """html."""


def document(
    *,
    title: str,
    head: str,
    sections: Sequence[Section],
    refresh_seconds: int | None = None,
) -> str:
    """Return the page: `head` (html) above a table of contents and the sections that have a body.

    Args:
        title: text of the browser's tab.
        refresh_seconds: let the browser load the page again and again, for a sweep that still runs.
    """
    style, script = read_asset("page.css"), read_asset("page.js")
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest_of(script)}'"
    )
    shown = [section for section in sections if section.body]
    contents = "".join(f'<a href="#{s.key}">{escape(s.title)}</a>' for s in shown)
    refresh = (
        ""
        if refresh_seconds is None
        else f'<meta http-equiv="refresh" content="{refresh_seconds}">\n'
    )
    bodies = "\n".join(
        f'<section id="{s.key}">\n<h2>{escape(s.title)}</h2>\n{s.body}\n</section>' for s in shown
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{refresh}<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header>\n{head}\n<nav>{contents}</nav>\n</header>\n{bodies}\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def digest_of(text: str) -> str:
    """Return what a content security policy calls an element of this text by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def read_asset(name: str) -> str:
    """Return a style or a script that lies beside this module."""
    return files("analysis.page").joinpath(name).read_text(encoding="utf-8")
