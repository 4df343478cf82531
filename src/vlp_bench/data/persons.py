"""Who an image is of, as far as its source said: sex and age, which every data set writes in its own way."""

import json
import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

OLDEST = 120
#: Of a year.
UNITS = {"": 1.0, "y": 1.0, "m": 1 / 12, "w": 1 / 52, "d": 1 / 365}


def sex_of(text: object) -> str:
    """`F` or `M`; empty where neither is meant."""
    first = str(text or "").strip()[:1].upper()
    return first if first in ("F", "M") else ""


def age_of(value: object) -> float:
    """Age in years from a number, `058Y`, `16 month` or the like; nan where there is none or nobody is that old."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]?)[a-z]*\.?\s*", str("" if value is None else value), re.I)
    if not found or found[2].lower() not in UNITS:
        return float("nan")
    years = float(found[1]) * UNITS[found[2].lower()]
    return years if years <= OLDEST else float("nan")


def persons(extras: Iterable[str]) -> pd.DataFrame:
    """Columns `sex` and `age` (years, whole ones) of images.

    Args:
        extras: what the reader kept of each beside its pixels, JSON or empty; keys `sex` and `age` are read.
    """
    said = [_object(text) for text in extras]
    sexes = [sex_of(s.get("sex")) for s in said]
    ages = np.floor([age_of(s.get("age")) for s in said])
    return pd.DataFrame({"sex": pd.Series(sexes, dtype=object), "age": ages})


def _object(text: str) -> dict:
    try:
        found = json.loads(text) if text else {}
    except ValueError:  # a user's own column
        return {}
    return found if isinstance(found, dict) else {}
