"""Files that are either whole or not there."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlp_bench.errors import UserError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary neighbour of `path` that takes its place when the block ends well.

    Raises:
        UserError: the place cannot be written or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    temporary.unlink()
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}. Nothing was left half-written.") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True) if not temporary.is_dir() else None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=str) + "\n", "utf-8")


def read_json(path: Path, what: str) -> Any:
    """Read JSON.

    Raises:
        UserError: the file is missing or no JSON; `what` says what it should be.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"No {what} at {path}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not readable as {what}: {error}.") from error


def digest(value: Any, length: int = 12) -> str:
    """Hex digits that change with any JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:length]


Progress = Callable[[int, int], None]
