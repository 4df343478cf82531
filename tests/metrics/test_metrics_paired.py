import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from vlp_bench.metrics import (
    auroc_statistic,
    bootstrap_difference,
    bootstrap_t_difference,
    bootstrap_weights,
    delong,
    holm,
    mean_statistic,
    normal_difference,
    paired_bootstrap,
    rank_intervals,
    t_difference,
    variance_split,
)
from vlp_bench.metrics.bootstrap import Patients


def sample(seed=0, patients=40, items=120, labels=3, systems=2, levels=6, unknown=0.1, effect=0.8):
    """Images of patients that resemble each other, scored by related systems, with ties and unknown targets."""
    rng = np.random.default_rng(seed)
    who = np.concatenate([np.arange(patients), rng.integers(0, patients, items - patients)])
    trait = rng.normal(size=(patients, labels))
    targets = (trait[who] + 0.5 * rng.normal(size=(items, labels)) > 0.4).astype(float)
    common = effect * targets + 0.6 * trait[who] + rng.normal(size=(items, labels))
    scores = [np.round((common + 0.7 * rng.normal(size=(items, labels))) * levels) / levels for _ in range(systems)]
    targets[rng.random(targets.shape) < unknown] = np.nan
    return scores, targets, who


def sklearn_macro(scores, targets, items):
    values = []
    for s, t in zip(scores[items].T, targets[items].T, strict=True):
        known = ~np.isnan(t)
        if len(np.unique(t[known])) == 2:
            values.append(roc_auc_score(t[known], s[known]))
    return np.mean(values)


# -- paired bootstrap


def test_bootstrap_of_a_difference_equals_repeating_the_items():
    (a, b), targets, who = sample()
    groups = Patients.of(who)
    statistics = [[auroc_statistic(x, targets, groups)] for x in (a, b)]
    (value_a, value_b), drawn = paired_bootstrap(statistics, groups.count, resamples=60, seed=3)
    everything = np.arange(len(who))
    assert value_a == pytest.approx(sklearn_macro(a, targets, everything), abs=1e-12)
    assert value_b == pytest.approx(sklearn_macro(b, targets, everything), abs=1e-12)
    brute = []
    for weights in np.concatenate(list(bootstrap_weights(who, 60, 3))):
        items = np.repeat(everything, weights)
        brute.append(sklearn_macro(a, targets, items) - sklearn_macro(b, targets, items))
    assert drawn[0] - drawn[1] == pytest.approx(np.array(brute), abs=1e-12)
    found = bootstrap_difference(value_a, value_b, *drawn)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(brute, [2.5, 97.5])))


def test_draws_do_not_depend_on_the_chunks():
    (a,), targets, who = sample(systems=1)
    groups = Patients.of(who)
    statistic = auroc_statistic(a, targets, groups)
    one, many = (paired_bootstrap([[statistic]], groups.count, resamples=25, seed=1, width=w)[1] for w in (None, 10**6))
    assert (one == many).all()


def test_runs_are_averaged_within_each_resample():
    (a, b, c), targets, who = sample(systems=3)
    groups = Patients.of(who)
    each = [auroc_statistic(x, targets, groups) for x in (a, b, c)]
    values, drawn = paired_bootstrap([[each[0], each[1]], [each[2]], each[:1], each[1:2]], groups.count, resamples=30)
    assert values[0] == pytest.approx((values[2] + values[3]) / 2)
    assert drawn[0] == pytest.approx((drawn[2] + drawn[3]) / 2)


def test_mean_over_items_equals_repeating_the_items():
    rng = np.random.default_rng(5)
    who, values = rng.integers(0, 9, 50), rng.normal(size=50)
    values[::7] = np.nan
    groups = Patients.of(who)
    (point,), drawn = paired_bootstrap([[mean_statistic(values, groups)]], groups.count, resamples=40, seed=2)
    assert point == pytest.approx(np.nanmean(values))
    weights = np.concatenate(list(bootstrap_weights(who, 40, 2)))
    assert drawn[0] == pytest.approx(np.array([np.nanmean(np.repeat(values, w)) for w in weights]))


def test_any_function_of_counts_can_be_compared():
    who = np.arange(6)
    groups = Patients.of(who)
    values, drawn = paired_bootstrap([[lambda c: c.max(axis=1).astype(float)]], groups.count, resamples=20)
    assert values.tolist() == [1.0]
    assert drawn.min() >= 1


def test_p_value_by_hand():
    drawn = np.array([-0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])  # two at or below zero
    found = bootstrap_difference(0.3, 0.0, drawn, np.zeros(9))
    assert found.p == pytest.approx(2 * (1 + 2) / (9 + 1))
    assert bootstrap_difference(0.0, 0.3, np.zeros(9), drawn).p == found.p
    assert bootstrap_difference(0.3, 0.0, drawn + 1, np.zeros(9)).p == pytest.approx(2 / 10)
    assert bootstrap_difference(0.5, 0.5, drawn, drawn).p == 1.0
    assert bootstrap_difference(0.5, 0.5, drawn, drawn[:] + 1e-16).p == 1.0


def test_undefined_resamples_are_left_out():
    found = bootstrap_difference(0.2, 0.1, [0.3, np.nan, 0.3], [0.1, 0.1, 0.1])
    assert (found.low, found.high, found.p) == pytest.approx((0.2, 0.2, 2 / 3))
    empty = bootstrap_difference(np.nan, 0.1, [0.3], [0.1])
    assert np.isnan([empty.value, empty.low, empty.p]).all()


def test_a_label_with_one_class_takes_no_part():
    (a, _), targets, who = sample()
    targets[:, 1] = np.where(np.isnan(targets[:, 1]), np.nan, 1.0)
    groups = Patients.of(who)
    ones = np.ones((1, groups.count), np.int32)
    expected = sklearn_macro(a[:, [0, 2]], targets[:, [0, 2]], np.arange(len(who)))
    assert auroc_statistic(a, targets, groups)(ones)[0] == pytest.approx(expected)
    assert np.isnan(auroc_statistic(a[:, 1], targets[:, 1], groups)(ones)).all()


# -- DeLong


def test_delong_by_hand():
    found = delong([[[0.9, 0.4, 0.5, 0.1]]], [1, 1, 0, 0], None)
    # placements 1 and 1/2 of the positives, 1/2 and 1 of the negatives: variances of 1/8, halved twice and added
    assert found.value.tolist() == [[0.75]]
    assert found.covariance[0, 0, 0, 0] == pytest.approx(0.125)
    tied = delong([[[0.5, 0.4, 0.5, 0.1]]], [1, 1, 0, 0], None)
    # placements 3/4 and 1/2; 1/4 and 1
    assert tied.value[0, 0] == pytest.approx(0.625)
    assert tied.covariance[0, 0, 0, 0] == pytest.approx((0.125**2 * 2 + 0.375**2 * 2) / 2)


#: Albumin, total protein, K-G score and outcome (0: the event) of the 43 complete patients of DeLong et al. 1988.
OVARIAN = """
    3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1
    3.8 5.7 5 1   3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0
    2.3 4.4 6 1   4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1
    3.1 6.6 6 1   4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0
    3.7 6.1 5 1   3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1
    3.3 5.7 6 1   3.7 6.9 5 1  3.6 6.6 5 1
"""


def test_delong_of_the_ovarian_cancer_patients():
    """The example of SAS's PROC LOGISTIC, ROCCONTRAST: areas, standard errors, contrasts with the K-G score."""
    albumin, protein, score, outcome = np.array(OVARIAN.split(), float).reshape(-1, 4).T
    found = delong([[albumin], [10 - score], [protein]], outcome, None)
    assert found.value[:, 0] == pytest.approx([0.7366, 0.7258, 0.6478], abs=5e-5)
    variances = np.diag(found.covariance[:, 0, :, 0])
    assert np.sqrt(variances) == pytest.approx([0.0927, 0.1028, 0.1000], abs=1e-4)
    for other, value, error, p in ((0, 0.0108, 0.0953, 0.9102), (2, -0.0780, 0.1046, 0.4561)):
        difference = found.difference(other, 1)
        assert difference.value == pytest.approx(value, abs=5e-5)
        assert (difference.high - difference.low) / 3.919928 == pytest.approx(error, abs=5e-5)
        assert difference.p == pytest.approx(p, abs=5e-5)


def defined(scores_a, scores_b, targets, who):
    """Covariance of two AUROCs from all pairs of items (Obuchowski 1997, equations 2 to 5)."""

    def psi(s):
        return (s[targets == 1][:, None] > s[targets == 0]) + 0.5 * (s[targets == 1][:, None] == s[targets == 0])

    m, n = (targets == 1).sum(), (targets == 0).sum()
    of_positive, of_negative = who[targets == 1], who[targets == 0]
    clusters = np.unique(who)
    sums = []
    for s in (scores_a, scores_b):
        pairs = psi(s)
        theta = pairs.mean()
        v10, v01 = pairs.mean(axis=1), pairs.mean(axis=0)
        x = np.array([(v10[of_positive == c] - theta).sum() for c in clusters])
        y = np.array([(v01[of_negative == c] - theta).sum() for c in clusters])
        sums.append((x, y))
    (x, y), (v, w) = sums
    i10, i01, i = len(np.unique(of_positive)), len(np.unique(of_negative)), len(clusters)
    s10, s01 = i10 / ((i10 - 1) * m) * (x @ v), i01 / ((i01 - 1) * n) * (y @ w)
    s11 = i / (i - 1) * (x @ w), i / (i - 1) * (y @ v)
    return s10 / m + s01 / n + sum(s11) / (m * n)


@pytest.mark.parametrize("clustered", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_delong_equals_its_definition(seed, clustered):
    (a, b), targets, who = sample(seed)
    found = delong([[a], [b]], targets, who if clustered else None)
    for i in range(3):
        known = ~np.isnan(targets[:, i])
        rows = (a[known, i], b[known, i], targets[known, i], who[known] if clustered else np.flatnonzero(known))
        assert found.value[0, i] == pytest.approx(roc_auc_score(rows[2], rows[0]), abs=1e-12)
        for k in range(2):
            for other in range(2):
                expected = defined(rows[k], rows[other], *rows[2:])
                assert found.covariance[k, i, other, i] == pytest.approx(expected, rel=1e-10)


def test_delong_of_one_image_a_patient_is_delong():
    (a, b), targets, _ = sample(2, patients=80, items=80, unknown=0.0)
    clustered, plain = (delong([[a], [b]], targets, who) for who in (np.arange(80), None))
    assert clustered.covariance == pytest.approx(plain.covariance, rel=1e-12)


def test_delong_difference_of_a_label_and_of_the_macro_average():
    (a, b), targets, who = sample(1)
    found = delong([[a], [b]], targets, who)
    one = found.difference(0, 1, 2)
    c = found.covariance[:, 2, :, 2]
    assert one.value == pytest.approx(found.value[0, 2] - found.value[1, 2])
    assert one.high - one.value == pytest.approx(1.959963984540054 * np.sqrt(c[0, 0] + c[1, 1] - 2 * c[0, 1]))
    macro = found.difference(0, 1)
    assert macro.value == pytest.approx(np.mean(found.value[0] - found.value[1]))
    signs = np.repeat([1, -1], 3) / 3
    z = macro.value / np.sqrt(signs @ found.covariance.reshape(6, 6) @ signs)
    assert macro.p == pytest.approx(2 * stats.norm.sf(abs(z)))
    assert found.difference(0, 0).p == 1.0


def test_delong_of_a_repeated_label_is_that_of_the_label():
    (a, b), targets, who = sample(1, labels=1)
    once = delong([[a], [b]], targets, who).difference(0, 1)
    thrice = delong([[np.tile(a, 3)], [np.tile(b, 3)]], np.tile(targets, 3), who).difference(0, 1)
    assert (thrice.value, thrice.low, thrice.p) == pytest.approx((once.value, once.low, once.p), rel=1e-9)


def test_delong_averages_runs():
    (a, b, c), targets, who = sample(4, systems=3)
    found = delong([[a, b], [c], [a], [b]], targets, who)
    assert found.value[0] == pytest.approx((found.value[2] + found.value[3]) / 2)
    flat = found.covariance.reshape(12, 12)
    both = flat[6:9, 6:9] + flat[9:, 9:] + flat[6:9, 9:] + flat[9:, 6:9]
    assert flat[:3, :3] == pytest.approx(both / 4)


def test_delong_says_nothing_of_a_single_positive_patient():
    found = delong([[[0.9, 0.8, 0.2, 0.3]], [[0.1, 0.8, 0.2, 0.3]]], [1, 1, 0, 0], ["x", "x", "y", "z"])
    assert found.value.tolist() == [[1.0], [0.5]]
    difference = found.difference(0, 1)
    assert difference.value == 0.5
    assert np.isnan([difference.low, difference.p]).all()
    assert np.isnan(delong([[[0.1, 0.2]]], [1, 1], None).value).all()


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """With 95 % intervals, about 95 of 100 data sets of related images hold the true difference."""
    big_scores, big_targets, _ = sample(99, patients=60_000, items=120_000, labels=2, levels=50, unknown=0)
    truth = sklearn_macro(big_scores[0] * 1.0, big_targets, np.arange(120_000))
    worse = [s.copy() for s in big_scores]
    rng = np.random.default_rng(0)
    worse[1] += 0.8 * rng.normal(size=worse[1].shape)
    truth -= sklearn_macro(worse[1], big_targets, np.arange(120_000))
    held = {"delong": 0, "bootstrap": 0}
    rounds = 400
    for seed in range(rounds):
        (a, b), targets, who = sample(seed + 1000, patients=120, items=300, labels=2, levels=50, unknown=0)
        b = b + 0.8 * np.random.default_rng(seed).normal(size=b.shape)
        found = {"delong": delong([[a], [b]], targets, who).difference(0, 1)}
        groups = Patients.of(who)
        values, drawn = paired_bootstrap(
            [[auroc_statistic(x, targets, groups)] for x in (a, b)], groups.count, resamples=400, seed=seed
        )
        found["bootstrap"] = bootstrap_difference(*values, *drawn)
        for name, difference in found.items():
            held[name] += difference.low <= truth <= difference.high
    for name, count in held.items():
        assert 0.92 <= count / rounds <= 0.98, (name, count / rounds)


@pytest.mark.slow
def test_plain_delong_is_too_sure_of_related_images():
    """Eight copies of each patient's image carry no more than one: only the clustered variance knows."""
    errors = {True: [], False: []}
    values = []
    for seed in range(600):
        (a,), targets, _ = sample(seed, patients=80, items=80, labels=1, systems=1, unknown=0)
        copies = np.repeat(np.arange(80), 8)
        for clustered in errors:
            found = delong([[a[copies]]], targets[copies], copies if clustered else None)
            errors[clustered].append(found.covariance.item() ** 0.5)
        values.append(found.value.item())
    assert np.mean(errors[True]) == pytest.approx(np.std(values), rel=0.1)
    assert np.mean(errors[False]) < 0.5 * np.std(values)


# -- tests of the papers


@pytest.mark.parametrize("equal", [True, False])
def test_t_tests_agree_with_scipy(equal):
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.8, 0.01, 3), rng.normal(0.78, 0.02, 4)
    expected = stats.ttest_ind(a, b, equal_var=equal)
    found = t_difference(a, b, equal_variances=equal)
    interval = expected.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == pytest.approx((expected.pvalue, interval.low, interval.high))
    assert found.value == pytest.approx(a.mean() - b.mean())


def test_t_test_of_constant_runs():
    assert t_difference([0.5, 0.5], [0.5, 0.5]).p == 1.0
    assert t_difference([0.6, 0.6], [0.5, 0.5], equal_variances=False).p == 0.0
    with pytest.raises(ValueError, match="two or more runs"):
        t_difference([0.5], [0.4, 0.3])


def test_bootstrap_t_is_as_sure_as_it_has_rounds():
    rng = np.random.default_rng(0)
    p = [bootstrap_t_difference(rng.normal(0.8, 0.02, n), rng.normal(0.79, 0.02, n)).p for n in (30, 3000)]
    assert p[1] < 1e-50 < p[0]


def test_normal_difference():
    found = normal_difference(1.0, 0.25)
    assert (found.low, found.high) == pytest.approx(stats.norm.interval(0.95, 1.0, 0.5))
    assert found.p == pytest.approx(2 * stats.norm.sf(2))
    assert normal_difference(0.1, 0.0).p == 0.0
    assert np.isnan(normal_difference(0.1, np.nan).p)


# -- families of comparisons


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert holm([]).shape == (0,)
    adjusted = holm([0.01, np.nan, 0.02])
    assert adjusted[[0, 2]] == pytest.approx([0.02, 0.02])
    assert np.isnan(adjusted[1])
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([1.5])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_keeps_order_and_never_lowers(raw):
    p, adjusted = np.array(raw), holm(raw)
    assert (adjusted >= p).all()
    assert (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
    assert (adjusted <= np.minimum(p * len(p), 1) + 1e-15).all()  # never stricter than Bonferroni
    assert adjusted.min() == pytest.approx(min(p.min() * len(p), 1))


def test_rank_intervals_by_hand():
    beats = np.zeros((4, 4), bool)
    beats[0, [2, 3]] = beats[1, 3] = True
    assert rank_intervals(beats).tolist() == [[1, 2], [1, 3], [2, 4], [3, 4]]
    assert rank_intervals(np.zeros((2, 2), bool)).tolist() == [[1, 2], [1, 2]]
    beats[3, 0] = True
    with pytest.raises(ValueError, match="beat each other"):
        rank_intervals(beats)


# -- variance split


def test_variance_split_is_the_analysis_of_variance():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(4, 1)) * 2 + rng.normal(size=(1, 3)) + 0.3 * rng.normal(size=(4, 3))
    rows, columns = y.mean(axis=1, keepdims=True), y.mean(axis=0, keepdims=True)
    of_rows, of_columns = 3 * np.var(rows, ddof=1), 4 * np.var(columns, ddof=1)
    rest = ((y - rows - columns + y.mean()) ** 2).sum() / (3 * 2)
    subsets, seeds = np.divmod(np.arange(12), 3)
    split = variance_split(y.ravel(), subsets.tolist(), seeds.tolist())
    expected = ((of_rows - rest) / 3, (of_columns - rest) / 4, rest)
    assert (split.subset, split.seed, split.residual) == pytest.approx(expected)
    assert split.note == ""


def test_variance_split_of_an_unbalanced_design_is_right_on_average():
    rng = np.random.default_rng(1)
    design = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 2), (3, 0), (3, 2), (2, 1), (4, 1), (4, 2)]
    subsets, seeds = (list(x) for x in zip(*design, strict=True))
    found = []
    for _ in range(1500):
        a, b = rng.normal(size=5) * 3, rng.normal(size=3) * 2
        split = variance_split(a[subsets] + b[seeds] + rng.normal(size=11), subsets, seeds)
        found.append((split.subset, split.seed, split.residual))
    assert np.mean(found, axis=0) == pytest.approx([9, 4, 1], rel=0.1)


def test_variance_split_never_goes_below_zero():
    split = variance_split([0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 1])
    assert (split.subset, split.seed) == (0.0, 0.0)
    assert split.residual == pytest.approx(1.0)


@pytest.mark.parametrize(
    "subsets, seeds, known, together, note",
    [
        ([0], [0], "", np.nan, "one run"),
        ([0, 0, 0], [0, 1, 2], "", 1.0, "how much subsets matter is not"),
        ([0, 1, 2], [0, 0, 0], "", 1.0, "how much seeds matter is not"),
        ([0, 1, 2], [0, 1, 2], "", 1.0, "all three are known"),
        ([0, 0, 1], [0, 1, 2], "subset", 0.5, "seed and rest are known"),
        ([0, 1, 2], [0, 0, 1], "seed", 0.5, "subset and rest are known"),
    ],
)
def test_variance_split_says_what_cannot_be_separated(subsets, seeds, known, together, note):
    values = [1.0, 2.0, 3.0][: len(subsets)]
    split = variance_split(values, subsets, seeds)
    assert note in split.note
    assert split.together == pytest.approx(together, nan_ok=True)
    for name in ("subset", "seed", "residual"):
        assert np.isnan(getattr(split, name)) == (name != known)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: auroc_statistic(np.zeros((3, 1)), np.zeros((3, 1)), Patients.of([1, 2])), "2 patients for 3 items"),
        (lambda: auroc_statistic([np.nan], [1], Patients.of([1])), "not all finite"),
        (lambda: auroc_statistic([0.1], [2], Patients.of([1])), "0, 1 or nan"),
        (lambda: mean_statistic([1.0], Patients.of([1, 2])), "for 2 items"),
        (lambda: paired_bootstrap([[]], 3), "without runs"),
        (lambda: delong([[]], [1, 0], None), "without runs"),
        (lambda: delong([[[0.1, 0.2]]], [1, 0], [1]), "1 patients for 2 items"),
        (lambda: delong([[[0.1, 0.2, 0.3]]], [1, 0], None), "shape"),
        (lambda: variance_split([1.0], [1, 2], [1]), "2 subsets"),
        (lambda: variance_split([1.0, 2.0], [1, 1], [1, 1]), "repetition"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
