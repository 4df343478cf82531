import csv
import io
import json

import numpy as np
import pandas as pd
import pytest
import report_fixtures as fake

from vlp_bench.errors import UserError
from vlp_bench.metrics import (
    auroc_statistic,
    bootstrap_difference,
    bootstrap_t_difference,
    delong,
    holm,
    mean_statistic,
    paired_bootstrap,
    t_difference,
)
from vlp_bench.metrics.bootstrap import Patients
from vlp_bench.metrics.classification import macro_auroc
from vlp_bench.metrics.detection import Boxes, match, matches_to_table, precision_statistic
from vlp_bench.report import build_report
from vlp_bench.report.boards import NOISE, OVERLAP, boards
from vlp_bench.report.collect import collect
from vlp_bench.report.compare import STATISTICS, compared
from vlp_bench.report.comparison_tables import comparisons_table, spread_table
from vlp_bench.report.tables import leaderboard_table, measures_table


def board_of(root, statistics="honest", resamples=500):
    (board,) = boards(collect(root).evaluations)
    return compared(board, statistics, resamples)


def cell(board, name, fraction=0.01):
    (found,) = (c for row, f, c in board.cells() if f == fraction and row.name == name)
    return found


def auroc(table):
    return macro_auroc(*(table[[f"{kind}_x", f"{kind}_y"]].to_numpy() for kind in ("score", "target")))


def reasons(board):
    return {board.groups[0].rows[r.row].name: r.reason for r in board.groups[0].refused}


def change(folder, edit):
    path = folder / "predictions.parquet"
    edit(pd.read_parquet(path)).to_parquet(path, index=False)


@pytest.fixture
def three(tmp_path):
    """a is better than b by little but surely (the images' difficulty is shared), c is far behind."""
    return {
        name: fake.write_scored(tmp_path / name, name, quality, noise=noise)
        for name, quality, noise in (("a", 1.4, 1), ("b", 1.2, 2), ("c", 0.4, 3))
    }


def test_pairs_are_those_of_the_paired_bootstrap(three, tmp_path):
    board = board_of(tmp_path)
    group = board.groups[0]
    assert [row.name for row in group.rows] == ["a", "b", "c"]
    assert [(p.first, p.second) for p in group.pairs] == [(0, 1), (0, 2), (1, 2)]
    groups = Patients.of(three["a"].sort_values("item_id")["patient_id"])
    runs = []
    for table in three.values():
        table = table.sort_values("item_id")
        scores, targets = (table[[f"{kind}_x", f"{kind}_y"]].to_numpy() for kind in ("score", "target"))
        runs.append([auroc_statistic(scores, targets, groups)])
    values, drawn = paired_bootstrap(runs, groups.count, resamples=2000 * 3)  # as many as a p of 0.001 needs
    expected = [
        bootstrap_difference(values[p.first], values[p.second], drawn[p.first], drawn[p.second]) for p in group.pairs
    ]
    assert [p.difference for p in group.pairs] == expected
    assert [p.adjusted for p in group.pairs] == holm([d.p for d in expected]).tolist()


def test_paired_difference_outdoes_overlapping_intervals(three, tmp_path):
    (before,) = boards(collect(tmp_path).evaluations)
    assert cell(before, "a").tie == cell(before, "b").tie == OVERLAP
    after = board_of(tmp_path)
    assert (cell(after, "a").tie, cell(after, "b").tie, cell(after, "c").tie) == ("", "", "")
    assert [cell(after, name).rank for name in "abc"] == [(1, 1), (2, 2), (3, 3)]


def test_difference_inside_the_noise_is_marked(tmp_path):
    for name, noise in (("a", 1), ("b", 2)):
        fake.write_scored(tmp_path / name, name, 1.0, noise=noise)
    fake.write_scored(tmp_path / "c", "c", 0.2)
    board = board_of(tmp_path)
    assert [cell(board, n).tie for n in "abc"] == [NOISE, NOISE, ""]
    assert [cell(board, n).rank for n in "abc"] == [(1, 2), (1, 2), (3, 3)]
    assert "[inside the noise]" in leaderboard_table(board).markdown()


def test_order_of_the_rows_does_not_matter(three, tmp_path):
    before = board_of(tmp_path).groups[0].pairs
    change(tmp_path / "b", lambda t: t.iloc[::-1])
    assert board_of(tmp_path).groups[0].pairs == before


def test_family_is_the_whole_table(three, tmp_path):
    alone = board_of(tmp_path, "delong")
    for name, quality, noise in (("a", 1.1, 4), ("b", 1.1, 5)):
        fake.write_scored(tmp_path / f"{name}-all", name, quality, noise=noise, fraction=1.0)
    both = board_of(tmp_path, "delong")
    pairs = both.groups[0].pairs
    assert {p.fraction for p in pairs} == {0.01, 1.0}
    assert [p.adjusted for p in pairs] == holm([p.difference.p for p in pairs]).tolist()
    assert pairs[0].adjusted > alone.groups[0].pairs[0].adjusted


def test_runs_of_a_row_are_averaged(tmp_path):
    tables = [fake.write_scored(tmp_path / f"a{i}", "a", 1.0, noise=i, seed=i) for i in range(2)]
    tables.append(fake.write_scored(tmp_path / "b", "b", 0.8, noise=5))
    (pair,) = board_of(tmp_path, "delong").groups[0].pairs
    tables = [t.sort_values("item_id") for t in tables]
    scores = [t[["score_x", "score_y"]].to_numpy() for t in tables]
    targets = tables[0][["target_x", "target_y"]].to_numpy()
    expected = delong([scores[:2], scores[2:]], targets, tables[0]["patient_id"].to_numpy()).difference(0, 1)
    assert pair.difference == expected


def test_means_over_items_are_compared(tmp_path):
    rng = np.random.default_rng(0)
    values = {name: rng.random(60) + shift for name, shift in (("a", 0.5), ("b", 0.3))}
    patients = [f"p{i // 3}" for i in range(60)]
    for name, column in values.items():
        metrics = {"i2t/R@5": {"value": column.mean(), "low": None, "high": None, "n": 60}}
        folder = fake.write_result(tmp_path / name, fake.retrieval(name, 0.1) | {"metrics": metrics})
        table = pd.DataFrame({"item_id": range(60), "patient_id": patients, "mean_i2t/R@5": column})
        table.to_parquet(folder / "predictions.parquet", index=False)
    (pair,) = board_of(tmp_path).groups[0].pairs
    order = np.argsort([str(i) for i in range(60)])
    groups = Patients.of(np.array(patients)[order])
    a, b = ([mean_statistic(values[name][order], groups)] for name in "ab")
    (value_a, value_b), drawn = paired_bootstrap([a, b], groups.count, resamples=2000)
    assert pair.difference == bootstrap_difference(value_a, value_b, *drawn)


def test_boxes_are_compared_by_their_precision_in_each_resample(tmp_path):
    rng = np.random.default_rng(0)
    images, made = 40, {}
    corners = rng.uniform(0, 30, (images, 2))
    truth = Boxes(np.arange(images), np.zeros(images, int), np.hstack([corners, corners + 20]), None)
    for name, off in (("a", 1.0), ("b", 6.0)):
        moved = truth.xyxy + rng.normal(0, off, (images, 1))
        made[name] = match(truth, Boxes(truth.image, truth.label, moved, rng.random(images)), images, ["x"])
    for name, matches in made.items():
        (value,) = precision_statistic(matches, Patients.of(np.arange(images)))(np.ones((1, images), np.int32))
        entry = {"value": float(value), "low": None, "high": None, "n": images}
        result = fake.retrieval(name, 0.1) | {"task": "detection", "primary": "map", "metrics": {"map": entry}}
        folder = fake.write_result(tmp_path / name, result)
        ids = pd.DataFrame({"item_id": np.arange(images), "patient_id": np.arange(images) // 2})
        table = pd.concat([ids, matches_to_table(matches)], axis=1)
        table.sample(frac=1, random_state=len(name)).to_parquet(folder / "predictions.parquet", index=False)
    board = board_of(tmp_path)
    assert reasons(board) == {}
    (pair,) = board.groups[0].pairs
    assert pair.difference.value == pytest.approx(abs(np.diff([c.value for _, _, c in board.cells()])[0]))
    assert 0 < pair.difference.low < pair.difference.high


# -- what is not compared


def test_without_predictions_the_rule_of_overlap_stays(three, tmp_path):
    (tmp_path / "b" / "predictions.parquet").unlink()
    board = board_of(tmp_path)
    assert reasons(board) == {"b": "no predictions.parquet lies beside the result"}
    assert [(p.first, p.second) for p in board.groups[0].pairs] == [(0, 2)]
    assert (cell(board, "a").tie, cell(board, "b").tie, cell(board, "c").tie) == (OVERLAP, OVERLAP, "")
    assert (cell(board, "a").rank, cell(board, "b").rank, cell(board, "c").rank) == ((1, 2), None, (2, 3))
    table = comparisons_table(board)
    assert table.rows[1][1:] == ("not compared", "–", "–")
    assert table.notes == ("Not compared: b: no predictions.parquet lies beside the result.",)


def test_another_test_set_is_refused(three, tmp_path):
    fake.write_scored(tmp_path / "b", "b", 1.2, noise=2, chosen=range(10, 200))
    board = board_of(tmp_path)
    assert reasons(board) == {"b": "another test set: 190 test items, of which 190 are among the 200 of the others"}
    assert len(board.groups[0].pairs) == 1


@pytest.mark.parametrize(
    "edit, reason",
    [
        (lambda t: t.assign(target_x=t["target_x"].where(t.index != 4)), "other targets for 1 of 200"),
        (lambda t: t.assign(patient_id=t["item_id"]), "the same items, but of other patients"),
        (lambda t: t.assign(item_id="i0"), "name an item twice"),
        (lambda t: t.assign(score_y=-t["score_y"]), "the result says"),
        (lambda t: t.assign(score_y=np.nan), "cannot be scored"),
        (lambda t: t.drop(columns="score_y"), "hold nothing from which AUROC can be resampled"),
        (lambda t: t.iloc[:0], "are empty"),
        (lambda t: t.drop(columns="patient_id"), "cannot be read"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(three, tmp_path, edit, reason):
    change(tmp_path / "c", edit)
    board = board_of(tmp_path)
    assert list(reasons(board)) == ["c"]
    assert reason in reasons(board)["c"]
    assert [(p.first, p.second) for p in board.groups[0].pairs] == [(0, 1)]


def test_reasons_do_not_tell_where_files_lie(three, tmp_path):
    board = boards(collect(tmp_path).evaluations)[0]
    (tmp_path / "c" / "predictions.parquet").unlink()  # between collecting and comparing
    found = reasons(compared(board))
    assert "cannot be read" in found["c"]
    assert str(tmp_path) not in found["c"]


def test_a_row_whose_runs_differ_in_their_test_set_is_refused(three, tmp_path):
    fake.write_scored(tmp_path / "a-more", "a", 1.4, noise=9, chosen=range(100), seed=1)
    board = board_of(tmp_path)
    assert "another test set: 100 test items" in reasons(board)["a"]


def test_target_data_are_not_compared_across(three, tmp_path):
    other = fake.provenance("d", target_fingerprint="f" * 40)
    fake.write_scored(tmp_path / "d", "d", 1.4, provenance=other)
    assert [len(group.pairs) for group in board_of(tmp_path).groups] == [3, 0]


# -- statistics of the papers


def test_t_tests_look_at_runs_alone(tmp_path):
    values = {"a": (0.80, 0.81, 0.83), "b": (0.78, 0.79, 0.79)}
    for name, found in values.items():
        for seed, value in enumerate(found):
            result = fake.classification(name, 0.01, value=value, seed=seed)
            fake.write_result(tmp_path / f"{name}{seed}", result)
    fake.write_result(tmp_path / "c", fake.classification("c", 0.01, value=0.7))
    for statistics, equal in (("t_test", True), ("welch", False)):
        board = board_of(tmp_path, statistics)
        (pair,) = board.groups[0].pairs
        assert pair.difference == t_difference(*values.values(), equal_variances=equal)
        assert reasons(board) == {"c": "one run, and a t-test needs two or more"}


def test_thirty_rounds_are_those_of_the_paper(tmp_path):
    tables = [fake.write_scored(tmp_path / name, name, 1.0, noise=i) for i, name in enumerate("ab")]
    items = Patients.of(np.arange(200))  # single images, and rounds of its own for each backbone
    rounds = []
    for row, table in enumerate(sorted(tables, key=lambda t: -auroc(t))):
        table = table.sort_values("item_id")
        scores, targets = (table[[f"{kind}_x", f"{kind}_y"]].to_numpy() for kind in ("score", "target"))
        run = auroc_statistic(scores, targets, items)
        rounds.append(paired_bootstrap([[run]], items.count, resamples=30, seed=row)[1][0])
    (pair,) = board_of(tmp_path, "bootstrap_t").groups[0].pairs
    assert pair.difference == bootstrap_t_difference(*rounds)


def test_thirty_rounds_are_surer_than_the_test_set_allows(tmp_path):
    for name, noise in (("a", 1), ("b", 2)):
        fake.write_scored(tmp_path / name, name, 1.0, noise=noise)
    honest, rounds = (board_of(tmp_path, s).groups[0].pairs[0] for s in ("honest", "bootstrap_t"))
    assert honest.adjusted > 0.05
    assert rounds.difference.high - rounds.difference.low < honest.difference.high - honest.difference.low


def test_delong_is_for_auroc(tmp_path):
    for name in "ab":
        metrics = {"i2t/R@5": {"value": 0.5, "low": None, "high": None, "n": 2}}
        folder = fake.write_result(tmp_path / name, fake.retrieval(name, 0.1) | {"metrics": metrics})
        table = pd.DataFrame({"item_id": ["i", "j"], "patient_id": ["p", "q"], "mean_i2t/R@5": [0.0, 1.0]})
        table.to_parquet(folder / "predictions.parquet", index=False)
    board = board_of(tmp_path, "delong")
    assert "DeLong's test is one of AUROC" in reasons(board)["a"]
    assert not board.groups[0].pairs


def test_unknown_statistics_are_refused(three, tmp_path):
    with pytest.raises(UserError, match=r"statistics=fisher: expected honest, delong, t_test"):
        board_of(tmp_path, "fisher")


# -- tables and page


def test_comparisons_table(three, tmp_path):
    board = board_of(tmp_path, "delong")
    table = comparisons_table(board)
    assert table.columns == ("Backbone", "Difference from the best", "p, Holm", "Rank")
    pair = board.groups[0].pairs[1]
    d = pair.difference
    (last,) = (row for row in table.rows if row[0] == "c")
    assert last[1] == f"−{d.value:.3f} (−{d.high:.3f}\u00a0to\u00a0−{d.low:.3f})"
    assert last[2] == "<\u202f0.001"
    assert table.rows[0][1:] == ("best", "–", "1")
    records = list(csv.DictReader(io.StringIO(table.csv())))
    assert [(r["first"], r["second"]) for r in records] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert float(records[1]["p_holm"]) == pair.adjusted
    assert float(records[1]["difference"]) == d.value


def test_spread_over_subsets_and_seeds(tmp_path):
    grid = {(0, 0): 0.70, (0, 1): 0.72, (1, 0): 0.76, (1, 1): 0.78}
    for (draw, seed), value in grid.items():
        fake.write_result(
            tmp_path / f"a{draw}{seed}", fake.classification("a", 0.01, value=value, draw=draw, seed=seed)
        )
    for seed in range(2):
        fake.write_result(
            tmp_path / f"b{seed}", fake.classification("b", 0.01, value=0.6 + seed / 100, pretrain_seed=seed)
        )
    table = spread_table(board_of(tmp_path))
    (a, b) = table.rows
    assert a == ("a", "1\u202f%", "4", "2", "2", "0.042", "0.014", "0.000", "–")  # 0.06 and 0.02 over root two
    assert b == ("b", "1\u202f%", "2", "1", "2", "–", "–", "–", "0.007")
    assert "known together only" in table.notes[0]
    assert "(b at 1\u202f%)" in table.notes[0]
    assert table.records[0]["variance_subset"] == pytest.approx(0.06**2 / 2)
    fake.write_result(tmp_path / "only" / "c", fake.classification("c", 0.01))
    assert spread_table(board_of(tmp_path / "only")) is None


def test_subsets_of_all_labels_are_no_subsets(tmp_path):
    for seed in range(2):
        fake.write_result(tmp_path / f"a{seed}", fake.classification("a", 1.0, value=0.6, draw=seed, seed=seed))
    assert spread_table(board_of(tmp_path)).rows[0][3:5] == ("1", "2")


@pytest.mark.parametrize("statistics", STATISTICS)
def test_page_says_how_rows_were_compared(three, tmp_path, statistics):
    fake.write_scored(tmp_path / "a-again", "a", 1.4, noise=11, seed=1)
    fake.write_scored(tmp_path / "b-again", "b", 1.2, noise=12, seed=1)
    page = build_report(tmp_path, tmp_path / "out", statistics=statistics).index.read_text("utf-8")
    assert f"by {STATISTICS[statistics]}".replace("'", "&#x27;") in page
    assert ("Statistics as in the papers" in page) == (statistics in ("t_test", "welch", "bootstrap_t"))
    assert "rank 1" in page
    assert list((tmp_path / "out" / "tables").glob("*-comparisons.csv"))


def test_page_names_what_was_not_compared(three, tmp_path):
    fake.write_scored(tmp_path / "b", "b", 1.2, noise=2, chosen=range(10, 200))
    page = build_report(tmp_path, tmp_path / "out").index.read_text("utf-8")
    assert "Not compared: b: another test set: 190 test items" in page
    assert "intervals overlap" in page


# -- protocols and baselines


def test_protocol_may_be_an_object_that_names_what_it_breaks(tmp_path):
    broken = {"name": "paper", "breaks": ["tests on <validation>", "one run"], "departures": ["lr=3, published 4"]}
    fake.write_result(tmp_path / "a", fake.classification("a", 0.01, protocol=broken))
    fake.write_result(tmp_path / "b", fake.classification("b", 0.01, protocol="paper"))
    board = board_of(tmp_path)
    assert (board.protocol, len(board.groups[0].rows)) == ("paper", 2)
    page = build_report(tmp_path, tmp_path / "out").index.read_text("utf-8")
    assert "This protocol breaks: tests on &lt;validation&gt;; one run." in page
    assert "Changed in these runs: lr=3, published 4." in page
    assert "Otherwise than published" not in page
    fake.write_result(tmp_path / "c", fake.classification("c", 0.01, protocol={"name": "paper", "breaks": "much"}))
    assert "breaks are not a list" in collect(tmp_path).unreadable[0].reason


def test_further_baselines_are_rows_of_the_measures(tmp_path):
    facts = {"baselines": {"most_frequent": {"auroc": fake.entry(0.55)}, "a prior": {"f1": fake.entry(0.4)}}}
    for name in "ab":
        fake.write_result(tmp_path / name, fake.classification(name, 0.01, facts=facts))
    rows = {row[0]: row[2:] for row in measures_table(board_of(tmp_path)).rows}
    assert rows["trivial answer: most frequent"] == ("0.550 (0.530–0.570)", "–", "–", "–")
    assert rows["trivial answer: a prior"][2] == "0.400 (0.380–0.420)"
    assert json.loads((tmp_path / "a" / "result.json").read_text())["facts"] == facts
