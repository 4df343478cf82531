"""Colours of the page: enough contrast for all that is read (WCAG 2, AA), by day, by night and on paper."""

import re
from importlib.resources import files

import pytest

STYLE = files("vlp_bench.report").joinpath("assets/style.css").read_text("utf-8")
PALETTES = [
    dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", block)) for block in re.findall(r":root \{([^}]*)\}", STYLE)
]
TEXT = ("ink", "soft", "link", "warn", "tie")
SERIES = [f"c{i}" for i in range(8)]


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", PALETTES, ids=["day", "night", "paper"])
def test_text_and_lines_stand_out(palette):
    palette = PALETTES[0] | palette
    for ground in ("paper", "wash"):
        for name in TEXT:
            assert contrast(palette[name], palette[ground]) >= 4.5, (name, ground)
    for name in SERIES:
        assert contrast(palette[name], palette["paper"]) >= 3, name


def test_black_on_white_is_known():
    assert contrast("#000000", "#fff") == pytest.approx(21)
