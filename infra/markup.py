"""HTML that cannot be injected into: text is escaped unless it is `Html`, and only `element` makes `Html`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def text(value: object) -> Html:
    """`value` escaped for both element content and attribute values; `Html` is left as it is."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(parts: Iterable[object], separator: str = "") -> Html:
    return Html(separator.join(text(part) for part in parts))


def element(name: str, attributes: Mapping[str, object] | None = None, *children: object) -> Html:
    """`<name key="value">children</name>`, all escaped. An attribute or child that is None is left out."""
    given = "".join(f' {key}="{text(value)}"' for key, value in (attributes or {}).items() if value is not None)
    content = join(child for child in children if child is not None)
    return Html(f"<{name}{given}/>") if name in _EMPTY and not content else Html(f"<{name}{given}>{content}</{name}>")


_EMPTY = frozenset({"br", "hr", "img", "meta", "line", "path", "rect", "circle", "polyline", "polygon"})
