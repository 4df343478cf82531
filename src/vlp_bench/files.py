"""Files that are either whole or not there."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vlp_bench.errors import UserError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary neighbour of `path` that takes its place when the block ends well.

    Raises:
        UserError: the place cannot be written or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        temporary.unlink()
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}. Nothing was left half-written.") from error
    finally:
        if temporary is not None and temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        elif temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Let one process at a time into the block; a killed one lets go. The file `lock` is made and stays.

    Raises:
        UserError: the place cannot be written.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as error:
        raise UserError(f"Cannot write {lock.parent}: {error.strerror or error}.") from error
    try:
        # some network file systems know no locks: there, only the renames protect
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


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
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not readable as {what}: {error}.") from error


def digest(value: Any, length: int = 12) -> str:
    """Hex digits that change with any JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:length]


Progress = Callable[[int, int], None]
