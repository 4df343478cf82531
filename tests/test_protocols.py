"""Protocols: values by target and label fraction, what a run changes, what is said of it."""

import json

import pytest
import yaml
from helpers import only, run_cli
from omegaconf.errors import OmegaConfBaseException

from vlp_bench.config import check, compose_verb, groups, plain, root_dir, run_name
from vlp_bench.engine.evaluate import _protocol, _recipe

PUBLISHED = [name for name in groups()["protocol"] if name != "honest"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_protocol_says_where_it_is_from_and_what_it_breaks(name):
    cfg = compose_verb("evaluate", [f"protocol={name}"])
    said = plain(cfg.protocol)
    assert said["name"] == name
    assert said["source"]
    assert {"breaks", "differs"} <= said.keys()
    assert check(cfg) == []
    assert _protocol(cfg)["departures"] == []


def test_honest_is_the_default_and_breaks_nothing():
    said = _protocol(compose_verb("evaluate"))
    assert said["name"] == "honest"
    assert said["breaks"] == said["differs"] == said["departures"] == []


@pytest.mark.parametrize(
    "target, fraction, lr, epochs, batch",
    [
        ("rsna", 1.0, 1e-4, 5, 64),
        ("rsna", 0.01, 1e-4, 10, 64),
        ("siim", 0.1, 1e-5, 20, 64),
        ("chexpert", 1.0, 1e-6, 5, 256),
        ("somebody's", 0.3, 1e-4, 10, 64),
    ],
)
def test_values_by_target_and_fraction(target, fraction, lr, epochs, batch):
    """Supplement of PRIOR, table of fine-tuning."""
    overrides = ["protocol=prior_classification", f'target.name="{target}"', f"label_fraction={fraction}"]
    adaptation = plain(compose_verb("evaluate", overrides).adaptation)
    assert (adaptation["lr"], adaptation["epochs"], adaptation["batch_size"]) == (lr, epochs, batch)


def test_what_a_run_changes_is_said():
    cfg = compose_verb("evaluate", ["protocol=mgca_linear", "adaptation.epochs=3", "subset=patient"])
    assert _protocol(cfg)["departures"] == ["adaptation.epochs=3, published 50", "subset=patient, published image"]


def test_fractions_of_one_protocol_are_one_recipe_and_another_rate_is_not():
    def recipe(*overrides):
        return _recipe(compose_verb("evaluate", ["protocol=prior_classification", "target.name=siim", *overrides]))

    assert recipe("label_fraction=0.01") == recipe("label_fraction=1.0")
    assert recipe("adaptation.lr=3e-4") != recipe()
    names = {run_name(compose_verb("evaluate", ["protocol=refers_ft", f"draw={i}"])) for i in (0, 1)}
    assert len(names) == 2


def test_a_table_without_the_run_is_refused(tmp_path):
    (tmp_path / "protocol").mkdir()
    rows = {"protocol": {"name": "mine", "source": "us", "breaks": [], "recipes": [{"target": "rsna", "lr": 0.1}]}}
    text = "# @package _global_\n" + yaml.safe_dump(rows | {"adaptation": {"lr": "${recipe:lr}"}})
    (tmp_path / "protocol" / "mine.yaml").write_text(text)
    assert plain(compose_verb("evaluate", ["protocol=mine", "target.name=rsna"], tmp_path).adaptation)["lr"] == 0.1
    with pytest.raises(OmegaConfBaseException, match="publishes nothing for target=synthetic"):
        plain(compose_verb("evaluate", ["protocol=mine"], tmp_path).adaptation)


def test_published_splits_are_taken_and_other_ones_are_departures():
    def cell(*overrides):
        return compose_verb("evaluate", ["protocol=mgca_linear", "target.name=rsna", *overrides])

    assert cell().target.split == "mgca_cls"
    assert _protocol(cell())["departures"] == []
    assert _protocol(cell("target.split=null"))["departures"] == ["target.split=None, published mgca_cls"]
    assert compose_verb("evaluate", ["protocol=mgca_linear"]).target.split is None
    assert compose_verb("evaluate", ["target.name=rsna"]).target.split is None


def test_every_protocol_file_names_its_paper():
    for name in PUBLISHED:
        text = (root_dir() / "protocol" / f"{name}.yaml").read_text()
        assert text.startswith("# @package _global_")


@pytest.mark.slow
def test_a_run_under_a_protocol_keeps_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_cli("evaluate", "protocol=refers_ft", "trainer=smoke", "adaptation.max_steps=2") == 0
    said = json.loads((only(tmp_path, "runs/evaluate/*/result.json")).read_text())["protocol"]
    assert said["name"] == "refers_ft"
    assert any("max_steps" in line for line in said["departures"])
    assert len(said["breaks"]) == 2
