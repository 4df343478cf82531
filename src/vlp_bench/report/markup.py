"""HTML and SVG as nested calls. Whatever is not markup already is escaped, so no text can slip through as markup."""

from collections.abc import Iterable
from html import escape
from typing import Any

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Markup(str):
    """Text that is markup already and must not be escaped again."""

    __slots__ = ()


def render(*children: Any) -> Markup:
    """Join children into markup: markup as it is, sequences item by item, None as nothing, all else escaped."""
    parts = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(str(child))
        elif child is None:
            continue
        elif isinstance(child, Iterable) and not isinstance(child, str):
            parts.append(str(render(*child)))
        else:
            parts.append(escape(str(child), quote=True))
    return Markup("".join(parts))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """Write an element.

    Attribute names lose a trailing underscore and turn inner ones into hyphens (`class_`, `aria_label`); None and
    False leave the attribute out, True writes it bare. Floats keep two decimals, enough for coordinates.
    """
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        label = key if key in ("viewBox", "preserveAspectRatio") else key.rstrip("_").replace("_", "-")
        if value is True:
            written.append(f" {label}")
            continue
        text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        written.append(f' {label}="{escape(text, quote=True)}"')
    opening = f"<{name}{''.join(written)}>"
    return Markup(opening if name in VOID else f"{opening}{render(*children)}</{name}>")
