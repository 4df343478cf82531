"""Every data set in the tree: facts, configuration, raw layout, and the way from raw to prepared."""

import importlib
import inspect
import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from hydra.utils import get_object

from vlp_bench.config import compose_verb, groups, plain
from vlp_bench.data import sources
from vlp_bench.data.prepare import Plan, prepare
from vlp_bench.data.store import PreparedData
from vlp_bench.data.study import SPLITS
from vlp_bench.data.synthetic.writing import layout_names, write_raw

NAMES = sorted(p.stem for p in Path(sources.__file__).parent.glob("*.py") if not p.stem.startswith("_"))
FACTS = {p.name.removesuffix(".yaml"): p for p in files("vlp_bench.datasets").iterdir() if p.name.endswith(".yaml")}
#: with this seed every split has some of the studies, and every finding occurs
STUDIES, SEED, SIZE = 12, 319, 64
TYPES = {
    "title": str, "obtain": str, "how": str, "access": str, "licence": str, "citation": str, "derived_from": dict,
    "versions": dict, "counts": dict, "splits": dict, "unverified": list, "notes": list,
}  # fmt: skip


@cache
def data(name: str) -> dict:
    return plain(compose_verb("prepare", [f"data={name}", "data.raw_dir=RAW", "data.dir=OUT"]).data)


@cache
def target(option: str) -> dict:
    return plain(compose_verb("evaluate", [f"target={option}"]).target)


def targets_of(name: str) -> list[str]:
    """Target configurations that a reader serves."""
    wanted = f"vlp_bench.data.sources.{name}.read"
    return [o for o in groups()["target"] if o != "synthetic" and target(o)["reader"]["_target_"] == wanted]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """The raw layout of a data set, written once."""
    made: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "raw"
            write_raw(name, made[name], studies=STUDIES, seed=SEED, size=SIZE)
        return made[name]

    return write


def read(raw: Path, reader: dict):
    options = dict(reader)
    return get_object(options.pop("_target_"))(raw, **options)


def test_nothing_belongs_to_no_reader():
    assert {"folder", "mimic_cxr"} <= set(NAMES)
    assert set(FACTS) == set(NAMES)
    assert set(layout_names()) == set(NAMES)


# Facts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_facts_have_the_form_that_doctor_reads(name):
    facts = yaml.safe_load(FACTS[name].read_text("utf-8"))
    assert list(facts) == list(TYPES)
    for key, kind in TYPES.items():
        assert isinstance(facts[key], kind), key
        assert kind is not str or facts[key].strip(), key
    assert facts["obtain"].startswith("https://") or name == "folder"
    assert facts["access"] in ("open", "account", "credentialed")
    assert set(facts["derived_from"]) <= set(NAMES) - {name}
    assert all(isinstance(said, str) and said.strip() for said in facts["derived_from"].values())
    assert all(isinstance(n, int) and n > 0 for n in facts["counts"].values())
    for key in ("unverified", "notes"):
        assert all(isinstance(said, str) and said.strip() for said in facts[key]), key
    for parts in facts["splits"].values():
        assert parts
        assert set(parts) <= set(SPLITS)
        assert all(isinstance(n, int) and n > 0 for n in parts.values())


@pytest.mark.parametrize("name", NAMES)
def test_facts_of_files(name):
    versions = yaml.safe_load(FACTS[name].read_text("utf-8"))["versions"]
    assert versions
    for version in versions.values():
        assert set(version) == {"files"}
        assert version["files"]
        for pattern, known in version["files"].items():
            assert not Path(pattern).is_absolute()
            assert ".." not in pattern
            assert set(known) <= {"rows", "count", "sha256", "bytes", "optional"}, pattern
            assert all(isinstance(known[k], int) and known[k] > 0 for k in ("rows", "count", "bytes") if k in known)
            assert isinstance(known.get("optional", True), bool)
            assert re.fullmatch("[0-9a-f]{64}", known.get("sha256", "0" * 64))


# Configuration --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_configurations_fit_the_reader(name):
    assert data(name)["name"] == name
    assert data(name)["reader"]["_target_"] == f"vlp_bench.data.sources.{name}.read"
    assert name in targets_of(name)
    for cfg in (data(name), *map(target, targets_of(name))):
        options = dict(cfg["reader"])
        known = inspect.signature(get_object(options.pop("_target_"))).parameters
        assert next(iter(known)) == "raw_dir"
        assert set(options) <= set(known)


@pytest.mark.parametrize("name", NAMES)
def test_credentialed_data_never_leave_the_machine(name):
    if yaml.safe_load(FACTS[name].read_text("utf-8"))["access"] == "credentialed":
        assert data(name)["private"]
        assert all(target(option)["private"] for option in targets_of(name))


# From raw to prepared -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_layout_has_the_files_of_the_newest_version(name, raw):
    newest = next(iter(yaml.safe_load(FACTS[name].read_text("utf-8"))["versions"].values()))["files"]
    for pattern, known in newest.items():
        assert known.get("optional") or any(raw(name).glob(pattern)), f"no {pattern}"


@pytest.mark.parametrize("name", NAMES)
def test_raw_to_prepared(name, raw, tmp_path):
    """A layout may name in PLANTED the kinds of problems that it makes rows get lost by."""
    planted = getattr(importlib.import_module(f"vlp_bench.data.synthetic.layouts.{name}"), "PLANTED", ())
    source = read(raw(name), data(name)["reader"])
    ids = [i.image_id for s in source.studies for i in s.images]
    assert len(ids) == len(set(ids)) > 0
    studies = [s.study_id for s in source.studies]
    assert len(studies) == len(set(studies))
    assert {s.split for s in source.studies} <= set(SPLITS)
    for division in source.divisions:
        assert division.name == division.name.lower()
        assert division.origin
        assert set(division.parts) <= set(ids)
        assert all(where and set(where.split()) <= set(SPLITS) for where in division.parts.values())
    manifest = prepare(source, tmp_path / "out", Plan(SIZE), private=True, max_bad_fraction=0.5)
    problems = json.loads((tmp_path / "out" / "prepare_report.json").read_text())["problems"]
    assert [p for p in problems if p["lost"] and p["kind"] not in planted] == []
    assert manifest["counts"]["images"] == len(ids)
    store = PreparedData(tmp_path / "out")
    assert store.images.groupby("patient_id")["split"].nunique().max() == 1
    assert store.pixels(store.images.index.to_numpy()).any((1, 2)).all()


@pytest.mark.parametrize("name", NAMES)
def test_targets_have_their_labels(name, raw):
    for option in targets_of(name):
        labels = target(option)["labels"] or []
        wanted = labels.values() if isinstance(labels, dict) else labels
        there = read(raw(name), target(option)["reader"]).labels
        assert {label.removeprefix("!") for label in wanted} <= set(there), option


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_workers_write_the_same_bytes(name, raw, tmp_path):
    write_raw(name, tmp_path / "two", studies=STUDIES, seed=SEED, size=SIZE, workers=2)

    def contents(root: Path) -> dict[str, bytes]:
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    assert contents(tmp_path / "two") == contents(raw(name))
