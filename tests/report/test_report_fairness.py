"""What is said beside a table: unequal training, the search that all had, the rows that are missing."""

import pytest
import report_fixtures as fake

from vlp_bench.report.boards import boards
from vlp_bench.report.collect import collect
from vlp_bench.report.fairness import fairness
from vlp_bench.report.tables import leaderboard_table

ALIKE = {"steps": 100, "batch_size": 64, "select": "val/loss"}


def cell(name, method, *, recipe="r", lr=0.1, data="d1", select="loss", **trained):
    adaptation = {"lr": lr, "batch_size": 48, "select": select}
    pretrain = ALIKE | trained if method not in ("random", "imagenet") else {}
    about = fake.provenance(
        name, recipe=recipe, pretrain=pretrain, data_fingerprint=data, config={"adaptation": adaptation}
    )
    return fake.classification(name, 0.1, method=method, provenance=about)


def said(tmp_path, *cells):
    for i, result in enumerate(cells):
        fake.write_result(tmp_path / f"{i}", result)
    (board,) = boards(collect(tmp_path).evaluations)
    assert leaderboard_table(board).notes == tuple(fairness(board))
    return fairness(board)


BASELINES = [cell("random a", "random"), cell("imagenet a", "imagenet"), cell("lsp a", "lsp")]


def test_a_fair_table_says_one_thing(tmp_path):
    (only,) = said(tmp_path, *BASELINES, cell("mgca a", "mgca"))
    assert only == (
        "Every row had the same search downstream: one setting (lr=0.1, batch_size=48); epoch by validation loss."
    )


def test_a_list_of_rates_is_a_search(tmp_path):
    found = said(tmp_path, *(cell(f"{m} a", m, lr=[1e-4, 1e-3]) for m in ("random", "imagenet", "lsp", "mgca")))
    assert "lr of [0.0001, 0.001], chosen on validation (batch_size=48)" in found[0]


@pytest.mark.parametrize(
    "change, text",
    [
        ({"steps": 300}, "different numbers of updates: lsp a: 100; mgca a: 300"),
        ({"batch_size": 16}, "different batch sizes: mgca a: 16; lsp a: 64"),
        ({"select": "last"}, None),
        ({"data": "d2"}, "different data: lsp a: d1; mgca a: d2"),
        ({"recipe": "other", "lr": 5}, "Not searched alike downstream"),
    ],
)
def test_what_differs_is_said_with_both_sides(tmp_path, change, text):
    unlike = cell("mgca a", "mgca", **{k: v for k, v in change.items() if k != "select"})
    if "select" in change:
        unlike["provenance"]["pretrain"]["select"] = "last"
        text = "different rules for the exported epoch: mgca a: last; lsp a: val/loss"
    assert any(text in note for note in said(tmp_path, *BASELINES, unlike))


def test_missing_baselines_are_named_with_the_way_to_them(tmp_path):
    found = said(tmp_path, cell("mgca a", "mgca"), cell("random a", "random"))
    missing = [note for note in found if note.startswith("No row")]
    assert [note.split(":")[0] for note in missing] == [
        "No row of the ImageNet encoder",
        "No row of the label-supervised encoder (LSP)",
    ]
    assert "weights=pretrained" in missing[0]


def test_runs_of_other_batch_sizes_are_not_averaged(tmp_path):
    """Seeds of one recipe are repetitions; another recipe of the same name, data and steps is not."""
    cells = []
    for seed, recipe in enumerate(("x", "x", "y")):
        result = cell("mgca a", "mgca", provenance_recipe=recipe)
        result["provenance"]["pretrain"]["provenance"] = {"recipe": recipe}
        cells.append(result | {"pretrain_seed": seed})
    for i, result in enumerate(cells):
        fake.write_result(tmp_path / f"{i}", result)
    (board,) = boards(collect(tmp_path).evaluations)
    assert sorted(len(c.runs) for _, _, c in board.cells()) == [1, 2]
    assert all("pre-training recipe" in row.note for group in board.groups for row in group.rows)
