"""The workspace and the report at wandb: what they are made of, and that the second call changes those of the first."""

import base64
import json
import re

import pytest
import wandb
from helpers import run_cli
from report_fixtures import FRACTIONS, write_runs
from wandb.errors import UsageError

from vlp_bench import vocabulary
from vlp_bench.errors import UserError
from vlp_bench.report import dashboard
from vlp_bench.report.boards import boards
from vlp_bench.report.collect import collect

PLACE = {"entity": "hospital", "project": "chests"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def made(runs):
    """The workspace and the report as they are sent, as JSON."""
    found = collect(runs)
    arguments = (found, boards(found.evaluations), "What helps/hurts")
    built = dashboard.workspace(*arguments, **PLACE), dashboard.report(*arguments, **PLACE)
    return [json.loads(b._to_model().model_dump_json(by_alias=True, exclude_none=True)) for b in built]


def nodes(tree):
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from nodes(child)


def panels(tree):
    return [n for n in nodes(tree) if "viewType" in n]


def drawn(tree):
    return [name for panel in panels(tree) for name in panel["config"].get("metrics", ())]


def test_the_workspace_has_every_curve_and_every_board_and_compares_encoders(made):
    section = made[0]["spec"]["section"]
    sections = {s["name"]: s for s in section["panelBankConfig"]["sections"]}
    compared = ["Classification · openi · linear probe · official", "Retrieval · openi · zero shot · official"]
    assert [*sections] == [*vocabulary.PANELS, *compared]
    assert drawn(sections["Losses"])[:2] == ["train/loss", "val/loss"]
    assert {"train/loss/token", "val/loss/token", "train/loss/prototype"} <= set(drawn(sections["Losses"]))
    assert drawn(sections["Learning rate"]) == ["lr"]
    assert drawn(sections["Data wait"]) == ["throughput/data_wait"]
    assert drawn(sections["Memory"]) == ["throughput/memory_gb"]
    (runset,) = section["runSets"]
    assert runset["grouping"] == [{"section": "config", "name": "encoders.value"}]
    assert section["settings"]["shouldAutoGeneratePanels"]


def test_measures_are_drawn_with_their_intervals_by_target_and_fraction(made):
    of = "classification-openi-linear_probe-official"
    for tree in made:
        (auroc,) = (p for p in panels(tree) if f"{of}/test/auroc" in p["config"].get("metrics", ()))
        assert auroc["config"]["metrics"] == [f"{of}/{kind}/auroc" for kind in ("test", "low", "high")]
        assert auroc["config"]["xAxis"] == "label_fraction"
        assert auroc["config"]["chartTitle"] == "AUROC"
        (recall,) = (p for p in panels(tree) if any(m.endswith("/test/i2t/R@5") for m in drawn(p)))
        assert recall["viewType"] == "Bar Chart"


def test_only_what_the_vocabulary_declares_is_drawn(made):
    names = set(drawn(made[0]) + drawn(made[1]))
    assert len(names) > 40
    for name in names:
        kind, _, rest = name.partition("/")[2].partition("/")
        declared = vocabulary.measure(rest) if kind in ("test", "low", "high") else None
        assert declared or vocabulary.curve(name), name


def test_the_report_has_a_set_of_runs_for_each_row_and_the_table_with_intervals(made):
    blocks = made[1]["spec"]["blocks"]
    (table, *_) = (b["content"] for b in blocks if b["type"] == "markdown-block")
    (line,) = (line for line in table.splitlines() if line.startswith("| mgca resnet18"))
    assert len(re.findall(r"0\.\d{3}\W+\(?0\.\d{3}–0\.\d{3}", line)) == len(FRACTIONS), line
    assert all(f"{100 * fraction:g}" in table.splitlines()[0] for fraction in FRACTIONS)
    grids = [b["metadata"]["runSets"] for b in blocks if b["type"] == "panel-grid"]
    assert [r["name"] for r in grids[0]] == ["mgca resnet18 full", "random resnet18", "timm:tf_efficientnet_lite0"]
    asked = [(f["key"]["name"], f["op"], f["value"]) for f in grids[0][0]["filters"]["filters"]]
    assert asked == [
        ("encoders", "=", "mgca resnet18 full"), ("cell", "=", "classification-openi-linear_probe-official"),
    ]  # fmt: skip
    assert all(r["grouping"] == [{"section": "config", "name": "encoders.value"}] for grid in grids for r in grid)
    asked = [(f["key"]["name"], f["value"]) for f in grids[-1][0]["filters"]["filters"]]
    assert asked == [("encoders", "mgca resnet18 full"), ("cell", "pretrain")]


def test_no_picture_goes_there(made, runs):
    assert list(runs.rglob("*.png"))
    text = json.dumps(made)
    assert "base64" not in text
    assert "Where the model looks" not in text
    assert not [p for tree in made for p in panels(tree) if p["viewType"] == "Media Browser"]
    assert not [n for tree in made for n in nodes(tree) if n.get("type") == "image"]


class Server:
    """Keeps views as wandb does, by number."""

    app_url = "https://somewhere.example"

    def __init__(self):
        self.views, self.projects = {}, []

    def execute_graphql(self, query, variables):
        if "upsertView(" in query:
            assert variables["type"] == "runs" or self.projects, "a workspace cannot be saved without its project"
            number = variables.get("id") or base64.b64encode(f"View:{len(self.views)}".encode()).decode()
            self.views[number] = {"id": number, **variables, "id_": number}
            return {"upsertView": {"view": self.told(number)}}
        if "reportId" in variables:
            return {"view": self.told(variables["reportId"]) if variables["reportId"] in self.views else None}
        named = [n for n, v in self.views.items() if v["name"] == variables["viewName"]]
        return {"project": {"allViews": {"edges": [{"node": self.told(n)} for n in named]}}}

    def told(self, number):
        view = self.views[number]
        project = {"id": "p", "name": view["projectName"], "entityName": view["entityName"]}
        return {k: view[k] for k in ("name", "displayName", "spec")} | {"id": number, "project": project}


@pytest.fixture
def server(monkeypatch):
    there = Server()

    class Api:
        default_entity = "me"

        def __init__(self, **_):
            self._service_api = there

        def projects(self, entity):
            return []

        def create_project(self, name, entity):
            there.projects.append(name)

    monkeypatch.setattr(wandb, "Api", Api)
    monkeypatch.setattr(wandb, "termlog", lambda *_: None)
    return there


def test_the_second_call_brings_the_first_up_to_date(runs, server, tmp_path, capsys):
    def told(title):
        arguments = [f"runs={runs}", f"out={tmp_path}", f"title={title}", "statistics=delong", "wandb.project=chests"]
        assert run_cli("report", "to=wandb", *arguments) == 0
        return capsys.readouterr().out

    first = told("one")
    assert re.fullmatch(r"workspace: https://\S+/me/chests\?nw=\w+\nreport: https://\S+/me/chests/reports/\S+\n", first)
    assert {v["displayName"] for v in server.views.values()} == {"one"}
    assert told("two").splitlines()[0] == first.splitlines()[0]
    assert [v["displayName"] for v in server.views.values()] == ["two", "two"]
    assert not (tmp_path / "index.html").exists()
    server.views.clear()  # somebody has deleted them
    told("three")
    assert [v["displayName"] for v in server.views.values()] == ["three", "three"]


def test_another_project_has_views_of_its_own(runs, server, tmp_path):
    for project in ("a", "b"):
        dashboard.publish(runs, tmp_path, project=project, title="t", statistics="delong")
    assert sorted(v["projectName"] for v in server.views.values()) == ["a", "a", "b", "b"]


def test_without_a_login_it_says_so_and_leaves_nothing(runs, tmp_path, monkeypatch, capsys):
    def unknown(**_):
        raise UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "Api", unknown)
    assert run_cli("report", "to=wandb", f"runs={runs}", f"out={tmp_path / 'new'}", "statistics=delong") == 2
    assert "wandb login" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_without_the_library_it_says_how_to_get_it(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces", None)
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(UserError, match=r"vlp-bench\[wandb\]"):
        dashboard.publish(runs, tmp_path, project="p", title="t")


def test_an_unknown_place_is_refused(runs, capsys):
    assert run_cli("report", "to=paper", f"runs={runs}") == 2
    assert "expected page or wandb" in capsys.readouterr().err
