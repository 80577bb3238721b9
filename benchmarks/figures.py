"""The pictures of a claim: curves of its arms beside the paired differences, and every metric."""

import csv
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from shared.files import open_regular

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart with any colour vision, and by lines and markers in grey too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LAST_STEP = 1e12
LOOK: Any = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
Curves = Mapping[str, Sequence[Mapping[int, float]]]
"""Arm -> one {step: value} a seed."""


def read_curves(path: Path, prefix: str = "val/") -> dict[str, dict[int, float]]:
    """Metric -> {step: value} of the metrics in a run's metrics.csv whose names begin with
    `prefix`; none if there is no file, or with a warning if it is damaged."""
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    try:
        with TextIOWrapper(open_regular(path), "utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["metric"].startswith(prefix) and row["value"]:
                    step = float(row["step"])
                    if not 0 <= step <= LAST_STEP:
                        raise ValueError(f"step {step:g}")
                    curves[row["metric"]][int(step)] = float(row["value"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, csv.Error) as error:
        warnings.warn(f"{path}: no curves of it, it is damaged ({error!r:.200})", stacklevel=2)
        return {}
    return dict(curves)


def draw(path: Path, summary: Mapping[str, Any], curves: Curves) -> None:
    """Draws to a PNG the learning curves of the claim's metric, or, where runs were evaluated once
    or never in training, what they are judged by; and the paired differences."""
    style = _styles(summary)
    with plt.rc_context(LOOK):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(13, 5.6), dpi=130, width_ratios=(1.25, 1), layout="constrained"
        )
        title = f"{summary['claim']['title']}  |  claim holds: {summary['verdict']}"
        figure.suptitle(title, fontsize=14, fontweight="bold")
        claim = summary["claim"]
        if once := _one_point_each(curves):  # no curve to see
            found = {arm: (about or {}).get("values", {}) for arm, about in summary["arms"].items()}
            curves = {arm: [{0: value} for value in of.values()] for arm, of in found.items()}
        what = "Runs" if once else "Learning curves"
        left.set_title(f"{what}: mean and one standard deviation over seeds", fontsize=11)
        left.set_ylabel(claim["primary"]["metric"] if once else claim["curve"])
        if _curves(left, curves, style, "training step"):
            if once:
                _name_columns(left)
            else:
                left.legend(loc="best", frameon=True, framealpha=0.9)
        else:
            left.text(0.5, 0.5, "no run has finished", transform=left.transAxes, ha="center")
        _differences(right, summary, style)
        figure.savefig(path)
        plt.close(figure)


def draw_metrics(path: Path, summary: Mapping[str, Any], metrics: Mapping[str, Curves]) -> None:
    """Draws to a PNG one small panel of curves for each metric: what else the arms did."""
    style = _styles(summary)
    columns = min(4, len(metrics))
    rows = -(-len(metrics) // columns)
    with plt.rc_context(LOOK):
        size = (3.6 * columns, 2.7 * rows + 0.8)
        figure, panels = plt.subplots(
            rows, columns, figsize=size, dpi=110, squeeze=False, layout="constrained"
        )
        handles: dict[str, Any] = {}
        for axes, (name, curves) in zip(panels.flat, metrics.items(), strict=False):
            _curves(axes, curves, style)
            axes.set_title(name, fontsize=11)
            shown, names = axes.get_legend_handles_labels()
            handles |= dict(zip(names, shown, strict=True))
        for axes in panels.flat[len(metrics) :]:
            axes.set_visible(False)
        title = f"{summary['claim']['title']}: every validation metric"
        figure.suptitle(f"{title}\nmean and one standard deviation over seeds", fontsize=11)
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False
        )
        figure.savefig(path)
        plt.close(figure)


def _styles(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arm -> colour, line style and marker, the same in every picture of a claim."""
    looks = zip(cycle(COLOURS), cycle(STYLES), cycle(MARKERS), strict=False)
    return {
        arm: {"color": colour, "linestyle": line, "marker": marker}
        for arm, (colour, line, marker) in zip(summary["arms"], looks, strict=False)
    }


def _one_point_each(curves: Curves) -> bool:
    """Whether each run was evaluated at most once: then there is no curve to see."""
    return all(len(run) < 2 for runs in curves.values() for run in runs)


def _points(axes: Axes, curves: Curves, style: Mapping[str, Mapping[str, Any]]) -> bool:
    """Draws the runs of each arm in a column of its own; whether there were any."""
    values = {arm: [v for run in runs for v in run.values()] for arm, runs in curves.items()}
    values = {arm: found for arm, found in values.items() if found}
    for column, (arm, found) in enumerate(values.items()):
        spread = np.std(found, ddof=1) if len(found) > 1 else 0
        look = {**style[arm], "linestyle": "none"}
        axes.errorbar(column, np.mean(found), spread, **look, label=arm, markersize=8, capsize=6)
        beside = np.linspace(0.15, 0.25, len(found))
        axes.scatter(column + beside, found, s=14, color="#777777", zorder=2)
    axes.set_xticks([])
    axes.set_xlim(-0.6, max(len(values), 1) - 0.4)
    axes.grid(axis="y", alpha=0.25)
    return bool(values)


def _name_columns(axes: Axes) -> None:
    """Writes the arms below their columns."""
    names = axes.get_legend_handles_labels()[1]
    parted = (textwrap.fill(name.replace("_", "_ "), 14) for name in names)
    axes.set_xticks(range(len(names)), [name.replace("_ ", "_") for name in parted])


def _curves(
    axes: Axes, curves: Curves, style: Mapping[str, Mapping[str, Any]], unit: str = ""
) -> bool:
    """Draws one curve an arm, or a column where runs have one point; whether there was any."""
    if _one_point_each(curves):
        return _points(axes, curves, style)
    axes.set_xlabel(unit)
    for arm, runs in curves.items():
        by_step = defaultdict(list)
        for run in runs:
            for step, value in run.items():
                by_step[step].append(value)
        if not by_step:
            continue
        steps = sorted(by_step)
        mean = np.array([np.mean(by_step[s]) for s in steps])
        spread = np.array([np.std(by_step[s], ddof=1) if len(by_step[s]) > 1 else 0 for s in steps])
        every = max(1, len(steps) // 8)
        axes.plot(steps, mean, **style[arm], label=arm, markevery=every, markersize=5, linewidth=2)
        axes.fill_between(
            steps, mean - spread, mean + spread, color=style[arm]["color"], alpha=0.1, linewidth=0
        )
    axes.grid(alpha=0.25)
    return bool(axes.lines)


def _differences(axes: Axes, summary: Mapping[str, Any], style: Mapping) -> None:
    pairs = [pair for pair in summary["comparisons"] if pair["mean"] is not None]
    matters, sign = summary["claim"]["smallest_difference"], summary["claim"]["expected_sign"]
    axes.axvspan(-matters, matters, color="#888888", alpha=0.13, linewidth=0)
    axes.axvline(0, color="#444444", linewidth=1)
    for row, pair in enumerate(pairs):
        look, ends = style[pair["method"]], [pair["low"], pair["high"]]
        seeds = list(pair["differences"].values())
        offsets = np.linspace(-0.12, 0.12, len(seeds)) if len(seeds) > 1 else [0.0]
        axes.scatter(seeds, row + 0.2 + np.asarray(offsets) / 2, s=16, color="#777777", zorder=2)
        if pair["low"] is not None:
            axes.plot(ends, [row, row], color=look["color"], linewidth=3)
            axes.plot(ends, [row, row], "|", color=look["color"], ms=12)
        axes.plot(pair["mean"], row, look["marker"], color=look["color"], markersize=9, zorder=3)
        axes.annotate(
            f"{pair['mean']:+.2f}",
            (pair["mean"], row),
            (0, 9),
            textcoords="offset points",
            fontweight="bold" if row == 0 else "normal",
            ha="center",
            fontsize=10,
        )
    kinds = {0: "\n(primary)", 1: "\n(control)"}
    names = [
        f"{pair['method']} -\n{pair['baseline']}{kinds.get(summary['comparisons'].index(pair), '')}"
        for pair in pairs
    ]
    axes.set_yticks(range(len(pairs)), names)
    axes.set_ylim(len(pairs) - 0.4, -0.6)  # the primary comparison on top
    axes.set_title("Paired differences, 95% intervals", fontsize=11)
    towards = {1: "higher is better", -1: "lower is better", 0: "no difference expected"}[sign]
    axes.set_xlabel(
        f"difference in {summary['claim']['primary']['metric']} ({towards})\n"
        f"grey: smaller than the {matters:g} that matters"
    )
    axes.grid(axis="x", alpha=0.25)
