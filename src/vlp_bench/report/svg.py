"""Small charts as inline SVG: interval bars and line charts. Colours and fonts come from the page's style sheet.

Charts are drawn for a width of about 420 units so that their text stays readable on a phone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlp_bench.report.markup import Markup, tag

WIDTH = 420.0
COLOURS = 8  # series colours in the style sheet: .c0 to .c7
DASHED = "4 3"
DASHES = (None, "7 3", "2 3", "9 3 2 3")
NAME_LENGTH = 27


@dataclass(frozen=True)
class Bar:
    """One line of an interval chart; `low` and `high` may be None."""

    name: str
    text: str
    value: float
    low: float | None
    high: float | None
    colour: int


@dataclass(frozen=True)
class Block:
    """Bars under a common heading, with the trivial value as a dashed line."""

    heading: str
    bars: tuple[Bar, ...]
    reference: float | None


@dataclass(frozen=True)
class Series:
    """One line of a line chart: points (x, y), optionally with a band (low, high) per point."""

    name: str
    points: tuple[tuple[float, float], ...]
    band: tuple[tuple[float, float], ...] = ()
    colour: int = 0
    dashed: bool = False
    marked: bool = True
    marks: int | None = None  # how many of the points are marked; None marks them all


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Choose about `count` round numbers that cover low..high."""
    if not high > low:
        margin = abs(low) * 0.1 or 0.5
        low, high = low - margin, high + margin
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    ticks = [round(first * step, 12)]
    while ticks[-1] < high - step * 1e-9:
        first += 1
        ticks.append(round(first * step, 12))
    return ticks


def tick_text(value: float) -> str:
    """Write a tick without needless digits."""
    text = f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"
    return text.replace("-", "\u2212")


def interval_chart(blocks: Sequence[Block], title: str) -> Markup:
    """Draw values with their intervals as dots on bars, all blocks on one axis.

    Args:
        blocks: groups of bars from top to bottom.
        title: description for people who do not see the chart.
    """
    left, right, line, gap = 158.0, WIDTH - 52, 21.0, 30.0
    numbers = [v for b in blocks for bar in b.bars for v in (bar.value, bar.low, bar.high) if v is not None]
    numbers += [b.reference for b in blocks if b.reference is not None]
    ticks = nice_ticks(min(numbers), max(numbers), 5)

    def x(value: float) -> float:
        return left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (right - left)

    shapes, y = [], 0.0
    for block in blocks:
        shapes.append(tag("text", block.heading, x=0.0, y=y + 19, class_="head"))
        top = y + gap
        bottom = top + line * len(block.bars)
        if block.reference is not None:
            at = x(block.reference)
            shapes.append(tag("line", x1=at, x2=at, y1=top - 4, y2=bottom + 2, class_="trivial"))
        for i, bar in enumerate(block.bars):
            shapes += _bar(bar, top + line * (i + 0.5), x, right)
        y = bottom + 6
    grid = [tag("line", x1=x(t), x2=x(t), y1=gap - 6, y2=y, class_="grid") for t in ticks]
    labels = [tag("text", tick_text(t), x=x(t), y=y + 15, text_anchor="middle", class_="tick") for t in ticks]
    return _svg(title, y + 22, [*grid, *labels, *shapes])


def _bar(bar: Bar, y: float, x: Callable[[float], float], right: float) -> list[Markup]:
    """Draw the name, whisker, dot and value of one bar at height y."""
    low, high = (bar.value if v is None else v for v in (bar.low, bar.high))
    colour = f"c{bar.colour % COLOURS}"
    return [
        tag("text", shortened(bar.name), tag("title", bar.name), x=0.0, y=y + 4, class_="name"),
        tag("line", x1=x(low), x2=x(high), y1=y, y2=y, class_=f"whisker {colour}"),
        tag("circle", cx=x(bar.value), cy=y, r=3.8, class_=f"dot {colour}"),
        tag("text", bar.text, x=WIDTH, y=y + 4, text_anchor="end", class_="value"),
    ]


def line_chart(
    series: Sequence[Series],
    title: str,
    *,
    x_ticks: Sequence[tuple[float, str]] | None = None,
    logarithmic: bool = False,
    y_range: tuple[float, float] | None = None,
    reference: Sequence[tuple[float, float]] = (),
    height: float = 250.0,
    x_name: str = "",
    width: float = WIDTH,
) -> Markup:
    """Draw lines with bands and markers.

    Args:
        series: the lines; every one has at least one point.
        title: description for people who do not see the chart.
        x_ticks: positions and texts on the x axis; chosen when not given.
        logarithmic: space x by its logarithm (all x positive).
        y_range: what the y axis shows at least; chosen when not given.
        reference: points of a dashed line for the trivial answer.
        height: height of the plot with its axis.
        x_name: what x counts.
        width: width of the drawing.
    """
    scale = math.log10 if logarithmic else float
    xs = [scale(px) for s in series for px, _ in s.points]
    ys = [py for s in series for _, py in s.points] + [v for s in series for pair in s.band for v in pair]
    ys += [v for _, v in reference] + list(y_range or ())
    y_ticks = nice_ticks(min(ys), max(ys), 5)
    if x_ticks is None and logarithmic:
        x_ticks = [(t, tick_text(t)) for t in sorted({px for s in series for px, _ in s.points})]
    elif x_ticks is None:
        x_ticks = [(t, tick_text(t)) for t in nice_ticks(min(xs), max(xs), 5) if min(xs) <= t <= max(xs)]
    left, right, top, bottom = 44.0, width - 14, 10.0, height - (38.0 if x_name else 24.0)
    xs += [scale(t) for t, _ in x_ticks]
    first, last = min(xs), max(xs)

    def x(value: float) -> float:
        return (
            (left + right) / 2
            if last == first
            else left + 8 + (scale(value) - first) / (last - first) * (right - left - 16)
        )

    def y(value: float) -> float:
        return bottom - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - top)

    shapes = [tag("line", x1=left, x2=right, y1=y(t), y2=y(t), class_="grid") for t in y_ticks]
    shapes += [tag("text", tick_text(t), x=left - 7, y=y(t) + 4, text_anchor="end", class_="tick") for t in y_ticks]
    shapes += [tag("text", text, x=x(t), y=bottom + 17, text_anchor="middle", class_="tick") for t, text in x_ticks]
    if x_name:
        shapes.append(tag("text", x_name, x=(left + right) / 2, y=height - 4, text_anchor="middle", class_="tick"))
    if reference:
        shapes.append(tag("polyline", points=_path([(x(a), y(b)) for a, b in reference]), class_="trivial"))
    shapes += [_band(s, x, y) for s in series if len(s.band) == len(s.points) > 1]
    for s in series:
        shapes += _line(s, [(x(a), y(b)) for a, b in s.points])
    return _svg(title, height, shapes, width)


def _band(s: Series, x: Callable[[float], float], y: Callable[[float], float]) -> Markup:
    """Draw the intervals of one series as an area, up along its upper edge and back along its lower."""
    pairs = list(zip(s.points, s.band, strict=True))
    edge = [(x(p[0]), y(b[1])) for p, b in pairs] + [(x(p[0]), y(b[0])) for p, b in reversed(pairs)]
    return tag("polygon", points=_path(edge), class_=f"band c{s.colour % COLOURS}")


def _line(s: Series, points: list[tuple[float, float]]) -> list[Markup]:
    """Draw one series: its line, and its markers where asked for."""
    colour = f"c{s.colour % COLOURS}"
    dash = DASHED if s.dashed else dash_of(s.colour) if s.marked else None
    drawn = [tag("polyline", points=_path(points), class_=f"line {colour}", stroke_dasharray=dash)]
    if s.marked:
        # each series at other places: markers of lines that run together stay apart
        step = max(1, len(points) // s.marks) if s.marks else 1
        drawn += [marker(px, py, s.colour) for px, py in points[(s.colour * step // 5) % step :: step]]
    return drawn


def dash_of(colour: int) -> str | None:
    """Give colours beyond the first few a dash as well, so that no series is known by its colour alone."""
    return DASHES[(colour // len(MARKERS)) % len(DASHES)]


MARKERS: tuple[Callable[[float, float], str], ...] = (
    lambda x, y: f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    lambda x, y: f"M{x - 3.7:.1f} {y - 3.7:.1f}h7.4v7.4h-7.4z",
    lambda x, y: f"M{x:.1f} {y - 4.8:.1f}l4.6 8.2h-9.2z",
    lambda x, y: f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z",
)


def marker(x: float, y: float, colour: int) -> Markup:
    """Draw the marker that goes with a colour."""
    return tag("path", d=MARKERS[colour % len(MARKERS)](x, y), class_=f"dot c{colour % COLOURS}")


def swatch(colour: int | None, marked: bool = True, dashed: bool = False) -> Markup:
    """Draw the legend sample of a series, or of the trivial line for None."""
    if colour is None:
        shapes = [tag("line", x1=1.0, x2=27.0, y1=6.0, y2=6.0, class_="trivial")]
    else:
        kind = f"line c{colour % COLOURS}"
        shapes = [
            tag(
                "line",
                x1=1.0,
                x2=27.0,
                y1=6.0,
                y2=6.0,
                class_=kind,
                stroke_dasharray=DASHED if dashed else dash_of(colour) if marked else None,
            )
        ]
        shapes += [marker(14.0, 6.0, colour)] if marked else []
    return tag("svg", *shapes, class_="swatch", viewBox="0 0 28 12", width=28, height=12, aria_hidden="true")


def shortened(name: str) -> str:
    """Cut a long name in the middle: beginnings and ends tell names apart."""
    if len(name) <= NAME_LENGTH:
        return name
    half = (NAME_LENGTH - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def thinned(points: Sequence[tuple[float, float]], most: int = 160) -> tuple[tuple[float, float], ...]:
    """Average runs of neighbouring points so that long curves stay light on the page."""
    size = math.ceil(len(points) / most)
    chunks = [points[i : i + size] for i in range(0, len(points), size)]
    return tuple((sum(p[0] for p in c) / len(c), sum(p[1] for p in c) / len(c)) for c in chunks)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{px:.1f},{py:.1f}" for px, py in points)


def _svg(title: str, height: float, shapes: Sequence[Markup], width: float = WIDTH) -> Markup:
    return tag("svg", tag("title", title), *shapes, viewBox=f"0 0 {width:g} {height:g}", role="img", class_="chart")
