"""Test images made worse: the same at every call, worse with every severity, and nothing else is changed."""

import pickle

import numpy as np
import pytest

from vlp_bench.config import compose_verb, plain
from vlp_bench.data.corruptions import CORRUPTIONS, SEVERITIES, Corrupted, chosen
from vlp_bench.data.store import PreparedData
from vlp_bench.engine.data import ensure
from vlp_bench.errors import UserError


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> PreparedData:
    section = plain(compose_verb("evaluate", ["target.studies=12"]).target)
    return ensure(section, tmp_path_factory.mktemp("cache"), 74)


ROWS = np.arange(6)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_severity_is_worse_than_the_one_before(store, name):
    clean = store.pixels(ROWS).astype(float)
    lost = [np.abs(Corrupted(store, name, s).pixels(ROWS) - clean).mean() for s in SEVERITIES]
    assert 0 < lost[0] < lost[1] < lost[2]


def test_an_image_is_always_worse_in_the_same_way(store):
    for name in ("noise", "occlusion", "rotation"):
        once = Corrupted(store, name, 2).pixels(ROWS)
        other = pickle.loads(pickle.dumps(Corrupted(store, name, 2)))  # as a loader's process gets it
        assert np.array_equal(other.pixels(ROWS[::-1])[::-1], once)
    noise = Corrupted(store, "noise", 1).pixels(ROWS).astype(int) - store.pixels(ROWS)
    assert not np.array_equal(noise[0], noise[1])  # every image has its own


def test_crops_are_those_of_the_worse_image(store):
    worse = Corrupted(store, "blur", 3)
    corner = np.full(len(ROWS), 5)
    assert np.array_equal(worse.crops(ROWS, 64, corner, corner), worse.pixels(ROWS)[:, 5:69, 5:69])


def test_all_else_is_as_it_was_and_no_cache_mistakes_it(store):
    worse = Corrupted(store, "jpeg", 1)
    assert worse.images.equals(store.images)
    assert worse.size == store.size
    assert worse.fingerprint != store.fingerprint
    assert worse.fingerprint != Corrupted(store, "jpeg", 2).fingerprint


def test_names_are_checked():
    assert chosen("all") == list(CORRUPTIONS)
    assert chosen(["blur"]) == chosen("blur") == ["blur"]
    with pytest.raises(UserError, match=r"robustness=fog: expected all, or some of blur, noise"):
        chosen(["blur", "fog"])
