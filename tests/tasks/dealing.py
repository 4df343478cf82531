"""More to test on than the few test studies of a small target."""

import numpy as np


def dealt_anew(monkeypatch, cell):
    """The cell, with three in five patients for training and one each for validation and test."""
    images = cell.target.store.images.copy()
    _, patient = np.unique(images["patient_id"], return_inverse=True)
    images["split"] = np.array(["train", "val", "train", "train", "test"])[patient % 5]
    monkeypatch.setitem(cell.target.store.__dict__, "images", images)
    return cell
