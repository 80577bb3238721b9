"""What a claim's finished runs say: a dict (summary.json), tables on the screen and in Markdown."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.claims import Claim, Further
from benchmarks.launch import Run
from benchmarks.statistics import Paired, Verdict, mean_std, paired, verdict


@dataclass(frozen=True)
class Outcome:
    """The finished and the failed runs of a claim.

    Attributes:
        results: (arm, seed) -> results.json.
        failures: (arm, seed) -> tail of the error.
    """

    results: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    failures: dict[tuple[str, int], str] = field(default_factory=dict)

    def values(self, arm: str, metric: str) -> dict[int, float]:
        """Seed -> metric of the arm's finished runs."""
        return {
            seed: float(found["metrics"][metric])
            for (name, seed), found in sorted(self.results.items())
            if name == arm and metric in found["metrics"]
        }


def collect(runs: Sequence[Run], metric: str, launched: Mapping[Run, str]) -> Outcome:
    """Reads the results of all runs.

    Args:
        runs: every run that may lie in the claim's folder.
        metric: without it, or with a NaN, a finished run counts as failed.
        launched: the runs that had to finish -> the tail of their error if they have not.
    """
    outcome = Outcome()
    for run in runs:
        key = (run.arm, run.seed)
        results = run.results()
        if results is None:
            if run in launched:
                outcome.failures[key] = launched[run]
            continue
        value = results["metrics"].get(metric)
        if value is None:
            found = ", ".join(sorted(results["metrics"])) or "nothing"
            outcome.failures[key] = f"no {metric} in {run.folder}/results.json, which has {found}"
        elif not math.isfinite(value):
            outcome.failures[key] = f"{metric} is {value} in {run.folder}/results.json"
        else:
            outcome.results[key] = results
    return outcome


def compare(claim: Claim, outcome: Outcome) -> tuple[list[Paired], Verdict]:
    """The claim's comparisons (primary and control first) and the verdict.

    A failed run of a decisive arm leaves the claim undecided: the seeds that survive are a choice
    that nobody registered.
    """
    metric = claim.primary.metric
    comparisons = [_paired(outcome, metric, p.method, p.baseline) for p in claim.pairs()]
    return comparisons, _decide(claim, claim, outcome, comparisons[0], comparisons[1])


def judge_further(claim: Claim, outcome: Outcome) -> list[dict[str, Any]]:
    """The further claims: name, words, metric, both comparisons and verdict of each."""
    found = []
    for further in claim.further:
        primary = _paired(outcome, further.metric, further.method, further.baseline)
        control = _paired(outcome, further.metric, further.control, further.control_baseline)
        decided = _decide(claim, further, outcome, primary, control)
        found.append(
            {
                "name": further.name,
                "claim": further.claim,
                "metric": further.metric,
                "smallest_difference": further.smallest_difference,
                "comparisons": [asdict(primary), asdict(control)],
                "verdict": decided.answer,
                "reason": decided.reason,
            }
        )
    return found


def _paired(outcome: Outcome, metric: str, method: str, baseline: str) -> Paired:
    return paired(
        method, baseline, outcome.values(method, metric), outcome.values(baseline, metric)
    )


def _decide(
    claim: Claim, rule: Claim | Further, outcome: Outcome, primary: Paired, control: Paired
) -> Verdict:
    decisive = (primary.method, primary.baseline, control.method, control.baseline)
    failed = [f"{arm} seed {seed}" for arm, seed in outcome.failures if arm in decisive]
    if failed:
        return Verdict("undecided", f"failed: {', '.join(failed)}.")
    decided = verdict(primary, control, rule.expected_sign, rule.smallest_difference)
    seeds = set(primary.differences)
    if seeds != set(claim.seeds):
        note = f" Seeds compared: {sorted(seeds)}; registered: {sorted(claim.seeds)}."
        return Verdict(decided.answer, decided.reason + note)
    return decided


def summarise(
    claim: Claim, outcome: Outcome, comparisons: Sequence[Paired], decided: Verdict
) -> dict[str, Any]:
    """Everything the report shows, as plain values (a figure that does not exist is None)."""
    metric = claim.primary.metric
    arms = {}
    for arm, experiment in claim.arms.items():
        values = outcome.values(arm, metric)
        mean, std = mean_std(values)
        seconds = [outcome.results[arm, seed].get("cpu_seconds") for seed in values]
        known = [float(s) for s in seconds if s]
        arms[arm] = {
            "role": claim.role(arm),
            "experiment": experiment,
            "values": values,
            "mean": mean,
            "std": std,
            "cpu_seconds": sum(known) / len(known) if known else None,
            "metrics": _mean_metrics(outcome, arm),
            "failed": {s: text for (name, s), text in outcome.failures.items() if name == arm},
        }
    results = list(outcome.results.values())
    plain = {
        "schema": 1,
        "claim": asdict(claim),
        "verdict": decided.answer,
        "reason": decided.reason,
        "arms": arms,
        "comparisons": [asdict(comparison) for comparison in comparisons],
        "further": judge_further(claim, outcome),
        "git_commits": sorted({str(r.get("git_commit")) for r in results}),
        "precisions": sorted({str(r.get("precision")) for r in results}),
        "data": sorted({name for r in results for name in r.get("data") or {}}),
        "baselines": _baselines(results),
    }
    return json.loads(json.dumps(_without_nan(plain)))  # seeds as strings, as a reader will see


def _baselines(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What needs no training, by name, as the builders of the data computed it."""
    found: dict[str, float] = {}
    for result in results:
        for about in (result.get("data") or {}).values():
            found |= about.get("baselines", {})
    return found


def baseline_lines(summary: Mapping[str, Any]) -> list[str]:
    """One sentence with all baselines that need no training; none without any."""
    found = summary.get("baselines") or {}
    listed = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
    return [f"Without training: {listed}."] if found else []


def preparation(claim: Claim, runs: Sequence[Run]) -> dict[str, Any]:
    """Name -> experiment and mean CPU seconds of what was trained before the arms started."""
    seconds: dict[str, list[float]] = {name: [] for name in claim.prepare}
    for run in runs:
        if used := (run.results() or {}).get("cpu_seconds"):
            seconds[run.arm].append(float(used))
    return {
        name: {
            "experiment": claim.prepare[name],
            "cpu_seconds": sum(used) / len(used) if used else None,
        }
        for name, used in seconds.items()
    }


def preparation_lines(summary: Mapping[str, Any]) -> list[str]:
    """One sentence for each thing that was prepared."""
    return [
        f"Prepared once per seed: {name} ({entry['experiment']}), "
        f"{number(entry['cpu_seconds'], '.0f')} CPU s, not counted above."
        for name, entry in (summary.get("prepared") or {}).items()
    ]


def _mean_metrics(outcome: Outcome, arm: str) -> dict[str, float]:
    """Mean over the finished seeds of every metric that an arm's results hold."""
    found = [results["metrics"] for (name, _), results in outcome.results.items() if name == arm]
    names = sorted({name for metrics in found for name in metrics})
    return {n: mean_std(dict(enumerate(m[n] for m in found if n in m)))[0] for n in names}


def metric_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of all metrics: one column an arm, means over seeds."""
    arms = {  # a summary of an older version has none
        name: metrics for name, arm in summary["arms"].items() if (metrics := arm.get("metrics"))
    }
    names = sorted({name for metrics in arms.values() for name in metrics})
    rows = [[n, *(number(metrics.get(n)) for metrics in arms.values())] for n in names]
    return ["mean over seeds", *arms], rows


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float | None, form: str = ".2f") -> str:
    """A figure for a table, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def arm_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of arms: mean +- std, values by seed, CPU seconds a run.

    Arms that were not asked for are left out.
    """
    arms = {n: arm for n, arm in summary["arms"].items() if arm["values"] or arm["failed"]}
    seeds = sorted({int(s) for arm in arms.values() for s in (*arm["values"], *arm["failed"])})
    header = ["arm", "mean ± std", f"seed {' '.join(map(str, seeds))}", "CPU s"]
    rows = []
    for name, arm in arms.items():
        cells = [
            "failed" if str(seed) in arm["failed"] else number(arm["values"].get(str(seed)), ".1f")
            for seed in seeds
        ]
        spread = f"{number(arm['mean'], '.1f')} ± {number(arm['std'], '.1f')}"
        rows.append([name, spread, " ".join(cells), number(arm["cpu_seconds"], ".0f")])
    return header, rows


def comparison_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of paired differences; the first is the one that decides."""
    header = ["paired difference", "mean", "95% interval", "p", "seeds"]
    rows = []
    for index, pair in enumerate(summary["comparisons"]):
        if index > 1 and not pair["differences"]:
            continue  # an optional arm that was not asked for
        kind = {0: " (primary)", 1: " (control)"}.get(index, "")
        interval = "-"
        if pair["low"] is not None:
            interval = f"{pair['low']:+.2f} to {pair['high']:+.2f}"
        rows.append(
            [
                f"{pair['method']} - {pair['baseline']}{kind}",
                number(pair["mean"], "+.2f"),
                interval,
                "<0.001" if (p := pair["pvalue"]) is not None and p < 0.001 else number(p, ".3f"),
                str(len(pair["differences"])),
            ]
        )
    return header, rows


def further_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of further claims, one line for each; empty without any."""
    header = ["further claim", "metric", "difference", "mean", "95% interval", "control", "holds"]
    rows = []
    for further in summary.get("further") or []:
        pair, control = further["comparisons"]
        interval = "-"
        if pair["low"] is not None:
            interval = f"{pair['low']:+.2f} to {pair['high']:+.2f}"
        rows.append(
            [
                further["name"],
                further["metric"],
                f"{pair['method']} - {pair['baseline']}",
                number(pair["mean"], "+.2f"),
                interval,
                f"{control['method']} - {control['baseline']} {number(control['mean'], '+.2f')}",
                further["verdict"],
            ]
        )
    return header, rows


def rich_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table for the screen, figures to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table in Markdown."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )


def further_parts(summary: Mapping[str, Any]) -> list[str]:
    """The further claims in Markdown: their table, then each one's words and reason."""
    if not summary.get("further"):
        return []
    return [
        markdown_table(*further_rows(summary)),
        *(
            f"**{further['name']}: {further['verdict']}**. {further['claim']} {further['reason']}"
            for further in summary["further"]
        ),
    ]


def markdown(summary: Mapping[str, Any]) -> str:
    """summary.md: what the method card quotes."""
    claim = summary["claim"]
    parts = [
        f"## {claim['title']}",
        f"{claim['claim']} Source: {claim['source']}.",
        f"Primary metric `{claim['primary']['metric']}`, smallest difference that matters "
        f"{claim['smallest_difference']:g}, claim hash `{summary['hash'][:8]}`.",
        markdown_table(*arm_rows(summary)),
        *preparation_lines(summary),
        *baseline_lines(summary),
        markdown_table(*comparison_rows(summary)),
        f"**claim holds: {summary['verdict']}**. {summary['reason']}",
        *further_parts(summary),
        markdown_table(*metric_rows(summary)),
    ]
    if summary["overrides"]:
        parts.insert(2, f"Settings changed on the command line: `{' '.join(summary['overrides'])}`")
    return "\n\n".join(parts) + "\n"


def write(folder: Path, summary: Mapping[str, Any]) -> None:
    """Writes summary.json and summary.md."""
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    (folder / "summary.md").write_text(markdown(summary))
