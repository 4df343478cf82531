"""Planted copies and shared reports are found, and nothing else."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlp_bench.data.audit import APART, Prints, copied_images, copies, patients_apart, prints, prints_of, shared_reports
from vlp_bench.data.images import to_square
from vlp_bench.data.prepare import Plan, prepare
from vlp_bench.data.sources import folder
from vlp_bench.data.store import PreparedData
from vlp_bench.data.synthetic import render, sample_studies


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    images = [i for s in sample_studies(60, 5) for i in s.images]
    return render(images, 256)


def as_jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def smaller(picture: np.ndarray) -> np.ndarray:
    reduced = Image.fromarray(picture).resize((150, 150), Image.Resampling.BILINEAR)
    return to_square(np.asarray(reduced.resize((256, 256), Image.Resampling.BILINEAR)), 256)[0]


def paler(picture: np.ndarray) -> np.ndarray:
    return (picture * 0.9 + 12).astype(np.uint8)


@pytest.mark.parametrize("change", [lambda p: as_jpeg(p, 60), smaller, paler, lambda p: p])
def test_a_changed_copy_is_found_and_no_other_image_is_taken_for_one(pictures, change):
    planted = {7: 3, 80: 41}
    images = list(pictures)
    for copy, original in planted.items():
        images[copy] = change(pictures[original])
    pairs = copies(prints(np.stack(images)))
    assert sorted(map(tuple, pairs.tolist())) == sorted((o, c) for c, o in planted.items())


def test_copies_between_two_sets(pictures):
    pairs = copies(prints(pictures[:40]), prints(np.stack([paler(pictures[5]), pictures[100], pictures[39]])))
    assert pairs.tolist() == [[5, 0], [39, 2]]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2 * APART))
def test_every_pair_within_the_distance_is_found(seed, flips):
    """The bands lose nothing: by brute force over all pairs."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (30, 256), dtype=np.uint8)
    bits[17] = bits[4]
    bits[17, rng.choice(256, flips, replace=False)] ^= 1
    packed = np.packbits(bits.reshape(30, 8, 32), axis=2).view(np.uint32)[..., 0]
    apart = (bits[:, None] != bits[None]).sum(2)
    expected = [(a, b) for a in range(30) for b in range(a + 1, 30) if apart[a, b] <= APART]
    assert [tuple(p) for p in copies(Prints(packed, np.ones((30, 1), np.float32))).tolist()] == expected


def test_blank_pictures_do_not_explode():
    assert len(copies(prints(np.zeros((3000, 32, 32), np.uint8)))) == 0


def test_leaks_of_a_prepared_directory(own_folder, pictures, tmp_path):
    said = "FINDINGS: The lungs are clear and the heart is normal."
    rows = [
        {"image_path": f"{n}.png", "patient_id": f"p{n}", "split": ("train", "val", "test")[n % 3], "labels": "Edema",
         "report_text": said if n in (1, 2, 5) else f"FINDINGS: The study number {n} shows a very large thing."}
        for n in range(12)
    ]  # fmt: skip
    raw = own_folder(rows)
    for n in range(12):
        Image.fromarray(pictures[n]).save(raw / f"{n}.png")
    Image.fromarray(as_jpeg(pictures[0], 70)).save(raw / "4.png")
    Image.fromarray(paler(pictures[3])).save(raw / "9.png")
    prepare(folder.read(raw), tmp_path / "p", Plan(64), private=True)
    store = PreparedData(tmp_path / "p")
    table = copied_images(store)
    assert set(zip(table["image_id_a"], table["image_id_b"], strict=True)) == {("0.png", "4.png"), ("3.png", "9.png")}
    assert table.set_index("image_id_a")["splits_differ"].to_dict() == {"0.png": True, "3.png": False}
    assert table["patients_differ"].all()
    assert len(prints_of(store).bits) == 12
    reports = shared_reports(store, 4)
    assert {k: reports[k] for k in ("studies", "shared", "most")} == {"studies": 12, "shared": 3, "most": 3}
    assert patients_apart(store) == {"images": 0, "patients": 0}


def test_false_negatives_by_drawing_batches(own_folder, tmp_path):
    shares = [5, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    texts = [
        f"FINDINGS: Report with the words {chr(97 + k)}{chr(97 + k)} alone."
        for k, n in enumerate(shares)
        for _ in range(n)
    ]
    raw = own_folder([{"image_path": f"{n}.png", "report_text": t, "labels": "Edema"} for n, t in enumerate(texts)])
    prepare(folder.read(raw), tmp_path / "p", Plan(32), private=True)
    got = shared_reports(PreparedData(tmp_path / "p"), 6)["false_negatives"]
    rng, ids = np.random.default_rng(0), np.repeat(np.arange(len(shares)), shares)
    drawn = [ids[rng.choice(len(ids), 6, replace=False)] for _ in range(4000)]
    counted = np.mean([sum((batch == i).sum() > 1 for i in batch) for batch in drawn])
    assert got == pytest.approx(counted, abs=0.35)
