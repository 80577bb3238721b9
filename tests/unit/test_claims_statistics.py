"""The paired interval against the hand formula, and the verdict rule as a table."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from benchmarks import statistics
from benchmarks.statistics import (
    Paired,
    at_chance,
    bootstrap_means,
    mean_std,
    meets,
    paired,
    verdict,
)

pytestmark = pytest.mark.filterwarnings("ignore:Precision loss occurred")  # equal numbers

numbers = st.floats(-100, 100, allow_nan=False)
samples = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=12)
signs = st.sampled_from([1, -1, 0])


def interval(low: float, high: float, name: str = "ours", seeds: int = 5) -> Paired:
    mean = (low + high) / 2
    return Paired(name, "base", dict.fromkeys(range(seeds), mean), mean, low, high, 0.5)


def arms(rows):
    """Seed -> value, of each of the two arms."""
    return (dict(enumerate(values)) for values in zip(*rows, strict=True))


def lead(primary: Paired, control: Paired) -> Paired:
    """Method - control: the baseline cancels."""
    return paired("ours", "broken", primary.differences, control.differences)


def mirrored(pair: Paired, sign: int) -> Paired:
    """The same pair, or with sign -1 of metrics that are better when lower."""
    ends = sorted((sign * pair.low, sign * pair.high))
    turned = {seed: sign * value for seed, value in pair.differences.items()}
    return Paired(pair.method, pair.baseline, turned, sign * pair.mean, *ends, pair.pvalue)


MISSING = interval(math.nan, math.nan, seeds=0)
ELSEWHERE = Paired("broken", "base", {8: 0.0, 9: 0.0}, 0.0, -1.0, 1.0, 0.5)  # on other seeds


@given(samples)
def test_interval_is_mean_plus_t_times_standard_error(rows):
    differences = [a - b for a, b in rows]
    mean, n = math.fsum(differences) / len(rows), len(rows)
    spread = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1))
    assume(spread > 1e-6)
    half = stats.t.ppf(0.975, n - 1) * spread / math.sqrt(n)
    found = paired("ours", "base", *arms(rows))
    assert found.mean == pytest.approx(mean, abs=1e-9)
    assert found.low == pytest.approx(mean - half, rel=1e-6, abs=1e-8)
    assert found.high == pytest.approx(mean + half, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ([50.1, 51.9, 48.7], True),  # 50 lies in the interval
        ([51.0, 51.2, 51.1], False),  # little, but surely above
        ([60.0, 75.0, 52.0], True),  # more, but not surely
        ([48.0, 48.1, 47.9], True),  # below chance is not above it
        ([51.9], True),  # one seed must be as much above as matters
        ([52.1], False),
        ([52.1, 52.1], False),  # no spread, no interval
        ([], False),  # nothing is known
    ],
)
def test_an_arm_is_at_chance_unless_its_seeds_show_otherwise(values, answer):
    assert at_chance(dict(enumerate(values)), chance=50.0, smallest=2.0) is answer


@pytest.mark.parametrize("form", [float, lambda value: np.full(5, value)])
def test_pairs_of_few_seeds(form):
    def compared(ours, theirs):
        values = ({seed: form(value) for seed, value in arm.items()} for arm in (ours, theirs))
        return paired("ours", "base", *values)

    # Unshared seeds are left out; identical differences have an interval of no width.
    found = compared({1: 3.0, 2: 5.0, 4: 100.0}, {2: 3.0, 1: 1.0, 3: -100.0})
    assert found.differences == {1: 2.0, 2: 2.0}
    assert (found.mean, found.low, found.high) == (2.0, 2.0, 2.0)
    for values in ({}, {1: 2.0}):  # below two seeds there is no interval
        found = compared(values, values)
        assert math.isnan(found.low)
        assert verdict(found, found, found, 1, 1.0).answer == "undecided"
    assert math.isnan(mean_std({1: 2.0})[1])


@pytest.mark.parametrize(
    ("primary", "control", "sign", "answer", "words"),
    [
        # directed claim, 1 point matters
        (interval(0.5, 3.5), interval(-2, 1), 1, "yes", "does not show it"),
        (interval(1.0, 1.0), interval(-2, 1), 1, "yes", "at least"),
        (interval(-0.5, 3.5), interval(-2, 1), 1, "undecided", "too wide"),
        (interval(0.0, 4.0), interval(-2, 1), 1, "undecided", "too wide"),
        (interval(0.1, 1.5), interval(-2, 1), 1, "undecided", "mean below"),
        (interval(-2.0, 0.9), interval(-2, 1), 1, "no", "rules out"),
        (interval(0.1, 0.9), interval(-2, 1), 1, "no", "rules out"),
        (interval(-2.0, 0.9), MISSING, 1, "no", "rules out"),
        # the control wins, does as well, or is missing
        (interval(0.5, 3.5), interval(0.5, 3.0, "broken"), 1, "undecided", "broken meets"),
        (interval(0.5, 3.5), interval(-2.0, 6.5, "broken"), 1, "undecided", "may do as well"),
        (interval(0.5, 3.5), MISSING, 1, "undecided", "has not run"),
        (interval(0.5, 3.5), interval(-2, 1, seeds=1), 1, "undecided", "has not run"),
        (interval(0.5, 3.5), ELSEWHERE, 1, "undecided", "may do as well"),
        # lower is better
        (interval(-3.5, -0.5), interval(-1, 2), -1, "yes", "does not show it"),
        (interval(0.5, 3.5), interval(-1, 2), -1, "no", "rules out"),
        (interval(-3.5, -0.5), interval(-9, 1, "broken"), -1, "undecided", "may do as well"),
        # no difference that matters
        (interval(-0.5, 0.9), interval(-6, -3), 0, "yes", "inside"),
        (interval(-0.5, 1.0), interval(-6, -3), 0, "undecided", "does not lie inside"),
        (interval(-0.5, 0.9), interval(-0.9, 0.5, "broken"), 0, "undecided", "broken meets"),
        (interval(1.0, 2.0), interval(-6, -3), 0, "no", "beyond"),
        (interval(-4.0, -1.5), MISSING, 0, "no", "beyond"),
        # too few seeds
        (interval(2, 3, seeds=1), interval(-2, 1), 1, "undecided", "only one seed"),
        (interval(2, 3, seeds=0), interval(-2, 1), 1, "undecided", "no seed"),
    ],
)
def test_verdict_rule(primary, control, sign, answer, words):
    found = verdict(primary, control, lead(primary, control), sign, 1.0)
    assert found.answer == answer
    assert words in found.reason


@pytest.mark.parametrize(("sign", "spread", "answer"), [(1, 0.5, "yes"), (1, 2.0, "undecided")])
def test_the_lead_over_the_control_needs_an_interval_of_its_own(sign, spread, answer):
    """The method is surely better than the baseline, and on average than the control."""
    primary = paired("ours", "base", *arms([(2.0, 0.0), (2.1, 0.0), (1.9, 0.0), (2.0, 0.0)]))
    control = paired("broken", "base", *arms([(-spread, 0.0), (spread, 0.0)] * 2))
    for turned in (1, -1):
        pairs = [mirrored(pair, turned) for pair in (primary, control, lead(primary, control))]
        found = verdict(*pairs, turned * sign, 1.0)
        assert found.answer == answer
        assert ("may do as well" in found.reason) == (answer == "undecided")
        assert f"the lead over it is {2 * turned:+.2f} (" in found.reason


@given(samples, signs, st.floats(0.01, 10))
def test_yes_and_no_exclude_each_other(rows, sign, smallest):
    found = paired("a", "b", *arms(rows))
    assert not (meets(found, sign, smallest) and statistics.rules_out(found, sign, smallest))


@given(samples, st.floats(0.01, 10))
def test_flipping_sign_and_differences_changes_nothing(rows, smallest):
    ours, theirs = arms(rows)
    there, back = paired("a", "b", ours, theirs), paired("b", "a", theirs, ours)
    assert meets(there, 1, smallest) == meets(back, -1, smallest)
    assert statistics.rules_out(there, 1, smallest) == statistics.rules_out(back, -1, smallest)


ORDER = {"no": 0, "undecided": 1, "yes": 2}


@given(numbers, st.floats(0.1, 20), st.floats(0, 50), st.floats(0.1, 10))
def test_a_better_method_never_gets_a_worse_verdict(mean, half, more, smallest):
    control = interval(-1e6, -1e5)
    lower, higher = (
        verdict(found, control, lead(found, control), 1, smallest)
        for found in (interval(mean + x - half, mean + x + half) for x in (0.0, more))
    )
    assert ORDER[lower.answer] <= ORDER[higher.answer]


def by_query(seeds=3, queries=400, noise=1.0, seed=0):
    """Seed -> the metric of each query: some queries are easier than others, for all seeds."""
    generator = np.random.default_rng(seed)
    easy = generator.normal(50, 20, queries)
    return {s: easy + generator.normal(0, noise, queries) for s in range(1, seeds + 1)}


def test_two_runs_of_one_arm_have_an_interval_around_zero_and_a_shift_is_found_exactly():
    found = paired("ours", "base", by_query(seed=1, noise=9), by_query(seed=1, noise=8))
    assert found.low < 0 < found.high
    arm = by_query()
    for shift in (0.0, 2.5):
        found = paired("ours", "base", {s: v + shift for s, v in arm.items()}, arm)
        assert (found.mean, found.low, found.high) == pytest.approx((shift,) * 3, abs=1e-9)
        assert (found.queries, len(found.differences)) == (400, 3)
        assert math.isnan(found.pvalue)


def test_the_pairing_takes_out_what_makes_a_query_easy():
    arm = by_query()
    better = {s: v + np.random.default_rng(s).normal(2, 1, 400) for s, v in arm.items()}
    found = paired("ours", "base", better, arm)
    assert 1.8 < found.low < found.mean < found.high < 2.2


def test_seeds_of_opposite_signs_make_the_interval_wide():
    arm = by_query()
    swinging = {seed: values + (4, -4, 1)[seed - 1] for seed, values in arm.items()}
    found = paired("ours", "base", swinging, arm)
    assert found.mean == pytest.approx(1 / 3)
    # All three draws fall on the same seed in one resample of 27 (for each).
    assert (found.low, found.high) == pytest.approx((-4, 4))


def test_few_queries_make_the_interval_wide_however_alike_the_seeds_are():
    generator = np.random.default_rng(3)
    lead = generator.normal(1, 20, 100)  # the same in every seed
    arm = by_query(queries=100)
    found = paired("ours", "base", {s: v + lead for s, v in arm.items()}, arm)
    error = lead.std(ddof=1) / 10
    assert found.mean == pytest.approx(lead.mean())
    assert found.low == pytest.approx(lead.mean() - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(lead.mean() + 1.96 * error, abs=0.2 * error)


def test_resamples_have_the_variance_of_both_levels():
    seeds, queries = 6, 50
    generator = np.random.default_rng(4)
    of_seed, of_query = generator.normal(0, 3, (seeds, 1)), generator.normal(0, 5, queries)
    means = bootstrap_means(of_seed + of_query, resamples=20_000)
    expected = of_seed.var() / seeds + of_query.var() / queries
    assert means.var() == pytest.approx(expected, rel=0.05)
    assert means.mean() == pytest.approx((of_seed + of_query).mean(), abs=0.05)


@pytest.mark.parametrize("chunk", [1, 1000, 10**7])
def test_resamples_are_the_same_each_time_in_chunks_of_any_size(monkeypatch, chunk):
    differences = np.random.default_rng(5).normal(size=(3, 70))
    expected = bootstrap_means(differences, resamples=200)
    assert np.array_equal(expected, bootstrap_means(differences, resamples=200))
    monkeypatch.setattr(statistics, "CHUNK", chunk)
    np.testing.assert_allclose(bootstrap_means(differences, resamples=200), expected, atol=1e-12)
