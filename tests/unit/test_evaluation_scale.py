"""The benchmark of the E-step: its features, its cost model, its output."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.scale import estep
from benchmarks.scale.estep import clumped_features, main, points_used, project


def test_features_are_clumped_unit_norm_and_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estep, "ROWS", 64)
    features = clumped_features(200, 32, seed=1, clumps=4)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(200))
    assert torch.equal(features, clumped_features(200, 32, seed=1, clumps=4))
    assert not torch.equal(features, clumped_features(200, 32, seed=2, clumps=4))
    similarity = features @ features.T
    assert similarity[0].sort(descending=True).values[20] > 0.25 > similarity[0].median()


def test_cost_model() -> None:
    measured = {"clusters": 10, "besides_mb": 3.0}
    measured |= {"train_pairs_per_second": 1e6, "assign_pairs_per_second": 5e5}
    assert points_used(5000, 10) == 5000
    assert points_used(5000, 3) == 3000
    projected = project(measured, 5000, 8, 100)
    assert projected["train_seconds"] == pytest.approx(5000 * 100 * 20 * 5 / 1e6)
    assert projected["assign_seconds"] == pytest.approx(5000 * 100 / 5e5)
    subset = project(measured, 5000, 8, 3)
    assert subset["train_seconds"] == pytest.approx(3000 * 3 * 20 * 5 / 1e6)
    assert projected["besides_mb"] == pytest.approx(3.0 + 16 * 8 * (100 - 10) / 1e6)
    assert subset["besides_mb"] == pytest.approx(
        3.0 + (4 * 3000 * 8 - 12 * 2000 - 16 * 8 * (10 - 3)) / 1e6
    )


def test_prints_tables_and_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    small = ["--images", "3000", "--dim", "16", "--clusters", "40", "2", "--iterations", "2"]
    assert main([*small, "--threads", "1", "--output", str(tmp_path)]) == 0
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    settings = ("3000 x 16 float32 features", "2 iterations x 1 restarts")
    assert all(said in printed for said in (*settings, "| 2 | 2000 |", "| 100000 |"))
    written = json.loads((tmp_path / "scale" / "estep.json").read_text())
    assert [row["clusters"] for row in written["measured"]] == [2, 40]
    assert [row["clusters"] for row in written["projected"]] == [25000, 50000, 100000]
    assert all(row["peak_mb"] > 50 for row in written["measured"])


def test_more_clusters_than_images_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--images", "10", "--clusters", "5", "11"])
    assert "--clusters 11 are more than --images 10" in capsys.readouterr().err
