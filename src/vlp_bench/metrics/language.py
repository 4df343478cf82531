"""BLEU, ROUGE-L and perplexity of generated reports, with patient-level bootstrap intervals.

Corpus BLEU is a function of sums over the reports (n-grams found, n-grams written, words of both sides). They are
counted once for each report, so that a resample of patients only weighs them.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlp_bench.metrics.bootstrap import Entry, entry, over_patients

ORDERS = 4
#: weights of the 1- to n-grams in BLEU-n (Papineni et al., ACL 2002)
WEIGHTS = tuple(tuple([1 / n] * n) for n in range(1, ORDERS + 1))
#: what MedViLL's authors gave to nltk: the thirds of BLEU-3 are rounded
PUBLISHED_WEIGHTS = ((1.0,), (0.5, 0.5), (0.33, 0.33, 0.33), (0.25, 0.25, 0.25, 0.25))

_WORD = re.compile(r"[^\W_]+")

Words = Sequence[str]


def words(text: str) -> list[str]:
    """Words of a text in lower case; punctuation is left out, which some decoders never write.

    >>> words("Left-sided PICC; tip at 2.5 cm.")
    ['left', 'sided', 'picc', 'tip', 'at', '2', '5', 'cm']
    """
    return _WORD.findall(text.lower())


def bleu_statistics(references: Sequence[Words], hypotheses: Sequence[Words], *, nltk: bool = False) -> NDArray:
    """Count what corpus BLEU adds up.

    Args:
        references: N texts as words, one for each hypothesis.
        hypotheses: N texts as words.
        nltk: a text too short for any n-gram counts as one that was not found, as in nltk's corpus_bleu; otherwise it
            counts as none.

    Returns:
        (N, 10) int64: n-grams found, each as often at most as the reference has it, for n = 1..4; n-grams written;
        words of the hypothesis; words of the reference.

    Raises:
        ValueError: not as many hypotheses as references, or none.
    """
    if len(references) != len(hypotheses) or not references:
        raise ValueError(f"{len(references)} references for {len(hypotheses)} hypotheses")
    rows = [_counted(r, h, int(nltk)) for r, h in zip(references, hypotheses, strict=True)]
    return np.array(rows, np.int64)


def _counted(reference: Words, hypothesis: Words, least: int) -> list[int]:
    orders = range(1, ORDERS + 1)
    found = [(_ngrams(reference, n) & _ngrams(hypothesis, n)).total() for n in orders]
    written = [max(len(hypothesis) - n + 1, least) for n in orders]
    return [*found, *written, len(hypothesis), len(reference)]


def _ngrams(text: Words, n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(text[i:] for i in range(n)), strict=False))


def bleu(sums: NDArray, weights: Sequence[float]) -> NDArray[np.float64]:
    """Corpus BLEU of summed statistics (Papineni et al., ACL 2002), without smoothing.

    Args:
        sums: (..., 10) as `bleu_statistics` counts them, summed over reports.
        weights: of the logarithms of the precisions of 1-grams, 2-grams, ...

    Returns:
        (...) in [0, 1]: 0 where a precision that has a weight is 0.
    """
    sums = np.asarray(sums, np.float64)
    found, written = sums[..., : len(weights)], sums[..., ORDERS : ORDERS + len(weights)]
    length, reference = sums[..., -2], sums[..., -1]
    precision = np.divide(found, written, out=np.zeros_like(found), where=written > 0)
    logarithm = np.log(precision, out=np.full_like(precision, -np.inf), where=precision > 0)
    ratio = np.divide(reference, length, out=np.full_like(length, np.inf), where=length > 0)
    return np.exp(np.minimum(1 - ratio, 0) + logarithm @ np.asarray(weights, np.float64))


def rouge_l(references: Sequence[Words], hypotheses: Sequence[Words]) -> NDArray[np.float64]:
    """ROUGE-L of each report: F1 of the longest common subsequence (Lin, 2004, with beta = 1, as rouge_score has it).

    Args:
        references: N texts as words.
        hypotheses: N texts as words.

    Returns:
        (N,) in [0, 1].
    """
    lengths = [len(r) + len(h) for r, h in zip(references, hypotheses, strict=True)]
    common = [_common(r, h) for r, h in zip(references, hypotheses, strict=True)]
    return 2 * np.array(common, np.float64) / np.maximum(lengths, 1)


def _common(a: Words, b: Words) -> int:
    """Length of the longest common subsequence, one row of the usual table at a time."""
    if not a or not b:
        return 0
    equal = np.asarray(a)[:, None] == np.asarray(b)
    row = np.zeros(len(b) + 1, np.int64)
    for same in equal:
        row[1:] = np.maximum.accumulate(np.maximum(row[1:], row[:-1] + same))
    return int(row[-1])


def language_metrics(
    references: Sequence[Words],
    hypotheses: Sequence[Words],
    patients: ArrayLike,
    *,
    weights: Sequence[Sequence[float]] = WEIGHTS,
    nltk: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Entry]:
    """Measure generated reports against the true ones.

    Args:
        references: N true reports as words.
        hypotheses: N generated reports as words.
        patients: (N,) patient of every report.
        weights: of BLEU-1, BLEU-2, ...
        nltk: see `bleu_statistics`.
        resamples: number of bootstrap resamples; 0 gives no intervals.
        seed: seed of the bootstrap.

    Returns:
        `bleu1` to `bleu4` of the corpus and `rouge_l`, the mean over reports, each as
        `{"value", "low", "high", "n"}`.

    Raises:
        ValueError: shapes do not fit.
    """
    rows = np.column_stack(
        [bleu_statistics(references, hypotheses, nltk=nltk), rouge_l(references, hypotheses), np.ones(len(references))]
    )
    names = [f"bleu{n}" for n in range(1, len(weights) + 1)]

    def measure(sums: NDArray) -> NDArray:
        return np.stack([*(bleu(sums[..., :-2], w) for w in weights), sums[..., -2] / sums[..., -1]], -1)

    values, resampled = over_patients(rows, patients, measure, resamples, seed)
    return {name: entry(float(values[i]), resampled[:, i], len(rows)) for i, name in enumerate([*names, "rouge_l"])}


def perplexity_metrics(
    loss: ArrayLike, tokens: ArrayLike, patients: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Entry]:
    """Perplexity of the true reports.

    Reports without a token are left out. Perplexities are of the pieces of one vocabulary, and cannot be compared
    between two.

    Args:
        loss: (N,) sum of -log p of each report's tokens, natural logarithm.
        tokens: (N,) number of its tokens.
        patients: (N,) patient of every report.
        resamples: number of bootstrap resamples; 0 gives no intervals.
        seed: seed of the bootstrap.

    Returns:
        `perplexity`, exp of the mean over all tokens, and `perplexity_per_report`, the mean over reports of exp of
        the report's mean (as MedViLL reports it), each as `{"value", "low", "high", "n"}`.

    Raises:
        ValueError: shapes do not fit, or no report has a token.
    """
    total, count, who = np.asarray(loss, np.float64), np.asarray(tokens, np.float64), np.asarray(patients)
    if not total.shape == count.shape == who.shape:
        raise ValueError(f"losses {total.shape}, tokens {count.shape} and patients {who.shape} differ in shape")
    kept = count > 0
    if not kept.any():
        raise ValueError("no report has a token")
    total, count, who = total[kept], count[kept], who[kept]
    rows = np.column_stack([total, count, np.exp(total / count), np.ones(len(total))])

    def measure(sums: NDArray) -> NDArray:
        return np.stack([np.exp(sums[..., 0] / sums[..., 1]), sums[..., 2] / sums[..., 3]], -1)

    values, resampled = over_patients(rows, who, measure, resamples, seed)
    names = ("perplexity", "perplexity_per_report")
    return {name: entry(float(values[i]), resampled[:, i], len(rows)) for i, name in enumerate(names)}
