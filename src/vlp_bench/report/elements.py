"""Pieces that several sections of the page are made of: charts in frames, tables with their files, folded text."""

import base64
import json
import re
from collections.abc import Iterable
from typing import Any

from vlp_bench.report.markup import Markup, render, tag
from vlp_bench.report.tables import Table
from vlp_bench.report.wording import sentence

Colours = dict[tuple[str, str], int]  # of rows, by name and note


def figure(chart: Markup, caption: str, legend: Iterable[tuple[str, Markup]] = ()) -> Markup:
    """Frame a chart with its caption above and its legend below."""
    entries = [tag("li", sample, tag("span", name)) for name, sample in legend]
    return tag(
        "figure", tag("figcaption", sentence(caption)), chart, tag("ul", entries, class_="legend") if entries else None
    )


def folded_table(table: Table | None, summary: str, opened: bool = False) -> Markup | None:
    """Write a secondary table, folded away unless `opened`; None where there is nothing to show."""
    if table is None or not table.rows:
        return None
    return folded(summary, plain_table(table), opened=opened)


def folded(summary: str, *content: Any, opened: bool = False) -> Markup:
    """Fold something away behind its name."""
    return tag("details", tag("summary", summary), *content, class_="more", open=opened)


def plain_table(table: Table) -> Markup:
    """Write a table with its title, notes and files; its values lead to where they come from."""
    heads = [tag("th", c, scope="col", class_="number" if i else None) for i, c in enumerate(table.columns)]
    rows = []
    for k, (first, *rest) in enumerate(table.rows):
        links = table.links[k] if table.links else ("",) * len(rest)
        cells = [tag("td", _value(text, link), class_="number") for text, link in zip(rest, links, strict=True)]
        rows.append(tag("tr", tag("th", first, scope="row"), cells))
    content = tag("table", tag("thead", tag("tr", heads)), tag("tbody", rows), class_="plain")
    return render(
        tag("p", table.title, class_="meta"),
        scrolling(content, table.title),
        [tag("p", note, class_="note") for note in table.notes],
        downloads(table),
    )


def _value(text: str, link: str) -> Any:
    """Write a cell; the number in it leads to its provenance, what stands behind the number does not."""
    bold, shown = text.startswith("**"), text.replace("**", "")
    value = re.split(r"[\s,]", shown, maxsplit=1)[0]
    rest = shown.removeprefix(value)
    # an interval is not parted at the end of a line
    pieces = [tag("span", p, class_="whole") if p.startswith("(") else p for p in re.split(r"(\([^)]*\))", rest)]
    if not link or shown.startswith("–"):
        return render(value, pieces)
    told = tag("a", tag("strong", value) if bold else value, href=f"#{link}", title="Provenance")
    return render(told, pieces)


def scrolling(table: Markup, name: str) -> Markup:
    """Let a wide table scroll by itself, also by keyboard."""
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=name)


def downloads(table: Table) -> Markup:
    """Offer a table as files that travel inside the page."""
    links = [
        _download(table.csv(), "text/csv", "CSV", f"{table.slug}.csv"),
        _download(table.latex(), "application/x-tex", "LaTeX", f"{table.slug}.tex"),
        _download(table.markdown(), "text/markdown", "Markdown", f"{table.slug}.md"),
    ]
    return tag("p", "This table as ", links[0], ", ", links[1], " or ", links[2], ".", class_="files")


def _download(text: str, media: str, name: str, file: str) -> Markup:
    data = base64.b64encode(text.encode()).decode()
    return tag("a", name, href=f"data:{media};charset=utf-8;base64,{data}", download=file)


def as_json(value: Any) -> str:
    """Write a recorded value to be read by people."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=str)
