"""What the doctor says of data sets as they were downloaded, and of prepared data."""

import hashlib
import json
import shutil

import pandas as pd
import pytest
from helpers import run_cli

from vlp_bench.data import catalogue
from vlp_bench.data.catalogue import Found, count_rows, overlap, versions
from vlp_bench.data.synthetic import write_raw


@pytest.fixture
def doctor(capsys):
    """What a doctor's visit prints; it may end with an error."""

    def visit(*arguments: str, code: int = 0) -> str:
        assert run_cli("doctor", *arguments) == code
        said = capsys.readouterr()
        return said.out + said.err

    return visit


FACTS = {
    "how": "Ask for it.",
    "obtain": "https://example.org",
    "derived_from": {},
    "versions": {
        "2": {
            "files": {
                "new.csv": {"rows": 3, "sha256": hashlib.sha256(b"a\n1\n2\n3\n").hexdigest()},
                "x/*": {"count": 2},
            }
        },
        "1": {"files": {"old.csv": {"rows": 2}, "x/*": {"count": 2}, "more.txt": {"rows": 1, "optional": True}}},
    },
}


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr(catalogue, "facts", lambda name: FACTS)


def test_the_version_that_fits_best_comes_first(known, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "1.png").touch()
    (tmp_path / "old.csv").write_text('a\n"1\n1"\n2\n')
    found = versions("any", tmp_path)
    assert list(found) == ["1", "2"]
    assert found["1"] == [
        Found("old.csv", "as published", "2 rows"),
        Found("x/*", "part", "1 files (published: 2)"),
        Found("more.txt", "missing", "missing", optional=True),
    ]
    (tmp_path / "new.csv").write_text("a\n1\n2\n3\n")
    (tmp_path / "x" / "2.png").touch()
    assert [f.state for f in versions("any", tmp_path)["2"]] == ["as published"] * 2
    (tmp_path / "new.csv").write_text("a\n1\n2\n4\n")
    file = versions("any", tmp_path)["2"][0]
    assert (file.state, file.said) == ("other", "3 rows, its hash is not the published one")


def test_hashes_that_came_with_the_download(known, tmp_path):
    content = b"a\n1\n2\n"
    (tmp_path / "old.csv").write_bytes(content)
    sums = tmp_path / "SHA256SUMS.txt"
    sums.write_text(f"\n{'0' * 64}  old.csv\n{'1' * 64} *x/1.png\n")
    assert versions("any", tmp_path)["1"][0].said == "2 rows, its hash is not the published one"
    sums.write_text(f"{hashlib.sha256(content).hexdigest()}  old.csv\n")
    assert versions("any", tmp_path)["1"][0] == Found(
        "old.csv", "as published", "2 rows, its hash is the published one"
    )


def test_rows_of_every_kind_of_file(tmp_path):
    pd.DataFrame({"a": [1, 2], "b": ["x\ny", "z"]}).to_csv(tmp_path / "a.csv.gz", index=False)
    (tmp_path / "list.txt").write_text("a 0\n\nb 1\n")
    (tmp_path / "questions.json").write_text(json.dumps([{}, {}, {}]))
    assert [count_rows(tmp_path / n) for n in ("a.csv.gz", "list.txt", "questions.json")] == [2, 2, 3]


def test_data_sets_that_share_images(monkeypatch):
    parts = {"nih": {}, "rsna": {"nih": "all of it"}, "covidx": {"rsna": "a half"}, "siim": {"nih": "all"}, "other": {}}
    monkeypatch.setattr(catalogue, "facts", lambda name: {"derived_from": parts[name]})
    monkeypatch.setattr(catalogue, "names", lambda: list(parts))
    assert overlap("nih", "rsna") == overlap("rsna", "nih") == "rsna is a part of nih (all of it)"
    assert overlap("covidx", "nih") == "covidx is a part of nih (a half; all of it)"
    assert overlap("rsna", "siim") == "both are parts of nih"
    assert overlap("rsna", "rsna") == "the same data set"
    assert overlap("rsna", "other") == overlap("nobody", "rsna") == ""


def test_this_machine_and_what_is_known(doctor):
    said = doctor()
    assert "processors" in said
    assert "mimic_cxr" in said
    said = doctor("data=shenzhen")
    for part in ("from https://", "CXR_png", "662 files", "split refers: train 463, val 67, test 132"):
        assert part in said


def test_a_download_with_something_missing(doctor, tmp_path):
    raw = tmp_path / "raw"
    write_raw("covidx", raw, studies=40, seed=1, size=64)
    said = doctor("data=covidx", f"data.raw_dir={raw}")
    assert "looks like version CXR-4" in said
    assert "rows (published: 67,863)" in said
    assert "split official" in said
    assert "patient in two lists" in said
    assert "a second each), 0.0 GB" in said
    shutil.rmtree(raw / "val")
    said = doctor("data=covidx", f"data.raw_dir={raw}")
    assert "MISSING  val/*" in said
    assert "what is missing: Kaggle account" in said
    for path in (raw / "train").iterdir():
        path.write_bytes(b"")
    assert "cannot be read" in doctor("data=covidx", f"data.raw_dir={raw}")


def test_a_folder_with_nothing_of_it(doctor, tmp_path):
    said = doctor("data=covidx", f"data.raw_dir={tmp_path}", code=2)
    assert "none of the files of covidx is here" in said
    assert "No train.txt" in said


def test_planted_copies_in_prepared_data(doctor, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_raw("folder", raw, studies=30, seed=3, size=80)
    table = pd.read_csv(raw / "metadata.csv", dtype=str, keep_default_na=False)
    split = table["split"].to_numpy()
    here, there = (int((split == part).nonzero()[0][0]) for part in ("train", "test"))
    shutil.copy(raw / table["image_path"][here], raw / table["image_path"][there])
    prepare = ["data=folder", f"data.raw_dir={raw}", f"data.dir={out}", "data.store_size=64"]
    assert run_cli("prepare", *prepare) == 0
    said = doctor("data=folder", f"data.dir={out}", "audit=true", f"against={out}")
    assert "1 pairs, 1 of different patients, 1 across splits" in said
    assert f"{table['image_path'][here]} (train)" in said
    assert f"{table['image_path'][there]} (test)" in said
    assert f"copies of images of {out}: {len(table)}" in said
    found = json.loads((out / "audit.json").read_text())
    assert found["across_splits"] == 1
    assert len(pd.read_csv(out / "audit_copies.csv")) == 1
    assert "across" not in doctor("data=folder", f"data.dir={out}")


def test_what_is_known_of_shared_images():
    assert overlap("nih", "rsna").startswith("rsna is a part of nih")
    assert overlap("siim", "nih").startswith("siim is a part of nih")
    assert overlap("rsna", "siim") == "both are parts of nih"
    assert overlap("mimic_cxr", "nih") == ""


def test_an_encoder_that_saw_the_test_images_is_marked(tmp_path, monkeypatch):
    """Pre-trained on one data set, tested on a part of it; what the user declares counts as well."""
    monkeypatch.chdir(tmp_path)
    common = ["trainer=smoke", "vision=tiny", "paths.cache=cache", "paths.output_root=runs"]
    write_raw("rsna", tmp_path / "rsna", studies=120, seed=3, size=64)
    run = ["evaluate", "backbone=random", "target=rsna", "target.raw_dir=rsna", "adaptation=probe_cached", *common]
    assert run_cli(*run) == 0
    assert run_cli(*run, "exposure=[nih]", "seed=1") == 0
    found = [json.loads(p.read_text())["provenance"]["exposure"] for p in tmp_path.glob("runs/evaluate/*/result.json")]
    assert sorted(map(len, found)) == [0, 1]
    assert max(found)[0].startswith("pre-trained on nih: rsna is a part of nih")
