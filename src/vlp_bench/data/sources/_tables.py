"""What several readers need: a csv with every cell as it is written, and files by pattern and by stem."""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vlp_bench.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")


def table(path: Path, columns: list[str], origin: str) -> pd.DataFrame:
    """A csv or csv.gz, every cell a str, nothing where it is empty.

    Args:
        path: of the file; comma, semicolon or tab between the cells.
        columns: that must be there.
        origin: where the file comes from, for the message.

    Raises:
        UserError: no such file, one that cannot be read, or one without a column.
    """
    if not path.is_file():
        raise UserError(f"No {path}. {origin}")
    options = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
    try:
        found = pd.read_csv(path, **options)
        # as another program writes it
        if len(found.columns) == 1 and (mark := next((m for m in ";\t" if m in found.columns[0]), "")):
            found = pd.read_csv(path, sep=mark, **options)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} cannot be read as csv in UTF-8 ({error}). {origin}") from error
    if not set(columns) <= set(found.columns):
        found.columns = found.columns.str.strip()
    if missing := [c for c in columns if c not in found.columns]:
        raise UserError(f"{path} lacks the column {missing[0]} (it has {', '.join(found.columns[:8])}). {origin}")
    return found


def find(raw_dir: Path, *patterns: str) -> Path | None:
    """The first file or folder that fits one of the glob patterns; of several, the first by name."""
    return next((path for pattern in patterns for path in sorted(raw_dir.glob(pattern))), None)


def find_below(raw_dir: Path, *names: str, ends: Sequence[str] = ("",)) -> Path | None:
    """The first file or folder of one of the names, with one of the ends, here or up to two folders below."""
    return find(raw_dir, *(f"{deep}{name}{end}" for name in names for deep in ("", "*/", "*/*/") for end in ends))


def images(raw_dir: Path, *folders: str) -> dict[str, str]:
    """Path, relative to `raw_dir`, of every image file under the folders, by its stem; the first of a stem counts."""
    found: dict[str, str] = {}
    for folder in folders or (".",):
        for place, inner, names in os.walk(raw_dir / folder):
            inner.sort()
            for name in sorted(names):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in SUFFIXES:
                    found.setdefault(stem, os.path.relpath(os.path.join(place, name), raw_dir))
    return found
