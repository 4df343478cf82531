"""Prepared data on machines that share no disk."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp_bench.data import remote
from vlp_bench.data.datamodule import SHARDS_AT_ONCE, EpochBatches, Inputs, MimicCxrDataModule, batch_loader
from vlp_bench.data.prepare import Plan, prepare
from vlp_bench.data.store import PreparedData
from vlp_bench.engine.data import ensure
from vlp_bench.errors import UserError


@pytest.fixture
def bucket(mimic_source, tmp_path, monkeypatch):
    """A prepared directory of many small shards, as fsspec sees it."""
    monkeypatch.setattr("vlp_bench.data.prepare.STUDIES_PER_SHARD", 4)
    prepare(mimic_source, tmp_path / "bucket", Plan(64), private=True)
    return tmp_path / "bucket"


def opened(bucket, cache) -> PreparedData:
    return ensure({"dir": f"file://{bucket}", "split": None}, cache, 64)


def shards(folder) -> set[str]:
    return {p.name for p in folder.rglob("*.images.arrow")}


def test_the_index_is_fetched_at_once_and_shards_when_they_are_needed(bucket, mimic_store, tmp_path):
    store = opened(bucket, tmp_path / "cache")
    assert store.images.drop(columns="study").equals(PreparedData(bucket).images.drop(columns="study"))
    assert store.studies.equals(mimic_store.studies)
    assert shards(store.path) == set()
    last = np.array([len(store.images) - 1])
    assert np.array_equal(store.pixels(last), mimic_store.pixels(last))
    assert shards(store.path) == {sorted(shards(bucket))[-1]}
    everything = np.arange(len(store.images))
    assert np.array_equal(store.pixels(everything), mimic_store.pixels(everything))
    assert shards(store.path) == shards(bucket)


def test_what_was_fetched_is_kept(bucket, tmp_path):
    store = opened(bucket, tmp_path / "cache")
    store.pixels(np.arange(len(store.images)))
    shutil.rmtree(bucket / "shards")
    again = opened(bucket, tmp_path / "cache")
    assert again.path == store.path
    assert again.pixels(np.array([3])).any()


def test_data_that_were_prepared_anew_are_fetched_anew(bucket, mimic_source, tmp_path):
    old = opened(bucket, tmp_path / "cache")
    shutil.rmtree(bucket)
    prepare(mimic_source, bucket, Plan(32), private=True)
    new = opened(bucket, tmp_path / "cache")
    assert (old.size, new.size) == (64, 32)
    assert old.path != new.path


@pytest.mark.slow
def test_workers_and_ranks_read_the_same_batches_and_no_sample_twice(bucket, mimic_store, tokenizer, tmp_path):
    """Two ranks with loader processes of their own, each machine with a cache of its own."""
    seen: list[str] = []
    for rank in (0, 1):
        store = opened(bucket, tmp_path / f"machine{rank}")
        module = MimicCxrDataModule(store, tokenizer, Inputs(), image_size=48, batch_size=4, seed=3)
        data = module.dataset("train", augment=True)
        where = store.shard_of(data.views[:, 0])
        keys = list(EpochBatches(len(data), 4, rank=rank, world=2, seed=3, shuffle=True, drop_last=False, shards=where))
        here = MimicCxrDataModule(mimic_store, tokenizer, Inputs(), image_size=48, batch_size=4, seed=3)
        for batch, key in zip(batch_loader(data, keys, num_workers=2), keys, strict=True):
            assert torch.equal(batch.image, here.dataset("train", augment=True)[key].image)
            seen += [data.store.images["image_id"].iloc[row] for row in data.views[key.indices, 0]]
    assert sorted(seen) == sorted(mimic_store.images["image_id"].iloc[data.views[:, 0]])


@settings(deadline=None)
@given(st.lists(st.integers(0, 90), min_size=1, max_size=300), st.integers(1, 4), st.integers(0, 3))
def test_a_shuffle_in_turns_is_one_of_all_samples_and_needs_few_shards_at_a_time(found, world, epoch):
    where = np.sort(np.array(found))
    order = []
    for rank in range(world):
        batches = EpochBatches(
            len(where), 3, rank=rank, world=world, seed=0, shuffle=True, drop_last=False, shards=where
        )
        batches.set_epoch(epoch)
        order.append([key.indices for key in batches])
    steps = [np.concatenate(step) for step in zip(*order, strict=True)]
    assert sorted(np.concatenate(steps)) == list(range(len(where)))
    touched = [set(where[step].tolist()) for step in steps]
    first = {s: min(n for n, t in enumerate(touched) if s in t) for s in set(where.tolist())}
    last = {s: max(n for n, t in enumerate(touched) if s in t) for s in first}
    needed = [sum(first[s] <= n <= last[s] for s in first) for n in range(len(steps))]
    assert max(needed) <= SHARDS_AT_ONCE + 3 * world  # a batch may begin in one turn and end in the next


def test_what_cannot_be_fetched_is_said(bucket, tmp_path):
    with pytest.raises(UserError, match=r"There is no manifest\.json at file://.*is it a directory that"):
        ensure({"dir": f"file://{tmp_path}/none", "split": None}, tmp_path / "cache", 64)
    with pytest.raises(UserError, match=r"nothing://x.* cannot be fetched"):
        ensure({"dir": "nothing://x", "split": None}, tmp_path / "cache", 64)
    store = opened(bucket, tmp_path / "cache")
    shutil.rmtree(bucket / "shards")
    with pytest.raises(UserError, match=r"There is no shards/00000\.images\.arrow"):
        store.pixels(np.array([0]))
    assert not [p for p in (store.path / "shards").iterdir() if not p.name.endswith(".lock")]


def test_urls_are_told_from_paths():
    assert remote.is_remote("s3://bucket/prepared")
    assert not remote.is_remote("runs/prepared")
