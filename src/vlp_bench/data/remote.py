"""Prepared data in object storage: the index is fetched at once, each shard when one of its images is first needed.

`data.dir=s3://bucket/prepared` (or gs://, hf://, https://, ...: whatever fsspec reads) works on machines that share no
disk. What was fetched stays in `paths.cache`, so that it is fetched once a machine.
"""

import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec

from vlp_bench.errors import UserError
from vlp_bench.files import alone, digest, read_json, whole

#: What is needed before the first image.
INDEX = ("manifest.json", "images.arrow", "studies.arrow")
#: Shards that are fetched at the same time.
CONNECTIONS = 16


def is_remote(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path


def mirror(url: str, cache: Path) -> Path:
    """The local folder that stands for the prepared directory at `url`: its index now, its shards later.

    A directory that was prepared anew at the same place gets another folder.

    Raises:
        UserError: it cannot be reached, there is no prepared directory, or a package for such URLs is not installed.
    """
    url = url.rstrip("/")
    place = cache / "remote" / digest(url)
    fetch(url, place / "latest", ["manifest.json"], anew=True)
    manifest: dict[str, Any] = read_json(place / "latest" / "manifest.json", "a manifest")
    folder = place / str(manifest.get("fingerprint"))
    fetch(url, folder, INDEX)
    return folder


def fetch(url: str, folder: Path, names: Iterable[str], anew: bool = False) -> None:
    """Copy files of `url` into `folder`, each whole or not at all, those that are there already only if `anew`.

    Raises:
        UserError: a file cannot be fetched or written.
    """
    missing = [name for name in names if anew or not (folder / name).is_file()]
    if len(missing) == 1:
        _fetch(url, folder, missing[0], anew)
    elif missing:
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(lambda name: _fetch(url, folder, name, anew), missing))


def _fetch(url: str, folder: Path, name: str, anew: bool) -> None:
    target = folder / name
    with alone(target.parent / f".{target.name}.lock"):
        # another worker may have fetched it while this one waited
        if target.is_file() and not anew:
            return
        with whole(target) as temporary:
            try:
                with fsspec.open(f"{url}/{name}", "rb") as source, temporary.open("wb") as out:
                    shutil.copyfileobj(source, out, 2**20)
            except FileNotFoundError as error:
                raise UserError(f"There is no {name} at {url}: is it a directory that vlp-bench prepared?") from error
            except ImportError as error:
                raise UserError(f"{url} needs another package ({error}).") from error
            except Exception as error:
                raise UserError(f"{url}/{name} cannot be fetched ({type(error).__name__}: {error}).") from error
