"""Raw to prepared: what is kept, what is lost and said, and what a kill leaves."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vlp_bench.data import prepare as room
from vlp_bench.data.images import to_square
from vlp_bench.data.prepare import Plan, prepare
from vlp_bench.data.sources import mimic_cxr
from vlp_bench.data.store import PreparedData
from vlp_bench.data.study import ImageRef, Source, Study
from vlp_bench.errors import UserError

PLAN = Plan(64)


def report_of(path: Path) -> dict:
    return json.loads((path / "prepare_report.json").read_text())


def problems_of(path: Path, kind: str) -> list[dict]:
    return [p for p in report_of(path)["problems"] if p["kind"] == kind]


def build(raw: Path, out: Path, **options) -> PreparedData:
    prepare(mimic_cxr.read(raw), out, PLAN, **{"private": True} | options)
    return PreparedData(out)


# What is kept ---------------------------------------------------------------------------------------------------------


def test_counts_splits_and_views(mimic_store, mimic_source, world):
    counts = mimic_store.manifest["counts"]
    assert counts["studies"] == len(world) == len(mimic_store.studies)
    assert counts["images"] == sum(len(s.images) for s in world) == len(mimic_store.images)
    assert sum(counts["splits"].values()) == counts["studies"]
    by_id = {s.study_id: s for s in world}
    for row in mimic_store.studies.itertuples():
        assert row.patient_id == by_id[row.study_id].patient_id
        assert row.split == by_id[row.study_id].split.replace("validate", "val")
    assert mimic_store.images.groupby("patient_id")["split"].nunique().max() == 1
    assert set(mimic_store.images.loc[mimic_store.images["frontal"], "view"]) <= {"PA", "AP"}
    assert not mimic_store.images.loc[mimic_store.images["view"].isin(["LATERAL", "LL", ""]), "frontal"].any()
    assert mimic_store.private
    assert mimic_store.labels == list(mimic_source.labels)


def test_sections_are_those_of_the_report(mimic_store, raw_mimic):
    texts = {p.stem[1:]: " ".join(p.read_text().split()) for p in raw_mimic.rglob("s*.txt")}
    filled = 0
    for row in mimic_store.studies.itertuples():
        for section in (row.findings, row.impression):
            assert " ".join(section.split()) in texts[row.study_id]
            assert "IMPRESSION:" not in section
            filled += bool(section)
    assert filled > len(texts) / 2


def test_labels_follow_the_table(mimic_store, raw_mimic):
    table = pd.read_csv(next(raw_mimic.glob("*chexpert*"))).set_index("study_id")[mimic_store.labels]
    wanted = table.loc[mimic_store.studies["study_id"].astype(int)].to_numpy(np.float32)
    np.testing.assert_array_equal(mimic_store.study_labels, wanted)
    np.testing.assert_array_equal(mimic_store.image_labels, wanted[mimic_store.images["study"]])


def test_pixels_and_crops_are_those_of_the_files(mimic_store, raw_mimic):
    rows = np.random.default_rng(0).integers(0, len(mimic_store.images), 20)
    pixels = mimic_store.pixels(rows)
    for pixel, path in zip(pixels, mimic_store.images["path"].iloc[rows], strict=True):
        square, _ = to_square(np.asarray(Image.open(raw_mimic / path)), 64)
        assert np.abs(square.astype(int) - pixel).mean() < 3
    tops, lefts = np.random.default_rng(1).integers(0, 9, (2, 20))
    crops = mimic_store.crops(rows, 56, tops, lefts)
    for pixel, crop, top, left in zip(pixels, crops, tops, lefts, strict=True):
        np.testing.assert_array_equal(crop, pixel[top : top + 56, left : left + 56])
    assert mimic_store.pixels(rows[:0]).shape == (0, 64, 64)


# The same whatever happens on the way ---------------------------------------------------------------------------------


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(room, "STUDIES_PER_SHARD", 16)


def test_workers_change_nothing(mimic_source, tmp_path, small_shards):
    seen = []
    one = prepare(mimic_source, tmp_path / "1", PLAN, private=True, progress=lambda *at: seen.append(at))
    two = prepare(mimic_source, tmp_path / "2", PLAN, private=True, workers=2)
    assert one == two
    assert one["shards"] == 4
    assert seen == [(16, 60), (32, 60), (48, 60), (60, 60)]
    rows = np.arange(one["counts"]["images"])
    np.testing.assert_array_equal(
        PreparedData(tmp_path / "1").pixels(rows), PreparedData(tmp_path / "2").pixels(rows[::-1])[::-1]
    )


@pytest.mark.parametrize("at", [0, 2, 3])
def test_a_stop_at_any_shard_ends_in_the_same_data(mimic_source, tmp_path, small_shards, monkeypatch, at):
    whole = prepare(mimic_source, tmp_path / "whole", PLAN, private=True)
    write, calls = room._write_arrow, []

    def stop(path, table):
        calls.append(path)
        if len(calls) == 2 * at + 2:  # after the images of that shard, before its studies
            raise KeyboardInterrupt
        write(path, table)

    monkeypatch.setattr(room, "_write_arrow", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(mimic_source, tmp_path / "stopped", PLAN, private=True)
    with pytest.raises(UserError, match="unfinished: run the same prepare command again"):
        PreparedData(tmp_path / "stopped")
    calls.clear()
    monkeypatch.setattr(room, "_write_arrow", lambda path, table: (calls.append(path), write(path, table)))
    assert prepare(mimic_source, tmp_path / "stopped", PLAN, private=True) == whole
    assert len(calls) == 2 * (4 - at) + 2  # and the index
    calls.clear()
    assert prepare(mimic_source, tmp_path / "stopped", PLAN, private=True) == whole
    assert calls == []
    assert report_of(tmp_path / "stopped") == report_of(tmp_path / "whole")


SLOWLY = textwrap.dedent(
    """
    import os, sys, time
    from pathlib import Path
    from vlp_bench.data import prepare as room
    from vlp_bench.data.sources import mimic_cxr

    replace = os.replace

    def slowly(temporary, path):
        time.sleep(0.06)  # as a file lies there half-written
        replace(temporary, path)

    if __name__ == "__main__":
        source = mimic_cxr.read(Path(sys.argv[1]))
        os.replace, room.STUDIES_PER_SHARD = slowly, 4
        print("begins", flush=True)
        room.prepare(source, Path(sys.argv[2]), room.Plan(64), private=True)
    """
)


@pytest.mark.slow
def test_kill_9_at_random_moments(raw_mimic, mimic_source, tmp_path, monkeypatch):
    script, out = tmp_path / "slowly.py", tmp_path / "killed"
    script.write_text(SLOWLY)
    draw, kills, left = random.Random(0), 0, set()
    while kills < 20:
        with subprocess.Popen([sys.executable, script, raw_mimic, out], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(draw.uniform(0, 0.4))
            process.send_signal(signal.SIGKILL)
        kills += process.returncode == -signal.SIGKILL
        left.add(len(list(out.glob("shards/*.done.json"))))
        if (out / "manifest.json").exists():
            shutil.rmtree(out)  # it came to its end: once more
    assert len(left) > 3, "the kills fell at different moments"
    monkeypatch.setattr(room, "STUDIES_PER_SHARD", 4)
    whole = prepare(mimic_source, tmp_path / "whole", PLAN, private=True)
    assert prepare(mimic_source, out, PLAN, private=True, workers=2) == whole
    assert not [p for p in out.rglob(".*") if p.name != ".lock"], "half-written files are swept up"
    for name in ("images.arrow", "studies.arrow", "prepare_report.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, time
            from concurrent.futures import ProcessPoolExecutor
            from multiprocessing import get_context
            from vlp_bench.data.prepare import _end_with_parent

            if __name__ == "__main__":
                with ProcessPoolExecutor(1, get_context("spawn"), _end_with_parent) as pool:
                    print(pool.submit(os.getpid).result(), flush=True)
                    time.sleep(60)
            """
        )
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        worker = Path("/proc") / parent.stdout.readline().strip()
        assert worker.exists()
        parent.kill()

    def ended() -> bool:
        return not worker.exists() or (worker / "stat").read_text().rpartition(")")[2].split()[0] == "Z"

    deadline = time.monotonic() + 20
    while not ended() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended()


# What is lost, and said -----------------------------------------------------------------------------------------------


def some_image(raw: Path, number: int = 0) -> Path:
    return sorted(raw.rglob("*.jpg"))[number]


def test_broken_and_missing_files_are_listed(mimic_copy, tmp_path):
    broken, missing, empty = (some_image(mimic_copy, n) for n in (0, 5, 9))
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    missing.unlink()
    empty.write_bytes(b"")
    reports = sorted(mimic_copy.rglob("s*.txt"))
    reports[0].unlink()
    reports[1].write_text("")
    reports[2].write_text(" \n FINDINGS: \n \n IMPRESSION: \n")
    reports[3].write_text(" INDICATION:  Cough.\n \n A text without a header of its own.\n")
    store = build(mimic_copy, tmp_path / "out", max_bad_fraction=0.1)
    lost = {p["where"]: p["reason"] for p in problems_of(store.path, "broken image")}
    assert {Path(p).name for p in lost} == {broken.name, missing.name, empty.name}
    assert "truncated" in lost[str(broken.relative_to(mimic_copy))]
    assert lost[str(missing.relative_to(mimic_copy))] == "no such file"
    assert lost[str(empty.relative_to(mimic_copy))] == "not an image"
    assert [p["where"] for p in problems_of(store.path, "missing report")] == [str(reports[0].relative_to(mimic_copy))]
    blank = {Path(p["where"]).name for p in problems_of(store.path, "empty report")}
    assert {reports[1].name, reports[2].name} <= blank
    assert reports[3].name in {Path(p["where"]).name for p in problems_of(store.path, "no section")}
    raw_images = len(list(mimic_copy.rglob("*.jpg"))) + 1
    assert store.manifest["counts"]["images"] == raw_images - 3
    assert report_of(store.path)["kinds"]["broken image"] == 3
    assert not set(store.images["image_id"]) & {broken.stem, missing.stem, empty.stem}


def test_a_study_without_any_whole_image_stays_as_text(mimic_copy, tmp_path):
    source = mimic_cxr.read(mimic_copy)
    for ref in source.studies[0].images:
        (mimic_copy / ref.path).unlink()
    store = build(mimic_copy, tmp_path / "out", max_bad_fraction=0.1)
    assert len(store.studies) == len(source.studies)
    assert 0 not in set(store.images["study"])


def test_a_whole_shard_without_images_can_be_read(mimic_copy, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "STUDIES_PER_SHARD", 16)
    for study in mimic_cxr.read(mimic_copy).studies[:16]:
        for ref in study.images:
            (mimic_copy / ref.path).unlink()
    store = build(mimic_copy, tmp_path / "out", max_bad_fraction=1.0)
    assert store.images["study"].min() == 16
    assert store.pixels(np.arange(len(store.images))).any((1, 2)).all()


@pytest.mark.parametrize("form", ["16 bit", "16 bit, dark", "rgb", "cmyk", "palette", "alpha", "one bit"])
def test_pixels_of_other_formats(mimic_copy, tmp_path, form):
    ramp = np.linspace(0, 255, 80 * 100).reshape(80, 100).astype(np.uint8)
    gray, path = Image.fromarray(ramp), some_image(mimic_copy)
    if form == "16 bit":
        Image.fromarray(ramp.astype(np.uint16) * 257).save(path, "PNG")
    elif form == "16 bit, dark":
        Image.fromarray(ramp.astype(np.uint16) * 4 + 100).save(path, "PNG")
    elif form == "palette":
        gray.convert("P").save(path, "PNG")
    elif form == "alpha":
        gray.convert("LA").save(path, "PNG")
    elif form == "one bit":
        gray.point(lambda v: 255 * (v > 127), "1").save(path, "PNG")
    else:
        gray.convert(form.upper()).save(path, "JPEG", quality=95)
    store = build(mimic_copy, tmp_path / "out")
    row = int(np.flatnonzero(store.images["image_id"] == path.stem)[0])
    wanted, _ = to_square(ramp, 64)
    if form == "one bit":
        wanted = np.where(wanted > 127, 255, 0).astype(np.uint8)
    assert np.abs(wanted.astype(int) - store.pixels(np.array([row]))[0]).mean() < 3
    assert tuple(store.images.iloc[row][["width", "height"]]) == (100, 80)


def test_too_many_bad_rows_stop_and_mended_files_are_tried_again(mimic_copy, tmp_path, small_shards):
    out, whole = tmp_path / "out", build(mimic_copy, tmp_path / "whole")
    kept = {p: p.read_bytes() for p in sorted(mimic_copy.rglob("*.jpg"))[::3]}
    for path in kept:
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"more than data\.max_bad_fraction allows .*not an image") as stop:
        build(mimic_copy, out, max_bad_fraction=0.02)
    assert str(out / "prepare_report.json") in str(stop.value)
    assert len(problems_of(out, "broken image")) >= 3
    assert not (out / "manifest.json").exists()
    for path, content in kept.items():
        path.write_bytes(content)
    assert build(mimic_copy, out, max_bad_fraction=0.02).fingerprint == whole.fingerprint


def test_too_many_bad_rows_stop_the_workers(mimic_copy, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "STUDIES_PER_SHARD", 2)
    for path in mimic_copy.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="max_bad_fraction"):
        build(mimic_copy, tmp_path / "out", workers=2)
    assert not list((tmp_path / "out" / "shards").glob("*.done.json"))


def test_a_worker_that_dies_is_explained(mimic_copy, tmp_path, monkeypatch, small_shards):
    monkeypatch.setattr(room, "_build_shard", _die)
    with pytest.raises(UserError, match="ended from outside"):
        build(mimic_copy, tmp_path / "out", workers=2)


def _die(job):
    os._exit(9)


# Refusals before anything is written ----------------------------------------------------------------------------------


def test_another_plan_or_other_data_in_the_same_place(mimic_source, mimic_store):
    with pytest.raises(UserError, match="prepared from other data, another size"):
        prepare(mimic_source, mimic_store.path, Plan(32), private=True)
    with pytest.raises(UserError, match="prepared from other data"):
        prepare(mimic_source, mimic_store.path, PLAN, private=False)
    first = dataclasses.replace(mimic_source.studies[0], text="changed", report_path=None)
    other = dataclasses.replace(mimic_source, studies=(first, *mimic_source.studies[1:]))
    with pytest.raises(UserError, match=r"Give another data\.dir"):
        prepare(other, mimic_store.path, PLAN, private=True)


def test_a_directory_that_holds_something_else(mimic_source, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds something else"):
        prepare(mimic_source, tmp_path, PLAN, private=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_where_the_directory_should_be(mimic_source, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        prepare(mimic_source, tmp_path / "out", PLAN, private=True)


def test_a_patient_in_two_splits(tmp_path):
    studies = tuple(Study(str(n), "p1", split, (ImageRef("a", "a.png"),)) for n, split in enumerate(("train", "test")))
    with pytest.raises(UserError, match="Patient p1 is in the splits train and test"):
        prepare(Source("folder", tmp_path, studies, ()), tmp_path / "out", PLAN, private=True)
    assert not (tmp_path / "out").exists()


def test_no_study_at_all(tmp_path):
    with pytest.raises(UserError, match="no usable study"):
        prepare(Source("folder", tmp_path, (), ()), tmp_path / "out", PLAN, private=True)


def test_not_enough_disk(mimic_source, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6, 1000))
    with pytest.raises(UserError, match=r"Free some space, or choose a smaller data\.store_size"):
        prepare(mimic_source, tmp_path / "new" / "out", PLAN, private=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written(mimic_source, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="Cannot write"):
        prepare(mimic_source, tmp_path / "closed" / "out", PLAN, private=True)


# Opening --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def store_copy(mimic_store, tmp_path) -> Path:
    return Path(shutil.copytree(mimic_store.path, tmp_path / "copy"))


def test_opening_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"\(absent\).*\n?.*vlp-bench prepare"):
        PreparedData(tmp_path)


def test_opening_another_version(store_copy):
    manifest = json.loads((store_copy / "manifest.json").read_text())
    (store_copy / "manifest.json").write_text(json.dumps(manifest | {"version": 0}))
    with pytest.raises(UserError, match=r"another version \(0, this one writes \d+\)"):
        PreparedData(store_copy)


def test_opening_other_data_than_expected(mimic_store):
    assert PreparedData(mimic_store.path, mimic_store.fingerprint).fingerprint == mimic_store.fingerprint
    with pytest.raises(UserError, match="expected 0123456789abcdef: it is other data"):
        PreparedData(mimic_store.path, "0123456789abcdef")


def test_opening_with_a_shard_missing(store_copy):
    (store_copy / "shards" / "00000.images.arrow").unlink()
    with pytest.raises(UserError, match=r"00000\.images\.arrow is missing.*damaged"):
        PreparedData(store_copy)


def test_a_manifest_that_is_no_json(store_copy):
    (store_copy / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="not readable as a manifest"):
        PreparedData(store_copy)
