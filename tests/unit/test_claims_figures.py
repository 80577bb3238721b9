"""The picture of a claim: whole, of a few runs, of none; text that does not overlap."""

import itertools

import pytest
from claims_toy import CLAIM
from matplotlib import pyplot as plt

from benchmarks.figures import draw, draw_metrics, read_curves

NAMES = ("ours", "broken", "a_baseline_with_a_rather_long_name", "more")


def summary(seeds: int) -> dict:
    values = {str(seed): float(seed) for seed in range(seeds)}
    pair = {
        "differences": values,
        "mean": 1.0 if seeds else None,
        "low": -1.0 if seeds > 1 else None,
        "high": 3.0 if seeds > 1 else None,
    }
    return {
        "claim": {**CLAIM, "curve": "val/top1_ema"},
        "verdict": "undecided",
        "arms": dict.fromkeys(NAMES),
        "comparisons": [{**pair, "method": "ours", "baseline": arm} for arm in NAMES[1:]],
    }


@pytest.mark.parametrize("seeds", [0, 1])
def test_picture_is_drawn_for_any_number_of_seeds(tmp_path, seeds):
    curves = {arm: [{s: 50.0 + s for s in range(20)}] * seeds for arm in NAMES}
    draw(tmp_path / "a.png", summary(seeds), curves)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == []


def test_no_two_texts_of_the_differences_overlap(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    curves = {arm: [{s: 50.0 + s for s in range(20)}] * 5 for arm in NAMES}
    draw(tmp_path / "a.png", summary(5), curves)
    figure = plt.gcf()
    figure.draw_without_rendering()
    axes = figure.axes[1]
    texts = [*axes.get_yticklabels(), *axes.texts, axes.title, axes.xaxis.label]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    monkeypatch.undo()
    plt.close(figure)
    assert len(boxes) == 8
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_curves_are_read_by_name(tmp_path):
    path = tmp_path / "metrics.csv"
    assert read_curves(path) == {}
    path.write_text(
        "step,epoch,metric,value\n10,0,val/top1,1\n10,0,val/top1_ema,2.5\n20,1,val/top1_ema,\n"
        "20,1,val/top1,3\n20,1,train/loss,7\n"
    )
    assert read_curves(path) == {"val/top1": {10: 1.0, 20: 3.0}, "val/top1_ema": {10: 2.5}}


@pytest.mark.parametrize("count", [1, 6])
def test_every_metric_gets_a_panel_of_its_own(tmp_path, monkeypatch, count):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    curves = {arm: [{10: 1.0, 20: 2.0}] * 2 for arm in NAMES}
    metrics = {f"val/metric{n}": curves for n in range(count)}
    draw_metrics(tmp_path / "all.png", summary(2), metrics)
    figure = plt.gcf()
    visible = [axes for axes in figure.axes if axes.get_visible()]
    monkeypatch.undo()
    plt.close(figure)
    assert [axes.get_title() for axes in visible] == list(metrics)
    assert all(len(axes.get_lines()) == len(NAMES) for axes in visible)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(NAMES)


@pytest.mark.parametrize("points", [0, 1])
def test_runs_without_a_curve_are_shown_by_what_judges_them(tmp_path, monkeypatch, points):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    content = summary(3)
    content["arms"] = {arm: {"values": {"1": 5.0, "2": 6.0, "3": 7.0}} for arm in NAMES[:2]}
    curves = {arm: [{99: 50.0}] * 3 if points else [{}] * 3 for arm in NAMES[:2]}
    draw(tmp_path / "a.png", content, curves)
    left = plt.gcf().axes[0]
    drawn = [dots.get_offsets()[:, 1].tolist() for dots in left.collections[1::2]]
    named = [text.get_text().replace("\n", "") for text in left.get_xticklabels()]
    monkeypatch.undo()
    plt.close(plt.gcf())
    assert left.get_ylabel() == content["claim"]["primary"]["metric"]
    assert named == list(NAMES[:2])
    assert drawn == [[5, 6, 7], [5, 6, 7]]
