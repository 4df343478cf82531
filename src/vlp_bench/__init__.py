"""vlp-bench: pre-train and compare medical vision-language methods on chest X-rays and reports.

`vlp_bench.load(path)` gives the encoders of a finished pre-training run with their preprocessing.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; the package itself must not
    if name == "load":
        from vlp_bench.encoders.bundle import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
