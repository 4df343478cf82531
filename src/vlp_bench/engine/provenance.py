"""Everything needed to doubt a result."""

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vlp_bench import __version__
from vlp_bench.config import identity, plain
from vlp_bench.files import digest

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "timm", "transformers", "hydra-core", "numpy", "pyarrow")


def provenance(cfg: DictConfig) -> dict[str, Any]:
    """Commit, command, resolved configuration and its hash, versions, device, time of start."""
    return {
        **commit(),
        "command": " ".join(["vlp-bench", *sys.argv[1:]]),
        "config_hash": digest(identity(cfg), 8),
        "config": plain(cfg),
        "versions": versions(),
        "device": device(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit() -> dict[str, Any]:
    """Git commit of the package's checkout and whether it has changes; None for an installed package."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # a checkout of something else around an installed package is not ours
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"commit": None, "dirty": None}
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", str(here.parent)))}


def versions() -> dict[str, str]:
    """Versions of this package, Python and what results depend on."""
    found = {"vlp-bench": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def device() -> str:
    """The accelerator, or the processor."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
