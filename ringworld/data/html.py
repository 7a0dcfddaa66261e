"""A page of HTML as the text that a reader came for: blocks on lines of their own, no menus, forms or notices."""

from __future__ import annotations

import re

SUFFIXES = (".html", ".htm", ".xhtml")

_DROPPED = (
    "script", "style", "noscript", "template", "svg", "head", "nav", "footer", "form", "button", "dialog", "iframe",
)  # fmt: skip
_ROLES = ("navigation", "search", "dialog", "alertdialog", "contentinfo", "menu", "menubar")
_CONSENT = re.compile("cookie|consent|gdpr", re.IGNORECASE)
_NOTICE_CHARACTERS = 3000  # of a notice; an article in an element named after its subject is longer
# fmt: off
_BLOCKS = (
    "address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "figure", "footer", "h1", "h2", "h3",
    "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section", "table", "tr", "ul",
)
# fmt: on


def declared_charset(data: bytes) -> str | None:
    from bs4.dammit import EncodingDetector

    return EncodingDetector.find_declared_encoding(data[:4096], is_html=True)


def html_text(html: str) -> str:
    """Time and memory are those of the parsed page, some ten times its size."""
    from bs4 import BeautifulSoup  # takes half a second, which only pages of HTML should pay

    page = BeautifulSoup(html, "lxml")
    for element in page(_DROPPED) + page(role=_ROLES):
        element.decompose()
    for element in page(id=_CONSENT) + page(class_=_CONSENT):
        if not element.decomposed and len(element.get_text()) <= _NOTICE_CHARACTERS:
            element.decompose()
    for element in page(_BLOCKS):
        element.append("\n")
    for cell in page(("td", "th")):
        cell.append("\t")
    return page.get_text()
