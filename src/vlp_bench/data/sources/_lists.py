"""Published lists in the forms in which people pass them on: text, csv, JSON and JSON lines."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vlp_bench.data.divisions import NAMES, parts
from vlp_bench.data.sources._tables import table
from vlp_bench.data.study import SPLITS, Division
from vlp_bench.errors import UserError

FORMS = (".txt", ".csv", ".gz", ".zip", ".json", ".jsonl")
NAMELESS = re.compile(r"(Unnamed: \d+|)$")


def read(path: Path, known: Mapping[str, str | Sequence[str]]) -> Division:
    """The division `lists`.

    Args:
        path: a folder with a list of each part (`train`, `valid`, `test`, or `train_list`...; txt, csv, json or jsonl),
            or one file: JSON with the parts as its keys, or a list of whatever form, of which everything is test.
        known: an image id, or several, by every name that a list may use. A name is looked up as it stands, then
            without its suffix, then without its leading folders.

    A row names images by the first of its cells that is known; a column without a name (pandas' numbers) is not read.

    Raises:
        UserError: there is no list, one that cannot be read, or none that names an image that is here.
    """
    listed: dict[str, list[str]] = {part: [] for part in SPLITS}
    for part, row in _rows(path):
        listed[part] += next((list(ids) for cell in row if (ids := _find(cell, known))), [])
    found = parts(*listed.values())
    if not found:
        raise UserError(f"lists={path} names no image that is here.")
    return Division("lists", found, f"lists in {path.name}")


def _rows(path: Path) -> Iterator[tuple[str, Iterable[str]]]:
    """Part and cells of each row."""
    if path.is_dir():
        files = {p: NAMES[stem] for p in sorted(path.iterdir()) if (stem := _stem(p)) in NAMES and p.suffix in FORMS}
        if not files:
            raise UserError(f"lists={path} holds no lists (train, valid and test, as txt, csv, json or jsonl).")
        for file, part in files.items():
            yield from ((part, row) for row in _cells(file))
    elif not path.is_file():
        raise UserError(f"lists={path}: no such file or folder.")
    elif (
        path.suffix == ".json" and isinstance(content := _json(path), dict) and set(map(str.lower, content)) <= {*NAMES}
    ):
        for name, entries in content.items():
            yield from ((NAMES[name.lower()], _strings(entry)) for entry in entries)
    else:
        yield from (("test", row) for row in _cells(path))


def _stem(path: Path) -> str:
    return path.name.split(".")[0].lower().removesuffix("_list")


def _cells(path: Path) -> Iterator[Iterable[str]]:
    if path.suffix in (".json", ".jsonl"):
        content = _json(path)
        yield from map(_strings, content.values() if isinstance(content, dict) else content)
    elif path.suffix == ".txt":
        lines = path.read_text("utf-8-sig", errors="replace").splitlines()
        # a path may have blanks in it, but then nothing else stands in its line
        yield from ([line.strip(), *line.replace(",", " ").split()] for line in lines)
    else:
        rows = table(path, [], "It is given as data.reader.lists.")
        first = list(rows.columns)
        named = [c for c in rows if not NAMELESS.match(c)]
        # a list without a header has lost its first row to it
        yield from ([first] if len(first) == len(named) else [])
        yield from rows[named].itertuples(index=False, name=None)


def _json(path: Path) -> Any:
    try:
        text = path.read_text("utf-8-sig")
        return (
            [json.loads(line) for line in text.splitlines() if line.strip()]
            if path.suffix == ".jsonl"
            else json.loads(text)
        )
    except ValueError as error:
        raise UserError(f"lists={path} cannot be read ({error}).") from error


def _strings(entry: Any) -> Iterator[str]:
    """Every text in an entry, in its order."""
    if isinstance(entry, Mapping):
        yield from (text for value in entry.values() for text in _strings(value))
    elif isinstance(entry, list):
        yield from (text for value in entry for text in _strings(value))
    elif isinstance(entry, str | int):
        yield str(entry)


def _find(cell: str, known: Mapping[str, str | Sequence[str]]) -> Sequence[str]:
    names = PurePosixPath(cell.strip().strip('"').replace("\\", "/"))
    for start in range(len(names.parts)):
        name = "/".join(names.parts[start:])
        if ids := known.get(name) or known.get(name.rpartition(".")[0]):
            return [ids] if isinstance(ids, str) else ids
    return ()
