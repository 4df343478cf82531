"""What the report reads out of predictions: groups of patients, curves, calibration, worse images."""

import numpy as np
import pandas as pd
import pytest
import report_fixtures as fake

from vlp_bench.metrics.classification import macro_auroc
from vlp_bench.metrics.curves import GRID, brier, calibration_error, precision_recall, reliability, roc
from vlp_bench.report.boards import boards
from vlp_bench.report.collect import collect
from vlp_bench.report.evidence import ALL, studied
from vlp_bench.report.evidence_tables import calibration_table, robustness_table, subgroups_table


def studied_board(root):
    (board,) = boards(collect(root).evaluations)
    return studied(board, 50)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    root = tmp_path_factory.mktemp("scored")
    tables = [
        fake.write_scored(root / f"{k}", name, quality, noise=k, chances=True, items=300)
        for k, (name, quality) in enumerate((("a", 1.5), ("b", 0.5)))
    ]
    return studied_board(root), tables


def columns(table, kind):
    return table[[f"{kind}_x", f"{kind}_y"]].to_numpy()


def test_groups_have_the_value_of_their_items(scored):
    board, tables = scored
    (evidence,) = board.evidence
    found = {(part.attribute, part.name): part for part in evidence.subgroups}
    assert list(found)[:4] == [("view", "AP"), ("view", "PA"), ("sex", "F"), ("sex", "M")]
    for (attribute, name), within in {
        ("view", "AP"): lambda t: t["view"] == "AP",
        ("sex", "M"): lambda t: t["sex"] == "M",
        ("age", "20–39"): lambda t: t["age"].between(20, 39),
    }.items():
        part = found[attribute, name]
        for row, table in enumerate(tables):
            few = table[within(table)]
            assert (part.items, part.patients) == (len(few), few["patient_id"].nunique())
            expected = macro_auroc(columns(few, "score"), columns(few, "target"))
            assert part.values[row].value == pytest.approx(expected)
            assert part.values[row].low < expected < part.values[row].high


def test_few_patients_are_a_dash_with_its_reason_and_not_counted(scored):
    board, tables = scored
    small = tables[0][tables[0]["age"] >= 80]["patient_id"].nunique()
    assert 0 < small < 20
    table = subgroups_table(board)
    (line,) = [row for row in table.rows if row[0] == "Age: 80 or more years"]
    assert line[1:] == ("few", "few", "– (fewer than 20 patients)", "– (fewer than 20 patients)")
    assert "fewer than 20 patients" in table.csv()
    assert any(note.startswith("By view, sex and age: mean over the 2 labels") for note in table.notes)


def test_groups_that_differ_in_labels_are_measured_on_those_they_share(tmp_path):
    folder = tmp_path / "a"
    fake.write_scored(folder, "a", 1.0, items=300)
    table = pd.read_parquet(folder / "predictions.parquet")
    table["view"] = np.where(np.isnan(table["target_x"]) | (table["target_x"] == 0), "PA", "AP")
    table.to_parquet(folder / "predictions.parquet")
    board = studied_board(tmp_path)
    assert board.evidence[0].labels_of["view"] == 1  # x has one class in either view
    part = next(p for p in board.evidence[0].subgroups if p.name == "AP")
    few = table[table["view"] == "AP"]
    assert part.values[0].value == pytest.approx(macro_auroc(few["score_y"], few["target_y"]))


def test_what_is_not_known_of_patients_is_said(tmp_path):
    folder = tmp_path / "a"
    fake.write_scored(folder, "a", 1.0)
    table = pd.read_parquet(folder / "predictions.parquet").assign(sex="", age=np.nan)
    table.to_parquet(folder / "predictions.parquet")
    lines = subgroups_table(studied_board(tmp_path)).rows
    assert ("Sex: not known", "–", "200", "– (not known to the prepared data)") in [row[:4] for row in lines]
    table.drop(columns=["view", "sex", "age"]).to_parquet(folder / "predictions.parquet")
    assert subgroups_table(studied_board(tmp_path)) is None


def test_curves_are_those_of_the_scores(scored):
    board, tables = scored
    (evidence,) = board.evidence
    assert set(evidence.roc) == set(evidence.precision) == {ALL, "x", "y"}
    for row, table in enumerate(tables):
        area = np.trapezoid([y for _, y in evidence.roc[ALL][row]], GRID)
        assert area == pytest.approx(macro_auroc(columns(table, "score"), columns(table, "target")), abs=0.01)
    assert evidence.prevalence["y"] == tables[0]["target_y"].mean()


def test_curves_against_every_threshold_tried():
    rng = np.random.default_rng(0)
    targets = (rng.random(60) < 0.3).astype(float)
    scores = np.round(rng.normal(size=60) + targets, 1)  # with ties
    targets[::9] = np.nan
    known = ~np.isnan(targets)
    s, t = scores[known], targets[known]
    called = [s >= threshold for threshold in np.sort(np.unique(s))[::-1]]
    recall = np.array([(c & (t == 1)).sum() / (t == 1).sum() for c in called])
    precision = np.array([t[c].mean() for c in called])
    expected = [precision[np.argmax(recall >= r - 1e-9)] for r in GRID]
    assert precision_recall(scores, targets).tolist() == pytest.approx(expected)
    alarms = np.array([0.0, *((c & (t == 0)).sum() / (t == 0).sum() for c in called)])
    found = roc(scores, targets)
    for share in GRID[1:]:
        below, above = np.flatnonzero(alarms <= share)[-1], np.flatnonzero(alarms >= share)[0]
        low, high = np.array([0.0, *recall])[[below, above]]
        assert min(low, high) - 1e-9 <= found[round(share * 50)] <= max(low, high) + 1e-9


def test_calibration_against_bins_filled_one_by_one():
    rng = np.random.default_rng(1)
    scores, targets = rng.random((200, 2)), (rng.random((200, 2)) < 0.4).astype(float)
    targets[::7, 0] = np.nan
    errors = []
    for column in range(2):
        total = error = 0.0
        for low in np.arange(10) / 10:
            here = (scores[:, column] >= low) & (scores[:, column] < low + 0.1) & ~np.isnan(targets[:, column])
            if here.any():
                error += here.sum() * abs(scores[here, column].mean() - targets[here, column].mean())
                total += here.sum()
        errors.append(error / total)
    assert calibration_error(scores, targets) == pytest.approx(np.mean(errors))
    said, there, count = reliability([0.0, 0.05, 1.0, 0.95], [0, 1, 1, np.nan])
    assert (said.tolist(), there.tolist(), count.tolist()) == ([0.025, 1.0], [0.5, 1.0], [2.0, 1.0])
    assert brier([[0.5, 1.0], [0.2, 0.0]], [[1, np.nan], [np.nan, np.nan]])[0] == 0.25
    assert np.isnan(brier([[0.2]], [[np.nan]])).all()


def test_calibration_is_of_probabilities_alone(scored, tmp_path):
    board, tables = scored
    table = calibration_table(board)
    assert [row[0] for row in table.rows] == ["a", "b"]
    squares = np.nanmean((columns(tables[0], "score") - columns(tables[0], "target")) ** 2, axis=1)
    assert table.records[0]["value"] == pytest.approx(squares.mean())
    fake.write_scored(tmp_path / "a", "a", 1.0)
    board = studied_board(tmp_path)
    assert calibration_table(board) is None
    assert "No calibration: the scores are not said to be probabilities." in board.evidence[0].notes


def test_rows_with_other_test_items_are_left_out_with_the_reason(tmp_path):
    fake.write_scored(tmp_path / "a", "a", 2.0, items=200)
    fake.write_scored(tmp_path / "b", "b", 1.0, items=200, chosen=range(150))
    board = studied_board(tmp_path)
    assert set(board.evidence[0].roc["x"]) == {0}
    assert any(note.startswith("Without groups and curves: b: its test items") for note in board.evidence[0].notes)


def test_ranks_and_overlaps_become_shares(tmp_path):
    fake.write_ranked(tmp_path / "r", "a", 0.3, "rank_i2t", [1, 1, 2, 10])
    points = dict(studied_board(tmp_path).evidence[0].found["i2t"][0])
    assert (points[1.0], points[2.0], points[10.0]) == (0.5, 0.75, 1.0)
    fake.write_ranked(tmp_path / "r", "a", 0.3, "mean_box_iou", [0.0, 0.5, 1.0, np.nan])
    points = dict(studied_board(tmp_path).evidence[0].overlap[0])
    assert (points[0.0], points[0.5], points[1.0]) == pytest.approx((1.0, 2 / 3, 1 / 3))


def test_worse_images_are_a_row_each_and_runs_are_averaged(tmp_path):
    for seed, loss in enumerate((0.02, 0.04)):
        facts = {"robustness": fake.robustness(0.7, {"blur": loss, "jpeg": 0.0})}
        fake.write_result(tmp_path / f"{seed}", fake.classification("a", 1.0, seed=seed, value=0.7, facts=facts))
    table = robustness_table(studied_board(tmp_path))
    assert [row[0] for row in table.rows] == ["Nothing", "Blur 1", "Blur 2", "JPEG 1", "JPEG 2"]
    assert table.rows[1][1].startswith("0.670, −0.030")
    assert table.rows[3][1].startswith("0.700, 0.000")
    assert table.records[0] | {"corruption": "blur", "severity": 1, "loss": 0.03} == pytest.approx(table.records[0])


def test_a_broken_robustness_is_listed(tmp_path):
    fake.write_result(tmp_path / "bad", fake.classification("a", 1.0, facts={"robustness": {"corruptions": [1]}}))
    fake.write_result(tmp_path / "good", fake.classification("b", 1.0))
    (problem,) = collect(tmp_path).unreadable
    assert "robustness" in problem.reason
