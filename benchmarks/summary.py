"""What a claim's finished runs say: a dict (summary.json), tables on the screen and in Markdown."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.claims import Claim, Rule, as_written
from benchmarks.launch import Run
from benchmarks.outputs import check
from benchmarks.outputs import number as finite
from benchmarks.statistics import at_chance, gains, mean_std, paired, verdict
from shared.data.readers.files import one_line
from shared.files import read_json, replacing, write_json
from shared.showing import code, escaped, table


@dataclass(frozen=True)
class Outcome:
    """The runs of a claim by (arm, seed): results.json of the finished ones, with the metric of
    each test query under (`per_query` file, metric), and the tail of the error of the failed."""

    results: dict[tuple[str, int], dict[Any, Any]] = field(default_factory=dict)
    failures: dict[tuple[str, int], str] = field(default_factory=dict)

    def values(self, arm: str, metric: str, per_query: str = "") -> dict[int, Any]:
        """Seed -> metric of the arm's finished runs, or with a file that of each test query."""
        of_arm = {seed: r for (name, seed), r in sorted(self.results.items()) if name == arm}
        if per_query:
            return {seed: r[per_query, metric] for seed, r in of_arm.items()}
        found = {seed: r["metrics"].get(metric) for seed, r in of_arm.items()}
        return {seed: float(value) for seed, value in found.items() if value is not None}


def collect(runs: Sequence[Run], claim: Claim, launched: Mapping[Run, str]) -> Outcome:
    """Reads the results of every run that may lie in the claim's folder; `launched` has the errors
    of those that had to finish and did not. A finished run that lacks a finite primary metric, or
    the metric of each query where the claim needs it, counts as failed."""
    outcome, metric = Outcome(), claim.primary.metric
    for run in runs:
        key, file = (run.arm, run.seed), f"{run.folder}/results.json"
        if (results := run.results()) is None:
            if run in launched:
                outcome.failures[key] = launched[run]
        elif (value := results["metrics"].get(metric)) is None:
            found = ", ".join(sorted(results["metrics"])) or "nothing"
            outcome.failures[key] = f"no {metric} in {file}, which has {found}"
        elif not math.isfinite(value):
            outcome.failures[key] = f"{metric} is {value} in {file}"
        else:
            outcome.results[key] = results
    for (file, metric), arms in claim.by_query().items():
        _collect_queries([run for run in runs if run.arm in arms], file, metric, outcome)
    return outcome


def _collect_queries(runs: Sequence[Run], file: str, metric: str, outcome: Outcome) -> None:
    """Reads the metric of each query; a run whose file cannot be used becomes a failed one."""
    found: dict[Run, NDArray[np.float64]] = {}
    refused: dict[Run, str] = {}
    for run in runs:
        if results := outcome.results.get((run.arm, run.seed)):
            try:
                values = _read_queries(run.folder / file, metric, results["metrics"])
                found[run] = results[file, metric] = values
            except ValueError as error:
                refused[run] = str(error)
    usual = max(Counter(map(len, found.values())).items(), key=itemgetter(1), default=(0, 0))[0]
    for run, values in found.items():
        if len(values) != usual:
            other = next(run for run, values in found.items() if len(values) == usual)
            differ = f"of {len(values)} queries, {other.folder / file} of {usual}"
            asked = "all arms must be asked the same queries in the same order"
            refused[run] = f"{run.folder / file} has {metric} {differ}: {asked}"
    for run, text in refused.items():
        outcome.failures[run.arm, run.seed] = text
        del outcome.results[run.arm, run.seed]


def _read_queries(path: Path, metric: str, metrics: Mapping[str, float]) -> NDArray[np.float64]:
    """The metric of each query, (Q,); ValueError if the file is missing or damaged, or the run's
    metric is not the mean of it."""
    try:
        content = read_json(path)
        check(content, {metric: [finite]})
        if not content[metric]:
            raise ValueError("there is none")
    except OSError as error:
        raise ValueError(f"the claim's bootstrap needs {path}: {error.strerror}") from None
    except ValueError as error:
        needed = f"list of numbers under '{metric}', one finite number for each test query"
        raise ValueError(f"{path} holds no {needed}: {one_line(error)}") from None
    values = np.array(content[metric], dtype=np.float64)
    stated = metrics.get(metric, math.nan)
    if not math.isclose(values.mean(), stated, rel_tol=1e-4, abs_tol=1e-6):
        apart = f"is {values.mean():g}, but {metric} in results.json is {stated:g}"
        same = "the file must be of this run and in the same unit"
        raise ValueError(f"{path}: the mean over queries {apart}: {same}")
    return values


def summarise(claim: Claim, outcome: Outcome, prepared: Sequence[Run]) -> dict[str, Any]:
    """Everything the report shows, as plain values (a figure that does not exist is None);
    `prepared` are the runs of what was trained before the arms started."""
    arms = {}
    for arm in claim.arms:
        values = outcome.values(arm, claim.primary.metric)
        mean, std = mean_std(values)
        arms[arm] = {
            "experiment": claim.experiment(arm),
            "values": values,
            "mean": mean,
            "std": std,
            "cpu_seconds": _mean_seconds([outcome.results[arm, seed] for seed in values]),
            "metrics": _mean_metrics([outcome.results[arm, seed]["metrics"] for seed in values]),
            "failed": {s: text for (name, s), text in outcome.failures.items() if name == arm},
        }
        if claim.chance is not None:
            said = at_chance(values, claim.chance, claim.smallest_difference)
            arms[arm]["at_chance"] = said
    results = list(outcome.results.values())
    data = [item for result in results for item in (result.get("data") or {}).items()]
    (comparisons, decided), *others = (_judge(claim, rule, outcome) for rule in claim.rules())
    words = ("name", "claim", "metric", "expected_sign", "smallest_difference")
    plain = {
        "schema": 1,
        "claim": as_written(claim),
        **decided,
        "arms": arms,
        "comparisons": comparisons,
        "further": [
            {**{key: getattr(further, key) for key in words}, "comparisons": compared, **verdict}
            for further, (compared, verdict) in zip(claim.further, others, strict=True)
        ],
        "git_commits": sorted({str(r.get("git_commit")) for r in results}),
        "precisions": sorted({str(r.get("precision")) for r in results}),
        "also": claim.also,
        "data": sorted({name for name, _ in data}),
        "figures": _figures(about for _, about in data),
        "pages": sorted({about["page"] for _, about in data if "page" in about}),
        "prepared": {
            name: {
                "experiment": claim.experiment(name),
                "cpu_seconds": _mean_seconds(of_it),
            }
            for name in claim.prepare
            if (of_it := [found for r in prepared if r.arm == name and (found := r.results())])
        },
    }
    # As a reader will see it: seeds as strings, and what is no number as None.
    return json.loads(json.dumps(plain), parse_constant=lambda _: None)


def _judge(claim: Claim, rule: Rule, outcome: Outcome) -> tuple[list[dict], dict[str, str]]:
    """A rule's comparisons and its verdict, undecided once a run of a decisive arm failed: nobody
    registered the choice of the seeds that survive."""
    by = (rule.primary.metric, rule.primary.per_query)
    values = [[outcome.values(arm, *by) for arm in (p.method, p.baseline)] for p in rule.pairs]
    compared = [paired(p.method, p.baseline, *of) for p, of in zip(rule.pairs, values, strict=True)]
    method, control = rule.pairs[:2]
    lead = paired(method.method, control.method, *(gains(*of) for of in values[:2]))
    plain = [{k: v for k, v in asdict(c).items() if k != "queries" or v} for c in compared]
    decisive = {arm for pair in rule.pairs[:2] for arm in (pair.method, pair.baseline)}
    if failed := [f"{arm} seed {seed}" for arm, seed in outcome.failures if arm in decisive]:
        return plain, {"verdict": "undecided", "reason": f"failed: {', '.join(failed)}."}
    by_rule = (rule.stated.expected_sign, rule.stated.smallest_difference)
    answer, reason = verdict(compared[0], compared[1], lead, *by_rule)
    if (seeds := set(compared[0].differences)) != set(claim.seeds):
        reason += f" Seeds compared: {sorted(seeds)}; registered: {sorted(claim.seeds)}."
    return plain, {"verdict": answer, "reason": reason}


def _figures(sets: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """What sets of data say of themselves, {title: {name: value}}, means over those that say it."""
    said: dict[str, dict[str, list[float]]] = {}
    for about in sets:
        for title, values in about.get("figures", {}).items():
            for name, value in values.items():
                said.setdefault(title, {}).setdefault(name, []).append(value)
    return {title: {n: fmean(v) for n, v in values.items()} for title, values in said.items()}


def _mean_seconds(results: Iterable[Mapping[str, Any]]) -> float | None:
    known = [float(seconds) for result in results if (seconds := result.get("cpu_seconds"))]
    return sum(known) / len(known) if known else None


def _mean_metrics(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = sorted({name for metrics in found for name in metrics})
    return {n: fmean(metrics[n] for metrics in found if n in metrics) for n in names}


def data_lines(summary: Mapping[str, Any]) -> list[str]:
    """One line for each title of figures that the data sets say of themselves."""
    return [
        f"{title}: {', '.join(f'{name} {value:.1f}' for name, value in values.items())}."
        for title, values in (summary.get("figures") or {}).items()
    ]


def preparation_lines(summary: Mapping[str, Any]) -> list[str]:
    """One sentence for each thing that was prepared."""
    return [
        f"Trained first, because other arms start from it: {name}; theirs do not count its CPU s."
        if name in summary["arms"]
        else f"Prepared once per seed: {name} ({entry['experiment']}), "
        f"{number(entry['cpu_seconds'], '.0f')} CPU s, not counted above."
        for name, entry in (summary.get("prepared") or {}).items()
    ]


def metric_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of all metrics: one column an arm, means over seeds."""
    arms = {n: arm["metrics"] for n, arm in summary["arms"].items() if arm.get("metrics")}
    names = sorted({name for metrics in arms.values() for name in metrics})
    rows = [[n, *(number(metrics.get(n)) for metrics in arms.values())] for n in names]
    return ["mean over seeds", *arms], rows


def number(value: float | None, form: str = ".2f") -> str:
    """A figure for a table, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def arm_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of arms, without those that were not asked for."""
    arms = {n: arm for n, arm in summary["arms"].items() if arm["values"] or arm["failed"]}
    seeds = sorted({int(s) for arm in arms.values() for s in (*arm["values"], *arm["failed"])})
    also = summary.get("also") or []
    header = ["arm", "mean ± std", f"seed {' '.join(map(str, seeds))}", *also, "CPU s"]
    rows = []
    for name, arm in arms.items():
        cells = [
            "failed" if str(seed) in arm["failed"] else number(arm["values"].get(str(seed)), ".1f")
            for seed in seeds
        ]
        spread = f"{number(arm['mean'], '.1f')} ± {number(arm['std'], '.1f')}"
        shown = f"{name} (at chance)" if arm.get("at_chance") else name
        metrics = arm.get("metrics") or {}
        beside = [number(metrics.get(metric), ".1f") for metric in also]
        rows.append([shown, spread, " ".join(cells), *beside, number(arm["cpu_seconds"], ".0f")])
    return header, rows


def comparison_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of paired differences, the deciding one first."""
    header = ["paired difference", "mean", "95% interval", "p", "seeds"]
    rows = []
    for index, pair in enumerate(summary["comparisons"]):
        if index > 1 and not pair["differences"]:
            continue  # an optional arm that was not asked for
        kind = {0: " (primary)", 1: " (control)"}.get(index, "")
        queries = f", {pair['queries']} queries" if pair.get("queries") else ""
        p = pair["pvalue"]
        chance = "<0.001" if p is not None and p < 0.001 else number(p, ".3f")
        name, *figures = difference(pair)
        rows.append([f"{name}{kind}", *figures, chance, f"{len(pair['differences'])}{queries}"])
    return header, rows


def difference(pair: Mapping[str, Any]) -> list[str]:
    """Three cells: what is compared, the mean difference and its interval."""
    interval = "-"
    if pair["low"] is not None and pair["high"] is not None:
        kind = " (bootstrap)" if pair.get("queries") else ""
        interval = f"{pair['low']:+.2f} to {pair['high']:+.2f}{kind}"
    return [f"{pair['method']} - {pair['baseline']}", number(pair["mean"], "+.2f"), interval]


def further_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of further claims."""
    header = ["further claim", "metric", "difference", "mean", "95% interval", "control", "holds"]
    rows = []
    for further in summary.get("further") or []:
        pair, (control, mean, _) = map(difference, further["comparisons"])
        name, metric, verdict = further["name"], further["metric"], further["verdict"]
        rows.append([name, metric, *pair, f"{control} {mean}", verdict])
    return header, rows


def rich_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table for the screen, figures to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def markdown(summary: Mapping[str, Any]) -> str:
    """summary.md: what the method card quotes; everything that came from a file is escaped."""
    claim = summary["claim"]
    parts = [f"## {escaped(claim['title'])}"]
    parts.append(f"{escaped(claim['claim'])} Source: {escaped(claim['source'])}.")
    if overrides := summary["overrides"]:
        parts.append(f"Settings changed on the command line: {code(' '.join(overrides))}")
    parts += [
        f"Primary metric {code(claim['primary']['metric'])}, smallest difference that matters "
        f"{claim['smallest_difference']:g}, claim hash {code(summary['hash'][:8])}.",
        table(*arm_rows(summary)),
        *map(escaped, preparation_lines(summary) + data_lines(summary)),
        table(*comparison_rows(summary)),
        f"**claim holds: {summary['verdict']}**. {escaped(summary['reason'])}",
    ]
    if further := summary.get("further"):
        parts.append(table(*further_rows(summary)))
        for of in further:
            words = f"{escaped(of['claim'])} {escaped(of['reason'])}"
            parts.append(f"**{escaped(of['name'])}: {of['verdict']}**. {words}")
    return "\n\n".join([*parts, table(*metric_rows(summary))]) + "\n"


def write(folder: Path, summary: Mapping[str, Any]) -> None:
    """Writes summary.json and summary.md."""
    write_json(folder / "summary.json", summary, indent=2)
    with replacing(folder / "summary.md") as file:
        file.write(markdown(summary).encode())
