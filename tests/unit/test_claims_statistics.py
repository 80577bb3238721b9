"""The paired interval against the hand formula, and the verdict rule as a table."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.statistics import Paired, mean_std, meets, paired, rules_out, verdict

pytestmark = pytest.mark.filterwarnings("ignore:Precision loss occurred")  # equal numbers

numbers = st.floats(-100, 100, allow_nan=False)
samples = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=12)
signs = st.sampled_from([1, -1, 0])


def interval(low: float, high: float, name: str = "ours", seeds: int = 5) -> Paired:
    mean = (low + high) / 2
    return Paired(name, "base", dict.fromkeys(range(seeds), mean), mean, low, high, 0.5)


@given(samples)
def test_interval_is_mean_plus_t_times_standard_error(rows):
    ours = {seed: a for seed, (a, _) in enumerate(rows)}
    theirs = {seed: b for seed, (_, b) in enumerate(rows)}
    differences = [a - b for a, b in rows]
    mean, n = math.fsum(differences) / len(rows), len(rows)
    spread = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1))
    assume(spread > 1e-6)
    half = stats.t.ppf(0.975, n - 1) * spread / math.sqrt(n)
    found = paired("ours", "base", ours, theirs)
    assert found.mean == pytest.approx(mean, abs=1e-9)
    assert found.low == pytest.approx(mean - half, rel=1e-6, abs=1e-8)
    assert found.high == pytest.approx(mean + half, rel=1e-6, abs=1e-8)


def test_only_shared_seeds_are_paired():
    found = paired("ours", "base", {1: 3.0, 2: 5.0, 4: 100.0}, {2: 4.0, 1: 1.0, 3: -100.0})
    assert found.differences == {1: 2.0, 2: 1.0}


def test_identical_differences_have_an_interval_of_no_width():
    found = paired("ours", "base", {1: 3.0, 2: 5.0}, {1: 1.0, 2: 3.0})
    assert (found.low, found.high) == (2.0, 2.0)


@pytest.mark.parametrize("values", [{}, {1: 2.0}])
def test_below_two_seeds_there_is_no_interval(values):
    found = paired("ours", "base", values, dict.fromkeys(values, 0.0))
    assert math.isnan(found.low)
    assert math.isnan(mean_std(values)[1])


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
        (interval(-2.0, 0.9), None, 1, "no", "rules out"),
        # the control wins, does as well, or is missing
        (interval(0.5, 3.5), interval(0.5, 3.0, "broken"), 1, "undecided", "broken meets"),
        (interval(0.5, 3.5), interval(-2.0, 6.5, "broken"), 1, "undecided", "does as well"),
        (interval(0.5, 3.5), None, 1, "undecided", "has not run"),
        (interval(0.5, 3.5), interval(-2, 1, seeds=1), 1, "undecided", "has not run"),
        # lower is better
        (interval(-3.5, -0.5), interval(-1, 2), -1, "yes", "does not show it"),
        (interval(0.5, 3.5), interval(-1, 2), -1, "no", "rules out"),
        (interval(-3.5, -0.5), interval(-9, 1, "broken"), -1, "undecided", "does as well"),
        # no difference that matters
        (interval(-0.5, 0.9), interval(-6, -3), 0, "yes", "inside"),
        (interval(-0.5, 1.0), interval(-6, -3), 0, "undecided", "does not lie inside"),
        (interval(-0.5, 0.9), interval(-0.9, 0.5, "broken"), 0, "undecided", "broken meets"),
        (interval(1.0, 2.0), interval(-6, -3), 0, "no", "beyond"),
        (interval(-4.0, -1.5), None, 0, "no", "beyond"),
        # too few seeds
        (interval(2, 3, seeds=1), interval(-2, 1), 1, "undecided", "only one seed"),
        (interval(2, 3, seeds=0), interval(-2, 1), 1, "undecided", "no seed"),
    ],
)
def test_verdict_rule(primary, control, sign, answer, words):
    found = verdict(primary, control, sign, 1.0)
    assert found.answer == answer
    assert words in found.reason


def test_control_on_other_seeds_clears_nothing():
    control = Paired("broken", "base", {8: 0.0, 9: 0.0}, 0.0, -1.0, 1.0, 0.5)
    assert verdict(interval(0.5, 3.5), control, 1, 1.0).answer == "undecided"


@given(samples, signs, st.floats(0.01, 10))
def test_yes_and_no_exclude_each_other(rows, sign, smallest):
    found = paired("a", "b", *({i: row[k] for i, row in enumerate(rows)} for k in (0, 1)))
    assert not (meets(found, sign, smallest) and rules_out(found, sign, smallest))


@given(samples, st.floats(0.01, 10))
def test_flipping_sign_and_differences_changes_nothing(rows, smallest):
    ours, theirs = ({i: row[k] for i, row in enumerate(rows)} for k in (0, 1))
    there, back = paired("a", "b", ours, theirs), paired("b", "a", theirs, ours)
    assert meets(there, 1, smallest) == meets(back, -1, smallest)
    assert rules_out(there, 1, smallest) == rules_out(back, -1, smallest)


ORDER = {"no": 0, "undecided": 1, "yes": 2}


@given(numbers, st.floats(0.1, 20), st.floats(0, 50), st.floats(0.1, 10))
def test_a_better_method_never_gets_a_worse_verdict(mean, half, more, smallest):
    control = interval(-1e6, -1e5)
    lower = verdict(interval(mean - half, mean + half), control, 1, smallest)
    higher = verdict(interval(mean - half + more, mean + half + more), control, 1, smallest)
    assert ORDER[lower.answer] <= ORDER[higher.answer]
