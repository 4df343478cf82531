"""What is known of data sets as they are published (`docs/datasets/`), and what of it lies in a directory."""

import csv
import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from vlp_bench.errors import UserError

#: Hashes are compared of files up to this size.
HASHED = 300_000_000


@dataclass(frozen=True, slots=True)
class Found:
    """One file, or one kind of file, of a version.

    `state`: `as published`, `other` (there, but not as published), `part` (fewer files) or `missing`.
    """

    pattern: str
    state: str
    said: str
    optional: bool = False


def names() -> list[str]:
    """Data sets of which something is known."""
    folder = Path(str(files("vlp_bench.datasets")))
    return sorted(f.stem for f in folder.glob("*.yaml"))


@cache
def facts(name: str) -> dict[str, Any]:
    """What is known of a data set.

    Raises:
        UserError: nothing is.
    """
    if name not in names():
        raise UserError(f"Nothing is known of data={name}. Known are: {', '.join(names())}.")
    text = files("vlp_bench.datasets").joinpath(f"{name}.yaml").read_text("utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def overlap(one: str, other: str) -> str:
    """Why two data sets share images, as far as is known; nothing if they do not."""
    if one == other:
        return "the same data set"
    for part, whole in ((one, other), (other, one)):
        if path := _within(part, whole):
            return f"{part} is a part of {whole} ({path})"
    common = set(_origins(one)) & set(_origins(other))
    return f"both are parts of {sorted(common)[0]}" if common else ""


def _origins(name: str) -> dict[str, str]:
    return dict(facts(name)["derived_from"]) if name in names() else {}


def _within(part: str, whole: str) -> str:
    for origin, share in _origins(part).items():
        if origin == whole:
            return str(share)
        if further := _within(origin, whole):
            return f"{share}; {further}"
    return ""


def versions(name: str, raw_dir: Path) -> dict[str, list[Found]]:
    """What of each published version lies in a directory, the likeliest version first.

    Tables are compared with the hashes that are known, or that PhysioNet sends along in SHA256SUMS.txt.
    """
    sums = _sums(raw_dir)
    found = {
        str(version): [_look(raw_dir, pattern, expected or {}, sums) for pattern, expected in content["files"].items()]
        for version, content in facts(name)["versions"].items()
    }

    def likeness(version: str) -> tuple[int, int]:
        states = [f.state for f in found[version]]
        return sum(s == "as published" for s in states), sum(s != "missing" for s in states)

    return {v: found[v] for v in sorted(found, key=likeness, reverse=True)}


def _sums(raw_dir: Path) -> dict[str, str]:
    """Hashes by path, as `sha256sum` writes them."""
    path = raw_dir / "SHA256SUMS.txt"
    lines = path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else []
    words = (line.split(maxsplit=1) for line in lines)
    return {w[1].lstrip("*").strip(): w[0] for w in words if len(w) == 2}


def _look(raw_dir: Path, pattern: str, expected: Mapping[str, Any], sums: Mapping[str, str]) -> Found:
    optional = bool(expected.get("optional"))
    number = sum(1 for _ in raw_dir.glob(pattern))
    if not number:
        return Found(pattern, "missing", "missing", optional)
    if "count" in expected:
        wanted = int(expected["count"])
        state = "as published" if number == wanted else "part" if number < wanted else "other"
        return Found(pattern, state, f"{number:,} files" + _beside(number, wanted), optional)
    path = next(raw_dir.glob(pattern))
    said, state = [], "as published"
    if "rows" in expected:
        rows = count_rows(path)
        said.append(f"{rows:,} rows" + _beside(rows, int(expected["rows"])))
        state = state if rows == int(expected["rows"]) else "other"
    published = expected.get("sha256") or sums.get(path.relative_to(raw_dir).as_posix())
    if published and path.stat().st_size <= HASHED:
        same = hashlib.sha256(path.read_bytes()).hexdigest() == published
        said.append("its hash is the published one" if same else "its hash is not the published one")
        state = state if same else "other"
    return Found(pattern, state if said else "there", ", ".join(said) or "there", optional)


def _beside(number: int, wanted: int) -> str:
    return "" if number == wanted else f" (published: {wanted:,})"


def count_rows(path: Path) -> int:
    """Records of a csv file (gzipped or not) below its header, entries of a JSON file, or lines of a list."""
    if path.suffix == ".json":
        return len(json.loads(path.read_bytes()))
    is_table = ".csv" in path.suffixes
    with _text(path) as lines:
        rows = sum(1 for _ in csv.reader(lines)) if is_table else sum(1 for line in lines if line.strip())
    return max(rows - is_table, 0)


def _text(path: Path) -> Any:
    how: dict[str, Any] = {"mode": "rt", "encoding": "utf-8", "errors": "replace", "newline": ""}
    return gzip.open(path, **how) if path.suffix == ".gz" else path.open(**{**how, "mode": "r"})
