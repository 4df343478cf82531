"""Our cells beside published numbers: differences by hand, and what may not be compared."""

import csv
import io
import os
from pathlib import Path

import pytest
import report_fixtures as fake
from helpers import run_cli

from vlp_bench.config import groups
from vlp_bench.errors import UserError
from vlp_bench.published import VERIFIED, chosen, names, protocols, results
from vlp_bench.report.boards import boards
from vlp_bench.report.collect import collect
from vlp_bench.report.published import HIGHER, LOWER, OPEN, compared_with


def ours(name="mgca resnet50", fraction=0.01, value=0.9, *, n=4003, half=0.01, **changes):
    """A cell as `protocol=mgca_linear target=rsna` leaves it."""
    result = fake.classification(name, fraction, value=value, half=half, labels=["Pneumonia"])
    for metric in result["metrics"].values():
        metric["n"] = n
    protocol = {"name": "mgca_linear", "breaks": [], "differs": [], "departures": changes.pop("departures", [])}
    here = {"method": name.split()[0], "target": "rsna mgca_cls", "protocol": protocol, "adaptation": "probe"}
    return result | here | changes


def compared(tmp_path, *cells, against="mgca_linear"):
    for i, cell in enumerate(cells):
        fake.write_result(tmp_path / f"run{i}", cell)
    return compared_with(boards(collect(tmp_path).evaluations), chosen(against), against)


def row(method, dataset, pct, protocol="mgca_linear"):
    (found,) = [
        r for r in results() if (r.protocol, r.method, r.dataset, r.label_pct) == (protocol, method, dataset, pct)
    ]
    return found


def test_a_difference_by_hand(tmp_path):
    found = compared(tmp_path, ours("random resnet50", value=0.61))
    (line,) = [x for x in found.lines if x.same]
    theirs = row("Random Init", "RSNA", 1)
    assert (theirs.value, theirs.low, theirs.high) == (58.9, pytest.approx(58.85), pytest.approx(58.95))
    assert line.difference == pytest.approx(61 - 58.9)
    assert line.difference_low == pytest.approx(60 - 58.95)
    assert line.difference_high == pytest.approx(62 - 58.85)
    assert line.verdict == HIGHER
    assert not found.refusals
    assert {x.theirs for x in found.lines} >= {"MGCA-R50", "ImageNet Init R50", "a constant score"}
    assert any("random resnet50 on RSNA with 1" in note and "higher by 2.1" in note for note in found.notes)
    assert [x.verdict for x in found.lines if x.theirs == "MGCA-R50"] == [LOWER]


def test_the_interval_is_the_wider_of_that_over_runs_and_the_runs_own(tmp_path):
    close = [ours("random resnet50", value=v, seed=i, half=0.03) for i, v in enumerate((0.60, 0.60, 0.60))]
    (line,) = [x for x in compared(tmp_path / "close", *close).lines if x.same]
    assert (line.low, line.high, line.runs) == (pytest.approx(57), pytest.approx(63), 3)
    apart = [ours("random resnet50", value=v, seed=i, half=0.0) for i, v in enumerate((0.5, 0.6, 0.7))]
    (line,) = [x for x in compared(tmp_path / "apart", *apart).lines if x.same]
    assert line.high - 60 == pytest.approx(100 * 4.302652729911275 * 0.1 / 3**0.5)
    assert line.verdict == OPEN


def test_a_deviation_over_seeds_becomes_an_interval_of_the_mean():
    theirs = row("MRM", "VinDr", 100, "benchx_cls_ft")
    assert (theirs.value, theirs.spread) == (91.2, "0.3")
    # population deviation of three: 0.3 * sqrt(3/2) / sqrt(3) * t(0.975, 2)
    assert theirs.high - 91.2 == pytest.approx(0.3 * 1.5**0.5 / 3**0.5 * 4.302652729911275)
    printed = row("REFERS", "NIH", 1, "refers_ft")
    assert (printed.low, printed.high) == (76.02, 77.39)


@pytest.mark.parametrize(
    "changes, reason",
    [
        (
            {"n": 5337, "target": "rsna mgca"},
            "their RSNA test is 4,003 images of the 70/15/15 split of stage 2 (target.split=mgca_cls), yours is 5,337 "
            "of target.split=mgca",
        ),
        ({"n": 60}, "yours is 60 of target.split=mgca_cls"),
        ({"target": "rsna"}, "yours is 4,003 of its own split"),
        ({"split": "val"}, "yours is its part val"),
        ({"protocol": "honest"}, "theirs is protocol=mgca_linear (one linear layer on a frozen encoder), yours is"),
        (
            {"departures": ["adaptation.epochs=3, published 50"]},
            "your run departs from protocol=mgca_linear: adaptation",
        ),
        ({"labels": ["Pneumonia", "Other"]}, "theirs is over 1 label, yours over 2"),
        ({"target": "synthetic"}, "your test set is synthetic, and published numbers are of real images"),
        ({"fraction": 0.05}, "nothing is published for 5\u202f% of the labels of RSNA, only for 1 %, 10 %, 100 %"),
        ({"target": "openi"}, "nothing is published there for task=classification target=openi"),
        (
            {"metrics": {"auprc": fake.entry(0.5, n=4003)}, "primary": "auprc"},
            "theirs is macro AUROC, and yours has no",
        ),
    ],
)
def test_what_is_not_the_same_is_refused_with_both_sides(tmp_path, changes, reason):
    found = compared(tmp_path, ours(**changes))
    assert not found.lines
    assert any(reason in refusal.reason for refusal in found.refusals), found.refusals
    assert any(reason in text for text in found.refused())


def test_a_shortened_run_and_a_part_of_the_target_are_refused(tmp_path):
    def config(**sections):
        return {"provenance": fake.provenance("mgca resnet50", config=sections)}

    assert (
        "limit_val_batches=2"
        in compared(tmp_path / "a", ours(**config(trainer={"limit_val_batches": 2, "limit_train_batches": 1.0})))
        .refusals[0]
        .reason
    )
    assert (
        "only those with view"
        in compared(tmp_path / "b", ours(**config(target={"where": "view == 'PA'"}))).refusals[0].reason
    )
    found = compared(tmp_path / "c", ours(**config(target={"layout": "rsna"})))
    assert found.refusals[0].reason.startswith("your test set is synthetic")


def test_another_measure_of_the_same_name_is_refused(tmp_path):
    cell = ours(task="segmentation", target="rsna benchx", protocol="benchx_seg_upernet")
    found = compared(tmp_path, cell, against="benchx_seg_upernet")
    assert not found.lines
    assert "averages the finding with the background" in found.refusals[0].reason


def test_an_unlike_cell_is_never_dropped(tmp_path):
    """Every cell of ours is in a pair or refused, whatever it is compared with."""
    cells = [
        ours(),
        ours("gloria resnet50", target="openi"),
        fake.retrieval("prior resnet50", 0.3, target="rsna mgca_cls"),
    ]
    for against in ("mgca_linear", "BenchX", "REFERS", "mgca"):
        found = compared(tmp_path / against, *cells, against=against)
        told = {x.ours for x in found.lines} | {x.ours for x in found.refusals}
        assert told == {"mgca resnet50", "gloria resnet50", "prior resnet50"}


def test_another_network_and_exposure_are_said(tmp_path):
    seen = ours(provenance=fake.provenance("mgca", exposure=["pre-trained on nih: all of its images"]))
    notes = [x.notes for x in compared(tmp_path, seen | {"backbone": "mgca resnet18"}).lines if x.theirs == "MGCA-R50"]
    text = " ".join(notes[0])
    assert "another network (theirs R50, ours resnet18)" in text
    assert "may have seen test images" in text


def test_csv_has_pairs_and_refusals(tmp_path):
    found = compared(tmp_path, ours(), ours("prior resnet50", target="openi"))
    rows = list(csv.DictReader(io.StringIO(found.table().csv())))
    assert len(rows) == len(found.lines) + len(found.refusals)
    assert [r["ours"] for r in rows if r["not_comparable"]] == ["prior resnet50"]


def test_cells_on_different_data_are_never_averaged(tmp_path):
    """Neither other test images nor other training data: two rows, two comparisons."""
    cells = [
        ours(
            "random resnet50",
            value=v,
            seed=i,
            provenance=fake.provenance("x", target_fingerprint=f, data_fingerprint=d),
        )
        for i, (v, f, d) in enumerate([(0.6, "a" * 32, None), (0.7, "b" * 32, None), (0.8, "b" * 32, "c" * 32)])
    ]
    for i, cell in enumerate(cells):
        fake.write_result(tmp_path / f"{i}", cell)
    (board,) = boards(collect(tmp_path).evaluations)
    assert sorted(len(group.rows) for group in board.groups) == [1, 2]
    assert all(len(cell.runs) == 1 for _, _, cell in board.cells())
    found = compared_with([board], chosen("mgca_linear"), "mgca_linear")
    assert sorted(x.value for x in found.lines if x.theirs == "MGCA-R50") == [pytest.approx(v) for v in (60, 70, 80)]


def test_against_means_a_protocol_a_method_or_a_paper():
    assert {r.protocol for r in chosen("mgca_linear")} == {"mgca_linear"}
    assert {r.method for r in chosen("mgca")} == {"MGCA-R50", "MGCA-ViT"}
    assert {r.protocol for r in chosen("BenchX")} > {"benchx_cls_ft", "benchx_seg_upernet"}
    with pytest.raises(UserError, match="against=nobody: no published number"):
        chosen("nobody")


def test_every_published_row_is_explained():
    assert len(results()) > 700
    options = groups()
    for r in results():
        about = protocols()[r.protocol]
        assert r.status in VERIFIED
        assert r.dataset in about["tests"]
        assert r.metric in about["metrics"]
        assert r.protocol in options["protocol"]
        assert r.low <= r.high
        assert r.low >= 0
        assert r.high <= about["unit"] * 1.001
    for about in protocols().values():
        for test in about["tests"].values():
            assert test.get("unlike") or test["target"] in options["target"]
    methods = {r.method for r in results()}
    assert {m for known in names()["methods"].values() for m in known} - methods == {"PRIOR"}


def test_published_rows_are_those_of_the_reference_that_were_verified():
    root = os.environ.get("VLP_BENCH_REAL_DIR")
    file = Path(root or "") / "reference" / "reference_results.csv"
    if not root or not file.is_file():
        pytest.skip("VLP_BENCH_REAL_DIR has no reference/reference_results.csv")
    with file.open(newline="", encoding="utf-8") as stream:
        theirs = [r for r in csv.DictReader(stream) if r["status"] in VERIFIED]
    assert sorted(
        (r["protocol"], r["dataset"], r["metric"], float(r["label_pct"]), r["method"], r["backbone"], r["value"])
        for r in theirs
    ) == sorted((r.protocol, r.dataset, r.metric, r.label_pct, r.method, r.backbone, r.text) for r in results())
    assert sorted(r["std_or_ci"].strip("[]").replace(",", "..") for r in theirs) == sorted(r.spread for r in results())


def test_the_verb(tmp_path, capsys):
    fake.write_result(tmp_path / "runs" / "a", ours())
    fake.write_result(tmp_path / "runs" / "b", ours("prior resnet50", target="openi"))
    out = tmp_path / "table.md"
    assert run_cli("compare", f"runs={tmp_path / 'runs'}", "against=mgca_linear", f"out={out}") == 0
    assert "Not comparable: prior resnet50 on openi" in capsys.readouterr().out
    assert "| RSNA AUROC |" in out.read_text()
    assert run_cli("compare") == 0
    assert "| mgca_linear | 81 |" in capsys.readouterr().out


def test_the_verb_fails_where_nothing_can_be_compared(tmp_path, capsys):
    fake.write_result(tmp_path / "a", ours(target="synthetic"))
    assert run_cli("compare", f"runs={tmp_path}", "against=mgca_linear") == 2
    said = capsys.readouterr()
    assert "your test set is synthetic" in said.out
    assert "none of these results can be compared" in said.err
    assert run_cli("compare", f"runs={tmp_path}", "against=mgca_linear", "out=table.pdf") == 2
    assert "expected a file that ends in .md or .csv" in capsys.readouterr().err
