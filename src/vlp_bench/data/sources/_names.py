"""Files by the names under which lists have them."""

import os
from pathlib import Path


def by_name(raw_dir: Path, folder: Path) -> dict[str, str]:
    """Path, relative to `raw_dir`, of each file in a folder, by its name and by its name in lower case."""
    if not folder.is_dir():
        return {}
    inside = folder.relative_to(raw_dir)
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    return {n.lower(): str(inside / n) for n in names} | {n: str(inside / n) for n in names}


def path_of(name: str, *folders: dict[str, str]) -> str | None:
    """Path of a file, from the first folder that has it; letter case counts where it decides."""
    return next((folder[key] for folder in folders for key in (name, name.lower()) if key in folder), None)
