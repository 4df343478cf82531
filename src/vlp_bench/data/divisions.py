"""Who is in train, val and test: divisions that can be computed again, and their leaks."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vlp_bench.data.study import SPLITS, Division, Source
from vlp_bench.errors import UserError

#: How lists name the parts.
NAMES = {"train": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val", "dev": "val",
         "test": "test"}  # fmt: skip


def by_hash(ids: Iterable[str], shares: Mapping[str, float]) -> dict[str, str]:
    """Split of each id (of a patient, as a rule), from a hash of it: the same whoever else is there.

    Raises:
        UserError: shares that are not of train, val and test, or not 1 together.
    """
    if set(shares) != set(SPLITS) or min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(f"shares={dict(shares)}: give train, val and test, together 1.")
    train, val = shares["train"], shares["train"] + shares["val"]
    numbers = {i: int(hashlib.sha256(i.encode()).hexdigest()[:8], 16) / 16**8 for i in ids}
    return {i: "train" if x < train else "val" if x < val else "test" for i, x in numbers.items()}


def shuffled(ids: Sequence[str], seed: int, test: float | int) -> tuple[list[str], list[str]]:
    """What scikit-learn's `train_test_split(ids, test_size=test, random_state=seed)` gives: the rest, and the test ids.

    Published lists were made with it; it is older than the random generators that numpy advises.
    """
    held = test if isinstance(test, int) else int(np.ceil(test * len(ids)))
    order = np.random.RandomState(seed).permutation(len(ids))
    return [ids[i] for i in order[held:]], [ids[i] for i in order[:held]]


def sampled(ids: Sequence[str], seed: int, count: int) -> list[str]:
    """What pandas' `sample(n=count, random_state=seed)` gives."""
    chosen = np.random.RandomState(seed).choice(len(ids), size=count, replace=False)
    return [ids[i] for i in chosen]


def parts(train: Iterable[str], val: Iterable[str], test: Iterable[str]) -> dict[str, str]:
    """Part of each id; an id in several lists lies in several parts."""
    found: dict[str, list[str]] = defaultdict(list)
    for part, ids in zip(SPLITS, (train, val, test), strict=True):
        for i in dict.fromkeys(ids):
            found[i].append(part)
    return {i: " ".join(where) for i, where in found.items()}


def leaks(source: Source, division: Division) -> dict[str, int]:
    """How many images, and how many patients, lie in more than one part of a division."""
    where: dict[str, set[str]] = defaultdict(set)
    images = 0
    for study in source.studies:
        for image in study.images:
            inside = division.parts.get(image.image_id, "").split()
            images += len(inside) > 1
            where[study.patient_id].update(inside)
    return {"images": images, "patients": sum(len(found) > 1 for found in where.values())}
