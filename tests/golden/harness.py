"""Compares what the project computes with what the authors' code computed, array by array.

A vector file holds inputs (`in_*`), weights (`w__*`) and what must come out (`out*`, `after_*`, `grad_*`). An adapter
feeds the first two to the project's own functions and returns the last three by name. Arrays that the adapter does not
return, or returns under another name, fail; so does a file that no adapter and no pending entry covers. A file that
names what must come out otherwise has an adapter that says which names those are; a list is one array, `cases`.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

SHIPPED = Path(__file__).parent / "vectors"
COMPARED = ("out", "after_", "grad_")


@dataclass(frozen=True)
class Vector:
    """One file of golden vectors."""

    method: str
    stem: str
    letter: str
    arrays: Mapping[str, np.ndarray]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.method}/{self.stem}"

    @property
    def name(self) -> str:
        return f"{self.key}_{self.letter}"

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.from_numpy(np.array(self.arrays[name])).to(dtype)

    def names(self, pattern: str) -> list[str]:
        return [n for n in self.arrays if re.search(pattern, n)]

    def weights(self) -> dict[str, torch.Tensor]:
        return {n.removeprefix("w__"): self.tensor(n) for n in self.names("^w__")}

    def dtypes(self) -> dict[str, torch.dtype]:
        """The precisions in which the file was computed, by the suffix of its arrays."""
        known = {"_f32": torch.float32, "_f64": torch.float64}
        return {suffix: dtype for suffix, dtype in known.items() if self.names(f"^out_.*{suffix}$")}

    def expected(self, compared: tuple[str, ...] = COMPARED) -> dict[str, np.ndarray]:
        return {n: a for n, a in self.arrays.items() if n.startswith(compared)}


Results = Mapping[str, Any]
Tolerance = Callable[[str, np.ndarray], float | None]


def default_tolerance(name: str, expected: np.ndarray) -> float | None:
    """1e-4 of the largest entry + 1e-7 in single, 1e-9 of it + 1e-12 in double precision; all else must be equal.

    What is allowed is an absolute difference; None asks for equality.
    """
    largest = float(np.abs(np.nan_to_num(expected)).max(initial=0)) if expected.dtype.kind == "f" else 0.0
    return {np.dtype("f4"): 1e-4 * largest + 1e-7, np.dtype("f8"): 1e-9 * largest + 1e-12}.get(expected.dtype)


def float32_inside(name: str, expected: np.ndarray) -> float | None:
    """1e-6 in double precision, as the authors' code casts to float32 on the way."""
    return 1e-6 * float(np.abs(expected).max()) + 1e-12 if name.endswith("_f64") else default_tolerance(name, expected)


@dataclass(frozen=True)
class Adapter:
    """How a file is compared, and what docs/fidelity.md says of it.

    Attributes:
        component: what is compared
        equation: where the paper has it; `code` if only the authors' code does
        departure: what is fed, computed or compared otherwise than plainly
        tolerance: allowed difference; one that is not the default says in the first line of its docstring what it is
    """

    compute: Callable[[Vector], Results]
    tolerance: Tolerance
    compared: tuple[str, ...]
    component: str
    equation: str
    departure: str


ADAPTERS: dict[str, Adapter] = {}
#: stems whose code is not written yet, with the reason
PENDING: dict[str, str] = {}


@dataclass
class Tally:
    """What a run compared."""

    compared: dict[str, tuple[int, float]] = field(default_factory=dict)
    pending: dict[str, str] = field(default_factory=dict)
    #: what became of the page that the run was to write
    page: str = ""


TALLY = Tally()


def adapter(
    key: str,
    tolerance: Tolerance = default_tolerance,
    compared: tuple[str, ...] = COMPARED,
    *,
    component: str,
    equation: str = "code",
    departure: str = "",
) -> Callable[[Callable], Callable]:
    """Register a function from a vector file to its results; `compared` begin the names of what must come out."""

    def register(compute: Callable[[Vector], Results]) -> Callable[[Vector], Results]:
        assert key not in ADAPTERS, f"two adapters for {key}"
        ADAPTERS[key] = Adapter(compute, tolerance, compared, component, equation, departure)
        return compute

    return register


def import_adapters() -> None:
    for shipped in sorted(p for p in SHIPPED.iterdir() if p.is_dir()):
        import_module(shipped.name)


def folder() -> Path:
    return Path(os.environ.get("VLP_GOLDEN_DIR") or SHIPPED)


def files(where: Path | None = None) -> list[Path]:
    return sorted(p for p in (where or folder()).glob("*/*") if p.suffix in (".npz", ".json"))


def load(path: Path) -> Vector:
    if path.suffix == ".json":
        content = json.loads(path.read_text("utf-8"))
        if isinstance(content, list):
            content = {"cases": content}
        arrays = {name: np.asarray(value) for name, value in content.items() if name != "meta_json"}
        meta = content.get("meta_json", {})
    else:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files if name != "meta_json"}
            meta = stored["meta_json"].item() if "meta_json" in stored.files else "{}"
    stem, _, letter = path.stem.rpartition("_")
    return Vector(path.parent.name, stem, letter, arrays, json.loads(meta) if isinstance(meta, str) else meta)


def compare(
    vector: Vector, results: Results, tolerance: Tolerance, compared: tuple[str, ...] = COMPARED
) -> tuple[int, float]:
    """Number of arrays that agree, and their largest error relative to the largest entry of the array.

    Raises:
        AssertionError: something is missing, left over, of another shape, or differs.
    """
    expected = vector.expected(compared)
    assert expected, f"{vector.name} holds nothing to compare"
    missing = expected.keys() - results.keys()
    assert not missing, f"the adapter of {vector.key} leaves uncompared: {sorted(missing)}"
    unknown = results.keys() - vector.arrays.keys()
    assert not unknown, f"the adapter of {vector.key} returns what the file has not: {sorted(unknown)}"
    worst, faults = 0.0, []
    for name, result in results.items():
        error, fault = _difference(_array(result), vector[name], tolerance(name, vector[name]))
        worst = max(worst, error if name in expected else 0.0)
        faults += [f"{name}: {fault}"] * bool(fault)
    assert not faults, f"{vector.name}\n" + "\n".join(faults)
    return len(expected), worst


def _array(result: Any) -> np.ndarray:
    return result.detach().cpu().numpy() if isinstance(result, torch.Tensor) else np.asarray(result)


def _difference(got: np.ndarray, expected: np.ndarray, allowed: float | None) -> tuple[float, str]:
    """Relative error, and what is wrong or nothing."""
    if got.shape != expected.shape:
        return 0.0, f"shape {got.shape}, expected {expected.shape}"
    if allowed is None:
        same = np.array_equal(got, expected)
        return 0.0, "" if same else f"not equal: {got.tolist()}, expected {expected.tolist()}"[:600]
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    error = float(np.where(same, 0, np.abs(got - expected)).max(initial=0))
    largest = float(np.abs(np.nan_to_num(expected)).max(initial=0))
    fault = "" if error <= allowed else f"differs by {error:.3g}, allowed {allowed:.3g} (largest entry {largest:.3g})"
    # Entries that are all below what is allowed are the rounding of zero: no share of them means anything.
    return (error / largest if largest > allowed else 0.0), fault


def check(path: Path) -> None:
    """Run the adapter of one file and tally the result."""
    vector = load(path)
    assert vector.key in ADAPTERS, f"{path} has neither an adapter nor an entry among the pending stems"
    chosen = ADAPTERS[vector.key]
    TALLY.compared[vector.name] = compare(vector, chosen.compute(vector), chosen.tolerance, chosen.compared)
