"""How numbers, metrics and identifiers are written for people."""

import math
import re
from collections.abc import Sequence

from vlp_bench.vocabulary import in_words
from vlp_bench.vocabulary import rises as rises


def number(value: float | None, metric: str) -> str:
    """Write a value with the decimals that its metric deserves."""
    if value is None:
        return "–"
    text = f"{value:.{1 if 'rank' in metric else 3}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "\u2212")


def signed(value: float | None, metric: str) -> str:
    """Write a difference with its sign."""
    text = number(value, metric)
    return text if value is None or text.startswith("\u2212") or float(text) == 0 else f"+{text}"


def p_value(p: float) -> str:
    """Write a p-value; a dash where there is none."""
    return "–" if math.isnan(p) else "<\u202f0.001" if p < 0.001 else f"{p:.3f}"


def ranks(rank: tuple[int, int]) -> str:
    """Write an interval of ranks."""
    return str(rank[0]) if rank[0] == rank[1] else f"{rank[0]}–{rank[1]}"


def fraction_name(fraction: float | None) -> str:
    """Write a label fraction as a percentage."""
    return "no labels" if fraction is None or fraction == 0 else f"{100 * fraction:g}\u202f%"


def metric_name(metric: str) -> str:
    """Write a metric in words."""
    return " ".join(map(in_words, metric.split("/")))


def words(name: str) -> str:
    """Write an identifier in words."""
    return name.upper() if name in ("vqa", "jpeg") else name.replace("_", " ").replace("-", " ").strip()


def sentence(text: str) -> str:
    """Begin with a capital, leaving the rest alone, and also a name such as mAP."""
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]


def short(fingerprint: str) -> str:
    """Shorten a long hexadecimal fingerprint, leaving other text alone."""
    match = re.fullmatch(r"(?:\w+:)?([0-9a-f]{10})[0-9a-f]{6,}", fingerprint)
    return match[1] if match else fingerprint


def counted(n: int, noun: str) -> str:
    """Write a number with its noun in the singular or plural."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def listed(parts: Sequence[str]) -> str:
    """Join parts as a sentence does."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def duration(seconds: str | float | None) -> str:
    """Write a number of seconds as people say it; empty when it is none."""
    try:
        whole = round(float(seconds or ""))
    except (ValueError, OverflowError):
        return ""
    if whole < 60:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
