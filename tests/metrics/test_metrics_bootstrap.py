import numpy as np
import pytest

from vlp_bench.metrics import bootstrap
from vlp_bench.metrics.bootstrap import Patients, bootstrap_weights, entry, patient_counts


def test_every_resample_draws_as_many_patients_as_there_are():
    counts = np.concatenate([c for _, c in patient_counts(37, 200, 5)])
    assert counts.shape == (200, 37)
    assert (counts.sum(axis=1) == 37).all()
    assert counts.min() == 0
    assert counts.max() > 1


def test_items_of_a_patient_share_their_weight():
    patients = np.array(["b", "a", "b", "c", "a", "b"])
    weights = np.concatenate(list(bootstrap_weights(patients, 50, 1)))
    assert weights.dtype.kind == "i"
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 0] == weights[:, 5]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    first_of_each = weights[:, [1, 0, 3]]
    assert (first_of_each.sum(axis=1) == 3).all()


def test_numbers_depend_on_the_seed_not_on_the_chunks(monkeypatch):
    whole = np.concatenate([c for _, c in patient_counts(13, 101, 7)])
    monkeypatch.setattr(bootstrap, "CHUNK_ELEMENTS", 13 * 7)
    chunks = [c for _, c in patient_counts(13, 101, 7)]
    assert len(chunks) > 10
    assert (np.concatenate(chunks) == whole).all()
    assert (np.concatenate([c for _, c in patient_counts(13, 101, 8)]) != whole).any()


def test_sums_add_up_by_patient():
    sums = Patients.of(["x", "y", "x"]).sums(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert sums.tolist() == [[6.0, 8.0], [3.0, 4.0]]


def test_entry_leaves_out_undefined_resamples():
    assert entry(0.5, np.array([np.nan, 0.4, 0.4]), 3) == {"value": 0.5, "low": 0.4, "high": 0.4, "n": 3}
    assert entry(np.nan, np.array([0.1]), 3) == {"value": None, "low": None, "high": None, "n": 3}
    assert entry(0.5, np.empty(0), 3) == {"value": 0.5, "low": None, "high": None, "n": 3}


def test_patients_must_be_a_row():
    with pytest.raises(ValueError, match="one-dimensional"):
        Patients.of([])
