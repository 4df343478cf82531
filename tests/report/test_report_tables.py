import csv
import io
import json

import pytest
import report_fixtures as fake

from vlp_bench.report.boards import BELOW, BOOTSTRAP, OVERLAP, RANGE, STUDENT, UNCLEAR, average, boards
from vlp_bench.report.collect import Metric, collect
from vlp_bench.report.tables import (
    labels_table,
    leaderboard_table,
    measures_table,
)
from vlp_bench.report.wording import (
    counted,
    duration,
    fraction_name,
    listed,
    metric_name,
    number,
    rises,
    sentence,
    short,
    signed,
    words,
)


def only_board(tmp_path, *results):
    for i, result in enumerate(results):
        fake.write_result(tmp_path / f"run{i:02}", result)
    (board,) = boards(collect(tmp_path).evaluations)
    return board


def cells(board, fraction=0.01):
    return {row.name + (f" ({row.note})" if row.note else ""): cell for row, f, cell in board.cells() if f == fraction}


def test_one_run_keeps_its_bootstrap_interval(tmp_path):
    cell = cells(only_board(tmp_path, fake.classification("a", 0.01, value=0.7)))["a"]
    assert (cell.value, cell.low, cell.high) == pytest.approx((0.7, 0.68, 0.72))
    assert (cell.interval, cell.n, len(cell.runs), cell.best) == (BOOTSTRAP, 800, 1, False)


def test_two_runs_give_a_range_and_three_a_t_interval(tmp_path):
    runs = [fake.classification("a", 0.01, seed=i, value=v) for i, v in enumerate((0.6, 0.7, 0.8))]
    two = cells(only_board(tmp_path / "two", *runs[:2]))["a"]
    assert (two.interval, two.value, two.low, two.high) == (RANGE, *map(pytest.approx, (0.65, 0.6, 0.7)))
    three = cells(only_board(tmp_path / "three", *runs))["a"]
    assert three.interval == STUDENT
    assert three.value == pytest.approx(0.7)
    assert three.high - three.value == pytest.approx(4.302652729911275 * 0.1 / 3**0.5)


def test_intervals_of_shares_stay_within_zero_and_one():
    cell = average([Metric(v) for v in (0.9, 1.0, 1.0)], "auroc", ())
    assert cell.high == 1.0
    assert average([Metric(None, n=4)], "auroc", ()).n == 4


def test_best_is_marked_and_overlapping_values_tie(tmp_path):
    values = {"a": 0.80, "b": 0.77, "c": 0.70}
    board = only_board(tmp_path, *(fake.classification(k, 0.01, value=v) for k, v in values.items()))
    marks = {name: (cell.best, cell.tie) for name, cell in cells(board).items()}
    assert marks == {"a": (True, OVERLAP), "b": (False, OVERLAP), "c": (False, "")}
    assert [row.name for row in board.groups[0].rows] == ["a", "b", "c"]


def test_clear_best_is_no_tie(tmp_path):
    found = cells(
        only_board(tmp_path, *(fake.classification(k, 0.01, value=v) for k, v in {"a": 0.8, "b": 0.7}.items()))
    )
    assert (found["a"].best, found["a"].tie, found["b"].tie) == (True, "", "")


def test_less_is_better_for_ranks(tmp_path):
    runs = [fake.retrieval(k, v, primary="i2t/median_rank") for k, v in {"a": 0.1, "b": 0.4, "c": 0.05}.items()]
    board = only_board(tmp_path, *runs)
    found = cells(board, None)
    assert found["b"].best
    assert found["c"].verdict == BELOW
    assert found["a"].verdict == ""


def test_values_are_held_against_the_trivial_answer(tmp_path):
    values = {"a": 0.49, "b": 0.51, "c": 0.53}
    found = cells(only_board(tmp_path, *(fake.classification(k, 0.01, value=v) for k, v in values.items())))
    assert [found[k].verdict for k in "abc"] == [BELOW, UNCLEAR, ""]


def test_trivial_answers_shared_by_runs_count_once(tmp_path):
    runs = [fake.classification(k, 0.01) for k in "ab"]
    trivial = only_board(tmp_path, *runs).groups[0].trivial
    assert (trivial.cells[0.01].value, trivial.cells[0.01].interval) == (0.5, BOOTSTRAP)
    runs[1]["trivial"] = {"auroc": fake.entry(0.6)}
    trivial = only_board(tmp_path / "differing", *runs).groups[0].trivial
    assert (trivial.cells[0.01].low, trivial.cells[0.01].high) == (0.5, 0.6)


def test_target_data_are_never_mixed(tmp_path):
    other = fake.provenance("a", target_fingerprint="f" * 40)
    board = only_board(
        tmp_path,
        fake.classification("a", 0.01, value=0.8),
        fake.classification("b", 0.01, value=0.6),
        fake.classification("a", 0.01, seed=1, value=0.9, provenance=other),
    )
    assert [[row.name for row in group.rows] for group in board.groups] == [["a", "b"], ["a"]]
    first, second = (group.rows[0].cells[0.01] for group in board.groups)
    assert (first.value, len(first.runs), first.best) == (0.8, 1, True)
    assert (second.value, second.best) == (0.9, False)


@pytest.mark.parametrize(
    "change, note",
    [
        ({"data_fingerprint": "e" * 40}, "pre-training data eeeeeeeeee"),
        ({"pretrain": {"steps": 9}}, "pre-training steps 9"),
        ({"bundle_hash": "other"}, "weights other"),
    ],
)
def test_other_pretraining_gives_a_row_of_its_own(tmp_path, change, note):
    name = "mgca resnet18"
    other = fake.classification(name, 0.01, seed=1, value=0.9, provenance=fake.provenance(name, **change))
    board = only_board(tmp_path, fake.classification(name, 0.01, value=0.8), other)
    assert len(board.groups[0].rows) == 2
    assert cells(board)[f"{name} ({note})"].value == 0.9


def test_another_recipe_is_neither_averaged_nor_a_repeat_and_is_said(tmp_path):
    tuned = fake.classification("a", 0.01, value=0.9, provenance=fake.provenance("a", recipe="tuned1"))
    board = only_board(
        tmp_path,
        fake.classification("a", 0.01, value=0.8, provenance=fake.provenance("a", recipe="usual1")),
        fake.classification("b", 0.01, value=0.7, provenance=fake.provenance("b", recipe="usual1")),
        tuned,
    )
    assert {name: cell.value for name, cell in cells(board).items()} == {
        "a (recipe tuned1)": 0.9,
        "a (recipe usual1)": 0.8,
        "b (recipe usual1)": 0.7,
    }
    assert not board.repeats


def test_pretraining_seeds_are_repetitions(tmp_path):
    name = "mgca resnet18"
    other = fake.provenance(name, bundle_hash="other")
    board = only_board(
        tmp_path, fake.classification(name, 0.01), fake.classification(name, 0.01, pretrain_seed=1, provenance=other)
    )
    assert len(cells(board)[name].runs) == 2


@pytest.mark.parametrize("key", ["split", "protocol", "adaptation", "target", "task"])
def test_anything_else_gives_a_board_of_its_own(tmp_path, key):
    fake.write_result(tmp_path / "a", fake.classification("a", 0.01))
    fake.write_result(tmp_path / "b", fake.classification("a", 0.01, seed=1, **{key: "different"}))
    found = boards(collect(tmp_path).evaluations)
    assert len(found) == 2
    assert len({board.slug for board in found}) == 2


def test_repeated_run_counts_once(tmp_path):
    later = fake.provenance("a", started="2025-06-01T00:00:00+00:00", config_hash="new")
    board = only_board(
        tmp_path, fake.classification("a", 0.01, value=0.9, provenance=later), fake.classification("a", 0.01, value=0.1)
    )
    cell = cells(board)["a"]
    assert (cell.value, len(cell.runs)) == (0.9, 1)
    assert board.repeats == ("run01 (replaced by run00, which has another configuration)",)


def test_draws_of_all_labels_are_repeats(tmp_path):
    three = [fake.classification("a", 1.0, draw=d, value=0.8) for d in (0, 1, 2)]
    board = only_board(tmp_path, *three)
    assert len(cells(board, 1.0)["a"].runs) == 1
    assert len(board.repeats) == 2


def test_csv_equals_table(tmp_path):
    (board, _) = boards(collect(fake.write_runs(tmp_path)).evaluations)
    table = leaderboard_table(board)
    records = list(csv.DictReader(io.StringIO(table.csv())))
    shown = {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}
    assert len(records) == 3 * 4
    for record in records:
        text = shown[record["backbone"]][fraction_name(float(record["label_fraction"]))]
        assert number(float(record["value"]), "auroc") in text
        if record["low"] != record["high"]:
            assert f"({number(float(record['low']), 'auroc')}–{number(float(record['high']), 'auroc')})" in text
        assert text.startswith("**") == (record["best"] == "True")
        assert ("intervals overlap" in text) == (record["tie_by"] == "overlap") == (record["tie"] == "True")


def test_further_tables(tmp_path):
    (board, retrieval) = boards(collect(fake.write_runs(tmp_path)).evaluations)
    measures = measures_table(board)
    assert measures.columns == ("Backbone", "Labels", "AUROC", "AUPRC", "F1", "Accuracy")
    assert len(measures.rows) == 9 + 3
    labels = labels_table(board)
    assert [row[0] for row in labels.rows] == fake.LABELS
    assert labels.columns[-1] == "trivial answer"
    assert labels.rows[1][1] == "30 of 120"
    assert len(labels.records) == 9 * len(fake.LABELS)
    assert labels_table(retrieval) is None


def test_markdown_cannot_break_out_of_its_cells(tmp_path):
    board = only_board(tmp_path, fake.classification("a|b\n<b>", 0.01))
    text = leaderboard_table(board).markdown()
    assert "a\\|b &lt;b>" in text
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 4


def test_undefined_metric_is_a_dash(tmp_path):
    empty = {"value": None, "low": None, "high": None, "n": 0}
    board = only_board(tmp_path, fake.classification("a", 0.01, metrics={"auroc": empty}, trivial={"auroc": empty}))
    assert board.groups[0].trivial is None
    assert leaderboard_table(board).rows == (("a", "–"),)


def test_wording():
    assert [fraction_name(f) for f in (None, 0.001, 0.01, 1.0)] == ["no labels", "0.1\u202f%", "1\u202f%", "100\u202f%"]
    assert metric_name("t2i/R@10") == "text to image recall at 10"
    assert metric_name("dice") == "Dice"
    assert number(None, "x") == "–"
    assert number(-0.1234, "x") == "−0.123"
    assert number(12.34, "i2t/median_rank") == "12.3"
    assert rises("i2t/R@1")
    assert not rises("i2t/median_rank")
    assert not rises("false_positive_rate/Pneumothorax")
    assert not rises("false_positives")
    assert not rises("perplexity/all")
    assert (rises("somebodys_share"), rises("somebodys_error")) == (True, False)
    assert short("sha256:" + "ab" * 32) == "ababababab"
    assert short("a name") == "a name"
    assert words("linear_probe") == "linear probe"
    assert sentence("mAP of boxes") == "mAP of boxes"
    assert words("vqa") == "VQA"
    assert counted(1, "run") == "1 run"
    assert counted(2000, "run") == "2,000 runs"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert [duration(s) for s in (None, "x", 5, 61, 7260)] == ["", "", "5 s", "1 min", "2 h 1 min"]


def test_json_of_numbers_only(tmp_path):
    result = fake.classification("a", 0.01)
    result["metrics"]["auroc"]["value"] = True
    fake.write_result(tmp_path / "bad", result)
    fake.write_result(tmp_path / "good", fake.classification("a", 0.01))
    (problem,) = collect(tmp_path).unreadable
    assert problem.reason == "True is not a number"
    assert json.loads((tmp_path / "good" / "result.json").read_text())["schema"] == 1


def test_what_cannot_be_measured_is_a_dash_with_its_reason(tmp_path):
    fake.write_result(tmp_path / "a", fake.classification("a", 1.0))
    result = fake.classification("b", 1.0)
    why = "This task needs encoders that compare."
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    fake.write_result(
        tmp_path / "b",
        result | {"metrics": {result["primary"]: nothing}, "labels": [], "facts": {"not_applicable": why}},
    )
    (board,) = boards(collect(tmp_path).evaluations)
    (group,) = board.groups
    assert [row.name for row in group.rows] == ["a", "b"]
    table = leaderboard_table(board)
    assert table.rows[1][1] == "–"
    assert why in table.rows[1][0]


def test_every_table_is_latex_of_equal_columns_and_says_nothing_to_latex(tmp_path):
    name = r"100%_a & b\c{d}#$~^"
    board = only_board(tmp_path, fake.classification(name, 0.01, value=0.8), fake.classification("b", 0.01, value=0.6))
    for table in (leaderboard_table(board), measures_table(board), labels_table(board)):
        lines = table.latex().splitlines()
        body = [line for line in lines if line.endswith(r" \\")]
        assert len(body) == len(table.rows) + 1
        for line in body:
            assert line.replace(r"\&", "").count("&") == len(table.columns) - 1
        assert [lines.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    text = leaderboard_table(board).latex()
    assert r"100\%\_a \& b\textbackslash{}c\{d\}\#\$\textasciitilde{}\textasciicircum{}" in text
    assert r"\textbf{0.800} (0.780--0.820)" in text
    assert r"1\,\% &" in text or r"1\,\% \\" in text


def test_values_that_round_to_nothing_have_no_sign():
    assert [number(v, "x") for v in (-0.0001, 0.0, -0.002)] == ["0.000", "0.000", "\u22120.002"]
    assert [signed(v, "x") for v in (-0.0001, 0.0001, 0.002)] == ["0.000", "0.000", "+0.002"]
