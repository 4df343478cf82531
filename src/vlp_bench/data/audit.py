"""What can make prepared data lie: patients in two splits, copies of an image, reports that many studies share."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd

from vlp_bench.data.reports import clean_alphanumeric, select_text
from vlp_bench.data.store import PreparedData

#: Bits of a perceptual hash in which two copies may differ. One of `BANDS` parts is then equal for certain.
APART = 7
BANDS = 8
SIDE = 16
#: Correlation of two copies' small pictures.
ALIKE = 0.99
#: Rows that are hashed at a time.
CHUNK = 1024
#: Grey levels (of 255) that count as a difference between neighbours: noise of the JPEG in black margins does not.
STEP = 2


@dataclass(frozen=True, slots=True)
class Prints:
    """Perceptual hashes of images, uint32 (N, BANDS), and small pictures, float32 (N, SIDE * SIDE), of norm 1."""

    bits: np.ndarray
    small: np.ndarray


def prints(pixels: np.ndarray) -> Prints:
    """Hashes of stored images, uint8 (N, S, S): which of two neighbours on a grid of 16 x 17 is brighter.

    What only scales or re-encodes an image changes few of the 256 bits.
    """
    reduced = np.stack([cv2.resize(p, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA) for p in pixels]).astype(int)
    brighter = (np.diff(reduced, axis=2) > STEP).reshape(len(pixels), -1)
    # each band looks at the whole picture: the bits of one place say little about others
    bands = brighter[:, np.random.default_rng(0).permutation(SIDE * SIDE)].reshape(len(pixels), BANDS, -1)
    bits = np.packbits(bands, axis=2).view(np.uint32)[..., 0]
    small = reduced[:, :, :SIDE].reshape(len(pixels), -1).astype(np.float32)
    small -= small.mean(1, keepdims=True)
    return Prints(bits, small / np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-6))


def prints_of(store: PreparedData) -> Prints:
    """Hashes of all images of a prepared directory."""
    rows = np.arange(len(store.images))
    parts = [prints(store.pixels(rows[start : start + CHUNK])) for start in range(0, len(rows), CHUNK)]
    return Prints(np.concatenate([p.bits for p in parts]), np.concatenate([p.small for p in parts]))


def copies(one: Prints, other: Prints | None = None) -> np.ndarray:
    """Pairs of images that are copies of each other, int64 (pairs, 2).

    Args:
        one: hashes of N images.
        other: hashes of other images; None looks for pairs within the first, the smaller row first.
    """
    within, other = other is None, one if other is None else other
    found: set[tuple[int, int]] = set()
    # blank pictures are all alike, and copies of nothing
    rows = np.flatnonzero(one.small.any(1))
    others = rows if within else np.flatnonzero(other.small.any(1))
    for band in range(BANDS):
        for same, alike in _same(one.bits[rows, band], other.bits[others, band]):
            here, there = rows[same], others[alike]
            a, b = (x.ravel() for x in np.meshgrid(here, there, indexing="ij"))
            if within:
                a, b = a[a < b], b[a < b]
            apart = np.bitwise_count(one.bits[a] ^ other.bits[b]).sum(1)
            near = (apart <= APART) & ((one.small[a] * other.small[b]).sum(1) >= ALIKE)
            found.update(zip(a[near].tolist(), b[near].tolist(), strict=True))
    return np.array(sorted(found), np.int64).reshape(-1, 2)


def _same(one: np.ndarray, other: np.ndarray, most: int = 2000) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of both sides with one value; values of very many (blank pictures) are cut into blocks."""
    order, places = np.argsort(other, kind="stable"), np.argsort(one, kind="stable")
    values, first, count = np.unique(one[places], return_index=True, return_counts=True)
    left = np.searchsorted(other[order], values, "left")
    right = np.searchsorted(other[order], values, "right")
    worth = (right - left > 0) & ((count > 1) | (right - left > 1) | (one is not other))
    for f, c, lo, hi in zip(first[worth], count[worth], left[worth], right[worth], strict=True):
        for start in range(f, f + c, most):
            for begin in range(lo, hi, most):
                yield places[start : min(start + most, f + c)], order[begin : min(begin + most, hi)]


def copied_images(store: PreparedData) -> pd.DataFrame:
    """Pairs of copies within a prepared directory: image ids, patients and parts of both, and whether those differ."""
    images = store.images
    pairs = copies(prints_of(store))
    sides = [images.iloc[pairs[:, k]][["image_id", "patient_id", "split"]].reset_index(drop=True) for k in (0, 1)]
    table = pd.concat([side.add_suffix(f"_{k}") for k, side in zip("ab", sides, strict=True)], axis=1)
    return table.assign(
        patients_differ=table["patient_id_a"] != table["patient_id_b"],
        splits_differ=table["split_a"] != table["split_b"],
    )


def shared_reports(store: PreparedData, batch: int) -> dict[str, float]:
    """How many studies share the words of their report with another, and what that does to a contrastive batch.

    Args:
        store: prepared data.
        batch: samples of a batch; at most as many as there are.

    Returns:
        `studies` with a report, `shared` of them with one that another has, `most` that share one, and
        `false_negatives`: how many samples of a batch have, on average, a negative that says the same.
    """
    texts = [" ".join(clean_alphanumeric(select_text(r, "impression_findings"))) for r in _sections(store)]
    counts = pd.Series([t for t in texts if t]).value_counts().to_numpy()
    studies = int(counts.sum())
    batch = min(batch, studies)
    # the chance that none of the others of a batch has the report of a sample
    alone = (counts / studies * (1 - (counts - 1) / max(studies - 1, 1)) ** (batch - 1)).sum() if studies else 1.0
    return {
        "studies": studies,
        "shared": int(counts[counts > 1].sum()),
        "most": int(counts.max(initial=0)),
        "batch": batch,
        "false_negatives": round(float(batch * (1 - alone)), 2),
    }


def _sections(store: PreparedData) -> list[dict[str, str]]:
    return store.studies[["findings", "impression"]].to_dict("records")


def patients_apart(store: PreparedData) -> dict[str, int]:
    """How many images, and how many patients, lie in more than one part of the split that holds."""
    images = store.images
    parts = images["split"].str.split()
    of_patient = parts.groupby(images["patient_id"]).agg(lambda lists: len({p for found in lists for p in found}))
    return {"images": int((parts.map(len) > 1).sum()), "patients": int((of_patient > 1).sum())}
