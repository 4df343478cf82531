"""CheXpert: its tables, the folders in which people have it, and the divisions that published code draws."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vlp_bench.data.divisions import leaks
from vlp_bench.data.prepare import Plan, index_hash, prepare
from vlp_bench.data.sources import chexpert
from vlp_bench.data.sources._five import FIVE
from vlp_bench.data.sources.chexpert import LABELS, read
from vlp_bench.data.store import PreparedData
from vlp_bench.data.synthetic import sample_studies, write_raw
from vlp_bench.errors import UserError


@pytest.fixture(scope="module")
def world():
    return sample_studies(40, 1)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("chexpert") / "CheXpert-v1.0-small"
    write_raw("chexpert", path, studies=40, seed=1, size=64)
    return path


@pytest.fixture
def copy(raw, tmp_path) -> Path:
    return Path(shutil.copytree(raw, tmp_path / "dätä" / "CheXpert-v1.0-small"))


def edit(path: Path, change) -> None:
    change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)


def splits(source) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for study in source.studies:
        found.setdefault(study.split, set()).add(study.patient_id)
    return found


def test_studies_are_those_of_the_world(raw, world, tmp_path):
    source = read(raw, test="released")
    assert source.labels == LABELS
    assert not source.problems
    truth = {f"patient{s.patient_id}/study{s.study_id}": s for s in world}
    assert {s.study_id.partition("/")[2] for s in source.studies} == set(truth)
    for study in source.studies:
        true = truth[study.study_id.partition("/")[2]]
        assert study.split == {"validate": "val"}.get(true.split, true.split)
        assert len(study.images) == len(true.images)
        for image, drawn in zip(study.images, true.images, strict=True):
            lateral = drawn.view == "LATERAL"
            assert image.view in (["LATERAL"] if lateral else [drawn.view, "FRONTAL"])
            assert image.labels is None
        if true.split == "train":
            assert study.labels == {k: v for k, v in true.labels.items() if v is not None}
        else:
            assert set(study.labels) == set(LABELS)
            assert all(study.labels[name] == present for name, present in true.truth.items())
    prepare(source, tmp_path / "out", Plan(64), private=True)
    store = PreparedData(tmp_path / "out")
    assert len(store.images) == sum(len(s.images) for s in world)
    assert (store.studies["findings"] != "").mean() > 0.5
    about = json.loads(store.images["extra"].iloc[0])
    assert about["sex"] in ("Female", "Male", "Unknown")
    assert not any(
        "broken" in p["kind"] for p in json.loads((store.path / "prepare_report.json").read_text())["problems"]
    )


def test_own_split_never_has_a_patient_twice(raw):
    published, later = splits(read(raw)), splits(read(raw, test="released"))
    for found in (published, later):
        assert not (found["train"] & found["test"]) | (found["train"] & found["val"]) | (found["val"] & found["test"])
    assert published["test"] == later["val"]
    assert published["train"] | published["val"] == later["train"]
    assert (
        Counter(s.split for s in read(raw).studies)["test"]
        == Counter(s.split for s in read(raw, "released").studies)["val"]
    )


def test_the_folder_above_and_the_batches_of_the_full_download(raw, copy):
    whole = read(raw)
    above = read(copy.parent)
    assert [s.study_id for s in above.studies] == [s.study_id for s in whole.studies]
    assert all((copy.parent / i.path).is_file() for s in above.studies for i in s.images)
    first, second, third = (
        copy.parent / f"CheXpert-v1.0 batch {n}" for n in ("1 (validate & csv)", "2 (train 1)", "3 (train 2)")
    )
    for folder in (first, second, third):
        folder.mkdir()
    for name in ("train.csv", "valid.csv", "valid"):
        (copy / name).rename(first / name)
    for n, patient in enumerate(sorted((copy / "train").iterdir())):
        patient.rename((second, third)[n % 2] / patient.name)
    batches = read(copy.parent)
    assert [s.study_id for s in batches.studies] == [s.study_id for s in whole.studies]
    assert all((copy.parent / i.path).is_file() for s in batches.studies for i in s.images)


def test_two_copies_are_refused(copy):
    shutil.copytree(copy, copy.parent / "CheXpert-v1.0")
    with pytest.raises(UserError, match=r"several copies of CheXpert: CheXpert-v1\.0, CheXpert-v1\.0-small"):
        read(copy.parent)


@pytest.mark.parametrize("name", ["train", "valid"])
def test_missing_table_and_column(copy, name):
    edit(copy / f"{name}.csv", lambda t: t.drop(columns="Edema"))
    with pytest.raises(UserError, match=rf"{name}\.csv lacks the column Edema \(it has Path"):
        read(copy)
    (copy / f"{name}.csv").unlink()
    with pytest.raises(UserError, match=rf"{name}\.csv.*It comes with CheXpert"):
        read(copy)


def test_a_part_of_the_patients(copy, tmp_path):
    patients = sorted((copy / "train").iterdir())
    for patient in patients[3:]:
        shutil.rmtree(patient)
    with pytest.raises(UserError, match=r"of \d+ patients have no folder .*data\.reader\.complete=false"):
        read(copy)
    source = read(copy, complete=False)
    assert {p for part in ("train", "val") for p in splits(source).get(part, ())} == {p.name for p in patients[:3]}
    (said,) = source.problems
    assert "images are left out" in said.reason
    assert not said.lost
    prepare(source, tmp_path / "out", Plan(32), private=True)


def test_the_released_test_set_in_both_its_forms(copy, raw):
    table = pd.read_csv(copy / "test_labels.csv")
    (copy / "test_labels.csv").unlink()
    with pytest.raises(UserError, match=r"No test_labels\.csv nor groundtruth\.csv .* leave data\.reader\.test=valid"):
        read(copy, test="released")
    studies = table.assign(Study="CheXpert-v1.0/" + table["Path"].str.rsplit("/", n=1).str[0]).drop(columns="Path")
    studies.drop_duplicates("Study").to_csv(copy / "groundtruth.csv", index=False)
    assert index_hash(read(copy, test="released")) == index_hash(read(raw, test="released"))
    studies.drop(columns="Study").to_csv(copy / "groundtruth.csv", index=False)
    with pytest.raises(UserError, match="lacks the columns Path and Study"):
        read(copy, test="released")


def test_odd_rows_are_listed_and_stop_nothing(copy, raw):
    def spoil(table):
        table = pd.concat([table, table.iloc[[1]], table.iloc[[2]].assign(Path="CheXpert-v1.0-small/train/x.jpg")])
        table.iloc[0, table.columns.get_loc("Edema")] = "maybe"
        return table

    edit(copy / "train.csv", spoil)
    found = {p.kind: p for p in read(copy).problems}
    assert set(found) == {"label", "duplicate", "Path"}
    assert found["label"].where == "train.csv row 2"
    assert "Edema='maybe'" in found["label"].reason
    assert not found["label"].lost
    assert found["duplicate"].lost
    assert found["Path"].lost
    assert "Edema" not in read(copy).studies[0].labels
    assert len(read(copy).studies) == len(read(raw).studies)


def test_a_view_with_labels_of_its_own(copy):
    table = pd.read_csv(copy / "train.csv", dtype=str, keep_default_na=False)
    study = table["Path"].str.rsplit("/", n=1).str[0]
    last = table.index[study.duplicated()][0]
    edit(copy / "train.csv", lambda t: t.assign(Fracture=t["Fracture"].where(t.index != last, "-1.0")))
    own = next(i for s in read(copy).studies for i in s.images if i.labels is not None)
    assert own.labels["Fracture"] == -1
    assert own.path.endswith(table["Path"][last].partition("/")[2])


def test_blank_is_unknown_unless_absent_is_asked_for(raw):
    unknown, absent = read(raw), read(raw, blank="absent")
    train = [(u.labels, a.labels) for u, a in zip(unknown.studies, absent.studies, strict=True) if u.split == "train"]
    assert any(len(u) < len(LABELS) for u, _ in train)
    for u, a in train:
        assert dict(a) == dict.fromkeys(LABELS, 0.0) | dict(u)
    for option in ({"blank": "zero"}, {"test": "all"}):
        with pytest.raises(UserError, match=r"data\.reader\.\w+=\w+: expected one of"):
            read(raw, **option)


# Divisions ------------------------------------------------------------------------------------------------------------


def numbered(path: Path, rows: int, seed: int = 0) -> pd.DataFrame:
    """CheXpert's tables by number, without a single image."""
    rng = np.random.default_rng(seed)
    number = np.arange(rows)
    lateral = rng.random(rows) < 0.15
    values = np.full((rows, len(LABELS)), "", object)
    some = rng.random((rows, len(LABELS))) < 0.02
    values[some] = rng.choice(["1.0", "0.0", "-1.0"], int(some.sum()))
    values[number, [LABELS.index(FIVE[c]) for c in rng.integers(0, 5, rows)]] = "1.0"
    where = [
        f"patient{n // 3 + 1:05d}/study{n % 3 + 1}/view1_{'lateral' if s else 'frontal'}.jpg"
        for n, s in enumerate(lateral)
    ]

    def written(names, labels, views):
        about = {"Path": names, "Sex": "Female", "Age": "60", "Frontal/Lateral": np.where(views, "Lateral", "Frontal")}
        return pd.DataFrame(about | {"AP/PA": np.where(views, "", "AP")} | dict(zip(LABELS, labels.T, strict=True)))

    path.mkdir()
    train = written([f"CheXpert-v1.0/train/{w}" for w in where], values, lateral)
    train.to_csv(path / "train.csv", index=False)
    names = [f"CheXpert-v1.0/valid/patient{64541 + n}/study1/view1_frontal.jpg" for n in range(20)]
    written(names, np.full((20, 14), "0.0", object), np.zeros(20, bool)).to_csv(path / "valid.csv", index=False)
    for part, patient in {tuple(p.split("/")[1:3]) for p in [*train["Path"], *names]}:
        (path / part / patient).mkdir(parents=True)
    return train


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    path = tmp_path_factory.mktemp("numbers") / "CheXpert-v1.0"
    train = numbered(path, 7000)
    return path, train, read(path)


def published(train: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Train, val and 5x200 by pandas and numpy's global generator, as the published recipe reads."""
    np.random.seed(0)  # noqa: NPY002
    numeric = train.replace("", "0").astype({name: float for name in LABELS})
    frontal = numeric[numeric["Frontal/Lateral"] == "Frontal"]
    others = [name for name in LABELS if name != "No Finding"]
    drawn = []
    for name in FIVE:
        wanted = np.array([float(o == name) for o in others])
        drawn.append(frontal[(frontal[others] == wanted).all(axis=1)].sample(n=200, random_state=0))
    five = pd.concat(drawn)
    left = train[~train["Path"].isin(five["Path"])]
    places = np.random.choice(len(left), size=5000, replace=False)  # noqa: NPY002
    return left.drop(places, errors="ignore"), left.iloc[places], five


def test_5x200_and_mgca_are_those_of_the_recipe(numbers):
    _, train, source = numbers
    divisions = {d.name: d for d in source.divisions}
    kept, val, five = published(train)
    of = lambda frame: {p.partition("/")[2] for p in frame["Path"][frame["Frontal/Lateral"] == "Frontal"]}  # noqa: E731
    test = {i for i, part in divisions["5x200"].parts.items() if part == "test"}
    assert test == of(five)
    assert len(test) == 1000
    mgca = divisions["mgca"].parts
    assert {i for i, part in mgca.items() if "train" in part.split()} == of(kept)
    assert {i for i, part in mgca.items() if "val" in part.split()} == of(val)
    assert any(part == "train val" for part in mgca.values()), "its code leaks"
    assert sum(part == "test" for part in mgca.values()) == 20
    left = divisions["without_5x200"].parts
    owners = {i.split("/")[1] for i in test}
    assert owners.isdisjoint(i.split("/")[1] for i in left)
    assert len(left) == sum(i.image_id.split("/")[1] not in owners for s in source.studies for i in s.images)


def test_5x200_takes_exclusive_frontal_images_in_equal_numbers(numbers):
    source = numbers[2]
    division = next(d for d in source.divisions if d.name == "5x200")
    shown = {i.image_id: (s, i) for s in source.studies for i in s.images}
    counts: Counter = Counter()
    for name, part in division.parts.items():
        study, image = shown[name]
        positive = [k for k, v in (image.labels or study.labels).items() if v != 0 and k != "No Finding"]
        assert len(positive) == 1
        assert image.view == "AP"
        counts[part, positive[0]] += 1
    assert {counts["test", name] for name in FIVE} == {200}
    assert {counts["val", name] for name in FIVE} == {40}
    assert leaks(source, division) == {"images": 0, "patients": 0}


def test_few_rows_have_a_smaller_5x200_and_no_mgca(tmp_path):
    numbered(tmp_path / "few", 300, seed=3)
    source = read(tmp_path / "few")
    parts = Counter(next(d for d in source.divisions if d.name == "5x200").parts.values())
    assert 0 < parts["test"] < 1000
    assert parts["test"] % 5 == 0
    assert "mgca" not in {d.name for d in source.divisions}


def test_published_lists_in_their_forms(tmp_path):
    path = tmp_path / "small"
    train = numbered(path, 60)
    names = train["Path"][:6].to_list()
    ids = {n.partition("/")[2] for n in names}
    forms = {
        "gloria.csv": lambda p: train.iloc[:6].to_csv(p),
        "prior.json": lambda p: p.write_text(
            json.dumps(
                {str(n): {"image_path": f"D:/me/{i}", "label": [1, 0, 0, 0, 0]} for n, i in enumerate(sorted(ids))}
            )
        ),
        "plain.txt": lambda p: p.write_text(
            "\n".join(f"/my/{n} 1 0" if k else f"/my disk/{n}" for k, n in enumerate(names))
        ),
    }
    for name, write in forms.items():
        write(tmp_path / name)
        division = read(path, lists=str(tmp_path / name)).divisions[-1]
        assert division.name == "lists"
        assert division.parts == dict.fromkeys(ids, "test"), name
    folder = tmp_path / "lists"
    folder.mkdir()
    train.iloc[:2].to_csv(folder / "train.csv")
    (folder / "valid.txt").write_text(f"{names[2]}\n")
    (folder / "test.txt").write_text(f"{names[3]},1\n{names[0]}\n")
    assert sorted(read(path, lists=str(folder)).divisions[-1].parts.values()) == ["test", "train", "train test", "val"]
    (tmp_path / "other.csv").write_text("Path\nx/y.jpg\n")
    for wrong, said in (
        ("other.csv", "names no image that is here"),
        ("none", "no such file"),
        (".", "holds no lists"),
    ):
        with pytest.raises(UserError, match=said):
            read(path, lists=str(tmp_path / wrong))


def test_the_files_are_the_same_whatever_the_workers(raw, tmp_path):
    write_raw("chexpert", tmp_path / "two", studies=40, seed=1, size=64, workers=2)
    files = sorted(p.relative_to(raw) for p in raw.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*") if p.is_file())
    assert all((raw / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


def test_column_order_of_the_layout_is_that_of_the_file(raw):
    assert list(pd.read_csv(raw / "train.csv").columns) == [
        "Path",
        "Sex",
        "Age",
        "Frontal/Lateral",
        "AP/PA",
        *chexpert.LABELS,
    ]
