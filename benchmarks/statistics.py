"""Paired comparison of two arms, and the rule that turns it into a verdict: S seeds, Q test
queries, R resamples."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Values = Mapping[int, float] | Mapping[int, NDArray[np.float64]]
Answer = Literal["yes", "no", "undecided"]
RESAMPLES = 10_000
CHUNK = 2**21  # queries drawn in one go


@dataclass(frozen=True)
class Paired:
    """Differences method - baseline over the seeds that both arms finished, and their mean.

    `low` to `high` is the mean's 95% confidence interval: Student's t, or percentiles of a
    bootstrap over seeds and `queries` (else 0). `pvalue` is that of a two-sided paired t-test, nan
    with a bootstrap. All are nan where there are too few seeds.
    """

    method: str
    baseline: str
    differences: dict[int, float]
    mean: float
    low: float
    high: float
    pvalue: float
    queries: int = 0


class Verdict(NamedTuple):
    """`claim holds: <answer>` and the reason in one sentence."""

    answer: Answer
    reason: str


def mean_std(values: Mapping[int, float]) -> tuple[float, float]:
    """Mean and sample standard deviation (ddof 1) over seeds; nan where not defined."""
    found = list(values.values())
    mean = fmean(found) if found else float("nan")
    return mean, stdev(found) if len(found) > 1 else float("nan")


def at_chance(values: Mapping[int, float], chance: float, smallest: float) -> bool:
    """Whether the metrics of an arm's seeds do not show that it has learned anything: the 95%
    interval of their mean reaches down to `chance`, or one seed is no `smallest` above it."""
    found = list(values.values())
    if len(set(found)) < 2:
        return bool(found) and found[0] < chance + smallest
    return bool(stats.ttest_1samp(found, chance).confidence_interval(0.95).low <= chance)


def gains(of_method: Values, of_baseline: Values) -> dict[int, Any]:
    """Method - baseline by the seeds that both arms have: numbers, or (Q,) arrays."""
    seeds = sorted(of_method.keys() & of_baseline.keys())
    return {seed: of_method[seed] - of_baseline[seed] for seed in seeds}


def paired(method: str, baseline: str, of_method: Values, of_baseline: Values) -> Paired:
    """Compares two arms over the seeds that they share, given seed -> the metric, or the metric of
    each test query (Q,), the same queries in all; or two gains."""
    by_seed = gains(of_method, of_baseline)
    seeds, apart = list(by_seed), list(by_seed.values())
    differences = {seed: float(np.mean(d)) for seed, d in by_seed.items()}
    queries = len(apart[0]) if apart and isinstance(apart[0], np.ndarray) else 0
    mean = mean_std(differences)[0]
    low = high = pvalue = float("nan")
    if len(seeds) > 1 and queries:
        low, high = np.percentile(bootstrap_means(np.stack(apart)), [2.5, 97.5]).tolist()
    elif len(seeds) > 1 and len(set(differences.values())) == 1:
        low = high = mean  # no spread: the t statistic would be x/0
    elif len(seeds) > 1:
        test = stats.ttest_rel([of_method[s] for s in seeds], [of_baseline[s] for s in seeds])
        low, high = map(float, test.confidence_interval(0.95))
        pvalue = float(test.pvalue)
    return Paired(method, baseline, differences, mean, low, high, pvalue, queries)


def bootstrap_means(
    differences: NDArray[np.float64], resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """(R,) means of `differences` (S, Q) over seeds and queries drawn with replacement. A resample
    draws its queries once for all its seeds: an easy query is easy for all of them."""
    seeds, queries = differences.shape
    generator = np.random.default_rng(seed)
    drawn = generator.integers(seeds, size=(resamples, seeds))
    weights = (drawn[:, :, None] == np.arange(seeds)).mean(axis=1)
    means = np.empty(resamples)
    for start in range(0, resamples, step := max(1, CHUNK // queries)):
        rows = weights[start : start + step]
        drawn = generator.integers(queries, size=(len(rows), queries))
        drawn += queries * np.arange(len(rows))[:, None]
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        means[start : start + step] = (rows * (counts @ differences.T)).sum(axis=1) / queries
    return means


def meets(comparison: Paired, sign: int, smallest: float) -> bool:
    """Whether the interval lies on the side of 0 that sign 1 or -1 says, with a mean at least
    `smallest` away; sign 0: inside +-`smallest`. False where there is no interval."""
    if sign == 0:
        return -smallest < comparison.low and comparison.high < smallest
    low = min(sign * comparison.low, sign * comparison.high)
    return low > 0 and sign * comparison.mean >= smallest


def rules_out(comparison: Paired, sign: int, smallest: float) -> bool:
    """Whether the interval's far end falls short of `smallest` in the direction of sign 1 or -1;
    sign 0: whether it lies beyond +-`smallest`."""
    if sign == 0:
        return comparison.low >= smallest or comparison.high <= -smallest
    return max(sign * comparison.low, sign * comparison.high) < smallest


def verdict(primary: Paired, control: Paired, lead: Paired, sign: int, smallest: float) -> Verdict:
    """The pre-registered rule; `smallest` is the smallest difference that matters, > 0.

    no: `rules_out(primary)`. yes: `meets(primary)` and the control does not win, that is, it does
    not meet the criterion itself and, for a directed claim, the interval of the method's `lead`
    over it, gain by gain, lies on the expected side of 0. A control that won, may do as well or did
    not run leaves the claim undecided: what made the method better need not be what the paper says.
    """
    if (pairs := len(primary.differences)) < 2:
        arms = f"{primary.method} and {primary.baseline}, and an interval needs two."
        count = "only one" if pairs else "no"
        return Verdict("undecided", f"{count} seed finished in both {arms}")
    queries = f"bootstrap interval over seeds and {primary.queries} queries"
    interval = f"95% {queries if primary.queries else 'interval'} {primary.low:+.2f} to"
    gain = f"{primary.mean:+.2f} points ({interval} {primary.high:+.2f})"
    said = f"{primary.method} - {primary.baseline} is {gain}"
    wanted = f"the {smallest:.2f} points that matter"
    if rules_out(primary, sign, smallest):
        return Verdict("no", f"{said}, {'which rules out' if sign else 'beyond'} {wanted}.")
    if not meets(primary, sign, smallest):
        if sign == 0:
            short = f"which does not lie inside {wanted}"
        elif min(sign * primary.low, sign * primary.high) <= 0:
            short = f"too wide to tell {wanted} from none"
        else:
            short = f"above none but with a mean below {wanted}"
        return Verdict("undecided", f"{said}, {short}.")
    if len(control.differences) < 2:
        return Verdict("undecided", f"{said}, but the negative control has not run on two seeds.")
    name, won = f"the negative control {control.method}", ""
    ahead = f"the lead over it is {lead.mean:+.2f} ({lead.low:+.2f} to {lead.high:+.2f})"
    if meets(control, sign, smallest):
        won = "meets the same criterion"
    elif sign and not min(sign * lead.low, sign * lead.high) > 0:  # also where it is nan
        won = "may do as well"
    if won:
        ahead = f"; {ahead}" if sign else ""
        return Verdict("undecided", f"{said}, but {name} {won} ({control.mean:+.2f}){ahead}.")
    met = f"{'at least' if sign else 'inside'} {wanted}"
    ahead = f": {ahead}" if sign else ""
    shown = f"and {name} ({control.mean:+.2f}) does not show it{ahead}"
    return Verdict("yes", f"{said}, {met}, {shown}.")
