"""What the benchmarks compute, beside the time that they take."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from vlp_bench.report.tables import pipe_table

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module


@pytest.fixture(scope="module")
def step_cost(scripts):
    return scripts("step_cost")


@pytest.fixture(scope="module")
def vocabulary(step_cost, tmp_path_factory):
    return step_cost.write_vocabulary(tmp_path_factory.mktemp("vocabulary"))


SMALL = ("vision=tiny", "+text.architecture.hidden_dropout_prob=0", "+text.architecture.attention_probs_dropout_prob=0")
METHODS = {
    "mgca": ("method.hidden_dim=64",),
    "refers": ("method.decoder={width: 64, heads: 4, feedforward: 64, layers: 1, dropout: 0.0}",),
    "prior": (
        "method.stage=3",
        "method.embed_dim=64",
        "method.decoder={layers: 1, heads: 4, hidden: 64, dropout: 0.0}",
    ),
    "medvill": (),
    "convirt": (),
    "lsp": (),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_networks_by_themselves_get_the_gradients_of_the_step(step_cost, vocabulary, name):
    case = step_cost.Case((f"method={name}", *SMALL, *METHODS[name]), batch=4, views=2)
    method, batch = step_cost.build_case(case, vocabulary, "cpu")
    parameters = list(method.vision.parameters())

    def loss():
        torch.manual_seed(0)
        terms = method.losses(batch)
        return torch.stack([method.weights(0.0)[k] * term for k, term in terms.items()]).sum()

    def gradients(run):
        method.zero_grad()
        run()
        return [p.grad.clone() for p in parameters]

    dense = step_cost.Dense(method, loss)
    assert "forward" not in vars(method.vision), "nothing is left behind"
    for ours, theirs in zip(gradients(dense), gradients(lambda: loss().backward()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3 * float(theirs.abs().max()) + 1e-9)


@pytest.mark.slow
def test_a_bigram_model_knows_pairs_and_nothing_else(scripts):
    perplexity = scripts("sanity").bigram_perplexity
    rng = np.random.default_rng(0)
    chance = [rng.integers(0, 8, 60) for _ in range(200)]
    assert perplexity(chance[:100], chance[100:150], chance[150:], 8) == pytest.approx(8, rel=0.05)
    circle = [np.arange(k, k + 60) % 8 for k in range(8)]
    assert perplexity(circle, circle, circle, 8) == pytest.approx(1, abs=0.02)


def test_a_table_takes_the_place_of_the_one_before(scripts, tmp_path):
    page = scripts("page")
    path = tmp_path / "page.md"
    start, other = "<!-- table -->\n", "<!-- other -->\nother\n<!-- end -->\n"
    path.write_text(f"before\n{start}old\n{page.END}\nafter\n{other}")
    for word in ("new", "newer"):
        page.put(path, pipe_table(("a", "b"), [(word, "1")]))
        table = f"| a | b |\n| --- | --- |\n| {word} | 1 |\n"
        assert path.read_text() == f"before\n{start}{table}{page.END}\nafter\n{other}"
    page.put(path, "another\n", "other")
    assert path.read_text().endswith("after\n<!-- other -->\nanother\n<!-- end -->\n")


def test_cost_of_intervals_is_measured_on_every_way(scripts):
    rows = scripts("bootstrap_cost").measure(images=60, patients=30, labels=2, resamples=5)
    assert len(rows) == 3
    assert all(float(seconds) >= 0 for _, seconds in rows)
