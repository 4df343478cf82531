"""Recipes by which published code divides a list of images, and what several readers of boxes need."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vlp_bench.data.divisions import parts, shuffled
from vlp_bench.data.study import Division


def held_out(ids: Sequence[str], seed: int, held: float | int) -> dict[str, str]:
    """As GLoRIA and MGCA do: so many (or that share) are held out, the one half of them is test, the other val."""
    train, rest = shuffled(ids, seed, held)
    test, val = shuffled(rest, seed, 0.5)
    return parts(train, val, test)


def stratified(ids: Sequence[str], classes: Sequence[int], seed: int, held: float | int) -> tuple[list[str], list[str]]:
    """scikit-learn's `train_test_split(ids, stratify=classes)`: the rest, and those held out.

    Raises:
        ValueError: too few ids for it.
    """
    from sklearn.model_selection import train_test_split

    rest, out = train_test_split(list(ids), test_size=held, stratify=list(classes), random_state=seed)
    return rest, out


def folds(name: str, ids: Sequence[str], origin: str) -> list[Division]:
    """Five divisions, each with another fifth of the ids as test and the next fifth as val."""
    if len(ids) < 5:
        return []
    order = np.random.RandomState(0).permutation(len(ids))
    fifths = [[ids[i] for i in fifth] for fifth in np.array_split(order, 5)]
    said = f"{origin}; the seed, the order and which fifth validates are not published: seed 0, by id, the next fifth"
    return [
        Division(
            f"{name}_fold{k + 1}",
            parts([i for n in (2, 3, 4) for i in fifths[(k + n) % 5]], fifths[(k + 1) % 5], fifths[k]),
            said,
        )
        for k in range(5)
    ]


def enlarged(path: Path, width: float, height: float) -> tuple[float, float]:
    """By how much a file, across and down, is larger than the picture of `width` x `height` that boxes were drawn on.

    Re-releases as PNG or JPEG are often smaller than the DICOM; a DICOM, and a file that cannot be opened, is taken to
    be as large. Only the header is read.
    """
    if path.suffix.lower() in (".dcm", ".dicom"):
        return 1.0, 1.0
    try:
        with Image.open(path) as image:
            return image.width / width, image.height / height
    except OSError:
        return 1.0, 1.0
