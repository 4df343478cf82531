import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import report_fixtures as fake

from vlp_bench.errors import UserError
from vlp_bench.report import build_report, summary_table
from vlp_bench.report.boards import boards
from vlp_bench.report.collect import collect
from vlp_bench.report.svg import Bar, Block, Series, interval_chart, line_chart, nice_ticks, shortened, thinned
from vlp_bench.report.wording import number


class Reader(HTMLParser):
    """Checks that elements nest, and keeps ids, links, tags and visible text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.links, self.tags, self.words = [], [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.tags.append(tag)
        if "id" in named:
            self.ids.append(named["id"])
        self.links += [value for key, value in attributes if key in ("href", "src")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return fake.write_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    return build_report(runs, tmp_path_factory.mktemp("out") / "report")


@pytest.fixture(scope="module")
def page(report):
    return Reader(report.index.read_text("utf-8"))


def build(tmp_path, *results, **options):
    for i, result in enumerate(results):
        fake.write_result(tmp_path / "runs" / f"run{i}", result)
    return Reader(build_report(tmp_path / "runs", tmp_path / "out", **options).index.read_text("utf-8"))


def test_summary_counts_what_went_in(report):
    assert (report.evaluations, report.pretrainings, report.pictures, report.unreadable) == (12, 1, 2, 0)
    assert report.tables == len(list(report.index.parent.glob("tables/*.csv"))) == 7
    assert len(list(report.index.parent.glob("tables/*.md"))) == 7
    assert sorted(p.name for p in report.index.parent.iterdir()) == ["index.html", "tables"]


def test_page_needs_nothing_else(report, page):
    assert all(link.startswith(("#", "data:")) for link in page.links)
    source = report.index.read_text("utf-8")
    assert not re.search(r"(src|href)\s*=\s*[\"']?\s*(https?:)?//", source)
    assert "@import" not in source
    assert "url(" not in source


def test_every_link_leads_somewhere(page):
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_every_number_is_on_the_page(runs, page):
    for board in boards(collect(runs).evaluations):
        for _, _, cell in board.cells():
            for value in (cell.value, cell.low, cell.high):
                assert number(value, board.metric) in page.text


def test_page_shows_all_kinds_of_evidence(page):
    assert page.text.count("trivial answer") > 4
    assert "not clear of trivial" in page.text  # the random backbone in retrieval
    for word in ("Instance loss", "validation", "Where the model looks", "3f9c2ab41d7e5c60aa41", "torch 2.6.0", '"lr"'):
        assert word in page.text
    assert page.tags.count("img") == 2
    assert page.tags.count("h1") == 1
    assert {"header", "nav", "main", "figure", "figcaption"} <= set(page.tags)


def test_ties_and_demonstration_are_said_in_words(tmp_path):
    said = "Synthetic images: no medicine here."
    page = build(
        tmp_path,
        fake.classification("a", 0.01, value=0.8, demonstration=said),
        fake.classification("b", 0.01, value=0.79),
    )
    assert "but its interval overlaps that of b." in page.text
    assert page.text.count("intervals overlap") >= 2
    assert page.text.count(said) == 1


def test_differing_target_data_stay_apart(tmp_path):
    other = fake.provenance("a", target_fingerprint="f" * 40)
    page = build(
        tmp_path,
        fake.classification("a", 0.01, value=0.81),
        fake.classification("a", 0.01, seed=1, value=0.62, provenance=other),
    )
    assert "not comparable with the other rows" in page.text
    assert "neither averaged nor ranked" in page.text
    assert "0.715" not in page.text


def test_corrupt_files_are_listed_and_the_rest_goes_on(tmp_path):
    runs = tmp_path / "runs"
    fake.write_pretraining(runs / "pre")
    (runs / "pre" / "metrics.csv").write_text("epoch,step,train/loss\n0,one,2\n")
    (runs / "pre" / "pictures" / "p0.png").write_text("no picture")
    (runs / "broken").mkdir()
    (runs / "broken" / "result.json").write_text("{")
    fake.write_result(runs / "future", {"schema": 2})
    fake.write_result(runs / "lacking", {"schema": 1, "backbone": "a"})
    good = fake.write_result(runs / "good", fake.classification("a", 0.01))
    (good / "predictions.parquet").write_text("not parquet")
    page = build(tmp_path)
    for word in (
        "broken/result.json : not valid JSON",
        "future/result.json : schema 2 is not one this version reads",
        "lacking/result.json : missing task, target, primary, metrics",
        "pre/metrics.csv",
        "pre/pictures/p0.png : not a PNG file",
        "good/predictions.parquet",
    ):
        assert word in page.text
    assert "0.600" in page.text


def test_pictures_stay_in_their_folder(tmp_path):
    runs = tmp_path / "runs"
    fake.write_pretraining(runs / "pre")
    (runs / "pre" / "secret.png").write_bytes(fake.png())
    (runs / "pre" / "pictures" / "index.json").write_text(json.dumps([{"file": "../secret.png"}]))
    page = build(tmp_path, fake.classification("a", 0.01))
    assert "img" not in page.tags
    assert "must lie beside the index" in page.text


def test_hostile_names_are_text(tmp_path):
    hostile = "<script>alert('x')</script>\"&"
    result = fake.classification(hostile, 0.01, target=hostile, demonstration=hostile, labels=[hostile, "b"])
    result["provenance"]["command"] = hostile
    page = build(tmp_path, result, title=hostile)
    assert page.tags.count("script") == 1
    assert page.text.count(hostile) > 5


def test_output_is_deterministic(runs, report, tmp_path):
    again = build_report(runs, tmp_path / "again")
    for file in sorted(report.index.parent.rglob("*.*")):
        if file.is_file():
            assert (again.index.parent / file.relative_to(report.index.parent)).read_bytes() == file.read_bytes()


def test_second_report_replaces_the_first_and_nothing_else(tmp_path):
    build(tmp_path, fake.classification("a", 0.01, target="first"))
    (tmp_path / "out" / "tables" / "mine.md").write_text("kept")
    stale = [p for p in (tmp_path / "out" / "tables").iterdir() if "first" in p.name]
    assert stale
    fake.write_result(tmp_path / "runs" / "run0", fake.classification("a", 0.01, target="second"))
    build(tmp_path)
    assert not any(p.exists() for p in stale)
    assert (tmp_path / "out" / "tables" / "mine.md").read_text() == "kept"
    assert not list((tmp_path / "out").glob(".*"))


def test_refusals_name_folder_and_remedy(tmp_path):
    with pytest.raises(UserError, match=r"missing is not a folder: give runs="):
        build_report(tmp_path / "missing", tmp_path / "out")
    with pytest.raises(UserError, match=rf"no result.json below {tmp_path}.*vlp-bench evaluate"):
        build_report(tmp_path, tmp_path / "out")
    (tmp_path / "result.json").write_text("[]")
    with pytest.raises(UserError, match=r"could be read .*not a JSON object"):
        build_report(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    fake.write_result(tmp_path, fake.classification("a", 0.01))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        build_report(tmp_path, tmp_path / "file")


def test_several_folders_count_each_run_once(tmp_path):
    fake.write_result(tmp_path / "x" / "one", fake.classification("a", 0.01))
    fake.write_result(tmp_path / "y" / "two", fake.classification("b", 0.01))
    found = collect([tmp_path / "x", tmp_path / "y", tmp_path / "x" / "one"])
    assert [e.folder for e in found.evaluations] == ["x/one", "y/two"]


def test_console_table(runs):
    header, *rows = summary_table(runs)
    assert header[0] == "task"
    assert len(rows) == 12
    assert ["classification", "openi", "linear probe", "100\u202f%", "mgca resnet18", "AUROC"] in [r[:6] for r in rows]
    assert rows[0][-1] == "0.500"


def test_charts():
    assert nice_ticks(0.47, 0.93) == [0.4, 0.6, 0.8, 1.0]
    assert len(nice_ticks(3.0, 3.0)) >= 2
    chart = interval_chart([Block("<x>", (Bar("n" * 60, "0.5", 0.5, None, None, 9),), None)], "t")
    assert "&lt;x&gt;" in chart
    assert "…" in chart
    single = line_chart([Series("a", ((1.0, 2.0),), ((1.0, 3.0),))], "t", logarithmic=True)
    assert "polygon" not in single
    assert shortened("short") == "short"
    assert len(thinned([(float(i), 1.0) for i in range(1001)])) <= 160


def test_room_imports_nothing_heavy():
    code = (
        "import sys, vlp_bench.report, vlp_bench.metrics;"
        "print([m for m in ('torch', 'pytorch_lightning', 'hydra', 'matplotlib', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_cells_whose_images_may_have_been_seen_are_marked(tmp_path):
    reason = "pre-trained on nih: rsna is a part of nih"
    seen = fake.classification("a", 0.01, value=0.9)
    seen["provenance"]["exposure"] = [reason]
    page = build(tmp_path, seen, fake.classification("b", 0.01, value=0.7))
    assert page.text.count("⚠ seen before") == 1
    assert f"Seen before: {reason}." in page.text
    tables = "".join(p.read_text("utf-8") for p in (tmp_path / "out").rglob("*.md"))
    assert f"[seen before: {reason}]" in tables or f"seen before: {reason}" in tables
    records = "".join(p.read_text("utf-8") for p in (tmp_path / "out").rglob("*.csv"))
    assert reason in records
