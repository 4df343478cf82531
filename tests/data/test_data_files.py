"""Files that are whole or not there, locks, the cache of the verbs, and what importing this room costs."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vlp_bench.data.prepare import Plan, _finished, prepare
from vlp_bench.data.sources import mimic_cxr
from vlp_bench.data.store import PreparedData, TextForm
from vlp_bench.data.tokenization import Tokenizer
from vlp_bench.engine import data as verbs
from vlp_bench.engine.data import ensure
from vlp_bench.errors import UserError
from vlp_bench.files import alone, digest, read_json, whole, write_json

# Whole or not there ---------------------------------------------------------------------------------------------------


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new folder" / "ä.txt"
    with whole(path) as temporary:
        temporary.write_text("done")
        assert not path.exists()
    assert path.read_text() == "done"
    with suppress(ZeroDivisionError), whole(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "done"
    assert [p.name for p in path.parent.iterdir()] == ["ä.txt"]


def test_a_directory_appears_when_it_is_whole(tmp_path):
    def fill(what: str) -> None:
        with whole(tmp_path / "made") as temporary:
            temporary.mkdir()
            (temporary / "file").write_text(what)

    fill("first")
    with pytest.raises(UserError, match=r"Cannot write .*made: Directory not empty"):
        fill("second")
    assert (tmp_path / "made" / "file").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Nothing was left half-written"):
        write_json(tmp_path / "file" / "x.json", 1)
    with pytest.raises(UserError, match="Cannot write"), alone(tmp_path / "file" / ".lock"):
        pass


def test_json_that_cannot_be_read(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    assert read_json(tmp_path / "x.json", "a thing") == {"a": 1}
    (tmp_path / "x.json").write_text("[")
    with pytest.raises(UserError, match=r"x\.json is not readable as a thing"):
        read_json(tmp_path / "x.json", "a thing")
    with pytest.raises(UserError, match="No a thing at"):
        read_json(tmp_path / "y.json", "a thing")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_json(tmp_path, "a thing")


def test_digest_does_not_mind_the_order_of_keys():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def _hold(lock: Path, held: Path) -> None:
    with alone(lock):
        held.write_text("")
        time.sleep(60)


def test_a_killed_process_lets_go_of_its_lock(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path / "lock", tmp_path / "held"))
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    with alone(tmp_path / "lock"):
        pass


def _prepare_and_tokenise(raw: Path, out: Path) -> None:
    prepare(mimic_cxr.read(raw), out, Plan(64), private=True)
    PreparedData(out).pieces(Tokenizer.load("synthetic"), TextForm())


def test_two_processes_that_want_the_same_data(tmp_path, raw_mimic, mimic_store):
    out, spawn = tmp_path / "out", multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_prepare_and_tokenise, args=(raw_mimic, out)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0]
    assert PreparedData(out).fingerprint == mimic_store.fingerprint
    assert sorted(p.name for p in out.rglob(".*")) == [".lock", ".lock"]


def test_a_build_that_another_process_begins_meanwhile_is_no_foreign_folder(tmp_path, monkeypatch):
    listed = Path.iterdir

    def iterdir(folder):
        (folder / "plan.json").write_text("{}")
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert _finished(tmp_path, {}) is None


# Importing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prepare", "store", "tokenization", "sources.folder", "sources.mimic_cxr", "reports"])
def test_the_room_works_without_torch(name):
    code = f"import sys, vlp_bench.data.{name}; print('torch' in sys.modules, 'pydicom' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", "False"]


# The cache ------------------------------------------------------------------------------------------------------------

AS_IS = {"split": None, "image_rule": "resize_and_pad", "window": "voi"}
SYNTHETIC = {
    "name": "synthetic",
    "layout": "mimic_cxr",
    "studies": 4,
    "seed": 0,
    "private": False,
    **AS_IS,
    "max_bad_fraction": 0.05,
    "reader": {"_target_": "vlp_bench.data.sources.mimic_cxr.read"},
}
FOLDER = {
    "name": "folder",
    "private": True,
    **AS_IS,
    "max_bad_fraction": 0.05,
    "reader": {"_target_": "vlp_bench.data.sources.folder.read", "where": None},
}


@pytest.fixture
def builds(monkeypatch) -> list[Path]:
    """Where something was built."""
    made, build = [], verbs.build
    monkeypatch.setattr(verbs, "build", lambda source, out, *a, **k: (made.append(out), build(source, out, *a, **k))[1])
    return made


def test_synthetic_data_is_made_once(tmp_path, builds):
    first = ensure(SYNTHETIC, tmp_path, 48, workers=1)
    again = ensure(SYNTHETIC, tmp_path, 48, workers=1)
    assert first.path == again.path
    assert len(builds) == 1
    assert first.size == 48
    assert not first.private
    for change in ({"seed": 1}, {"private": True}, {"store_size": 40}):
        assert ensure(SYNTHETIC | change, tmp_path, 48, workers=1).path != first.path
    assert len(builds) == 4
    assert (
        ensure({"dir": str(first.path), "fingerprint": first.fingerprint, "split": None}, tmp_path, 99).path
        == first.path
    )


def test_a_changed_drawing_changes_the_name(tmp_path, builds, monkeypatch):
    ensure(SYNTHETIC, tmp_path, 48, workers=1)
    monkeypatch.setattr(verbs, "_world_code", lambda: "other")
    ensure(SYNTHETIC, tmp_path, 48, workers=1)
    assert len(set(builds)) == 2


def test_a_folder_is_prepared_anew_when_it_changes(tmp_path, own_folder, builds):
    rows = [{"image_path": f"{n}.png", "labels": "Edema", "view": "PA"} for n in range(3)]
    raw = own_folder(rows)
    section = FOLDER | {"raw_dir": str(raw)}

    def path() -> Path:
        return ensure(section, tmp_path / "cache", 32, workers=1).path

    first = path()
    assert path() == first
    assert len(builds) == 2  # the second call only finds it finished
    rows[0]["labels"] = ""
    own_folder(rows)
    second = path()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(raw / "0.png")
    os.utime(raw / "0.png", (0, 0))
    third = path()
    assert len({first, second, third}) == 3
    assert pd.isna(ensure(section, tmp_path / "cache", 32).image_labels[0]).all()
    report = json.loads((third / "prepare_report.json").read_text())
    assert report["images"] == 3


def test_ensure_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"data=folder needs data\.dir=PREPARED .* or data\.raw_dir=FOLDER"):
        ensure(FOLDER, tmp_path, 32)
    with pytest.raises(UserError, match=r"target=folder needs target\.dir=PREPARED"):
        ensure(FOLDER | {"kind": "multilabel"}, tmp_path, 32)
    with pytest.raises(UserError, match="no such directory"):
        ensure(FOLDER | {"raw_dir": str(tmp_path / "none")}, tmp_path, 32)
    assert not list(tmp_path.iterdir())
