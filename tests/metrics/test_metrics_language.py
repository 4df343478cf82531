import doctest
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import corpus_bleu
from rouge_score.rouge_scorer import RougeScorer
from torchmetrics.functional.text import bleu_score

from vlp_bench.metrics import language
from vlp_bench.metrics.language import (
    PUBLISHED_WEIGHTS,
    WEIGHTS,
    bleu,
    bleu_statistics,
    language_metrics,
    perplexity_metrics,
    rouge_l,
    words,
)

WORDS = ["no", "left", "right", "effusion", "pneumothorax", "small", "the", "heart"]


def corpus(seed, count=30, shortest=4):
    rng = np.random.default_rng(seed)
    references = [list(rng.choice(WORDS, rng.integers(shortest, 15))) for _ in range(count)]
    hypotheses = [r[: rng.integers(shortest, 15)] + list(rng.choice(WORDS, rng.integers(0, 4))) for r in references]
    return references, hypotheses


def test_the_words_of_a_text():
    assert doctest.testmod(language).failed == 0
    assert words("NO_effusion;  (T-spine) 3.5") == ["no", "effusion", "t", "spine", "3", "5"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weights", WEIGHTS)
def test_bleu_is_that_of_torchmetrics(seed, weights):
    references, hypotheses = corpus(seed)
    expected = bleu_score(
        [" ".join(h) for h in hypotheses],
        [[" ".join(r)] for r in references],
        n_gram=len(weights),
        weights=list(weights),
    )
    got = bleu(bleu_statistics(references, hypotheses).sum(0), weights)
    assert got == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weights", PUBLISHED_WEIGHTS)
def test_published_bleu_is_that_of_nltk(seed, weights):
    references, hypotheses = corpus(seed, shortest=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = corpus_bleu([[r] for r in references], hypotheses, weights=weights)
    got = bleu(bleu_statistics(references, hypotheses, nltk=True).sum(0), weights)
    assert got == pytest.approx(expected, abs=1e-12)


def test_bleu_by_hand():
    sums = bleu_statistics([["the", "the", "heart"]], [["the", "heart", "heart", "heart"]]).sum(0)
    # "the" and "heart" are found once each, "the heart" once; nothing is too short.
    assert sums.tolist() == [2, 1, 0, 0, 4, 3, 2, 1, 4, 3]
    assert bleu(sums, (1.0,)) == pytest.approx(2 / 4)
    assert bleu(sums, (0.5, 0.5)) == pytest.approx(np.sqrt(2 / 4 * 1 / 3))
    assert bleu(sums, WEIGHTS[3]) == 0
    short = bleu_statistics([["the", "heart", "is"]], [["the"]]).sum(0)
    assert bleu(short, (1.0,)) == pytest.approx(np.exp(1 - 3))
    assert bleu(bleu_statistics([["the"]], [[]]).sum(0), (1.0,)) == 0


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from("abcd"), max_size=12), st.lists(st.sampled_from("abcd"), max_size=12))
def test_rouge_l_is_that_of_rouge_score(reference, hypothesis):
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    expected = scorer.score(" ".join(reference), " ".join(hypothesis))["rougeL"].fmeasure
    assert rouge_l([reference], [hypothesis])[0] == pytest.approx(expected)


def test_the_bootstrap_weighs_reports_by_patient():
    references, hypotheses = corpus(3, 12)
    patients = np.repeat(["a", "b", "c"], 4)
    got = language_metrics(references, hypotheses, patients, resamples=400)
    assert set(got) == {"bleu1", "bleu2", "bleu3", "bleu4", "rouge_l"}
    assert got["rouge_l"]["value"] == pytest.approx(rouge_l(references, hypotheses).mean())
    # Three patients have ten multisets: the interval's ends are among their values.
    possible = []
    for drawn in np.ndindex(3, 3, 3):
        rows = [i for p in drawn for i in range(4 * p, 4 * p + 4)]
        sums = bleu_statistics([references[i] for i in rows], [hypotheses[i] for i in rows]).sum(0)
        possible.append(bleu(sums, WEIGHTS[3]))
    for end in ("low", "high"):
        assert np.isclose(possible, got["bleu4"][end]).any()
    assert got["bleu4"]["low"] <= got["bleu4"]["value"] <= got["bleu4"]["high"]


def test_the_same_reports_are_perfect_and_none_are_refused():
    references, _ = corpus(1, 6)
    got = language_metrics(references, references, np.arange(6), resamples=10)
    assert all(v["value"] == v["low"] == v["high"] == pytest.approx(1) for v in got.values())
    with pytest.raises(ValueError, match="0 references"):
        language_metrics([], [], [])
    with pytest.raises(ValueError, match="2 patients for 6 items"):
        language_metrics(references, references, [1, 2])


def test_perplexity_by_hand():
    loss, tokens = [2 * np.log(4), 1 * np.log(2), 0.0], [2, 1, 0]
    got = perplexity_metrics(loss, tokens, ["a", "b", "c"], resamples=200)
    assert got["perplexity"]["value"] == pytest.approx((4 * 4 * 2) ** (1 / 3))
    assert got["perplexity_per_report"]["value"] == pytest.approx((4 + 2) / 2)
    assert got["perplexity"]["n"] == 2
    assert got["perplexity_per_report"]["low"] == pytest.approx(2)
    with pytest.raises(ValueError, match="no report has a token"):
        perplexity_metrics([0.0], [0], ["a"])
    with pytest.raises(ValueError, match="differ in shape"):
        perplexity_metrics([0.0], [1, 2], ["a"])
