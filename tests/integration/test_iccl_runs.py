"""ICCL runs: exact class means survive a kill, and stage 2 follows stage 1."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from shared import run as entry
from tests.conformance.conftest import assert_same, compose_experiment, seen_fit
from tests.hostile.damages import every


def run(output: Path, data_root: Path, killed_at: int | None) -> dict[str, Any]:
    """Train the smoke experiment into `output`; returns its last checkpoint."""

    class Kill(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == killed_at:
                raise KeyError("killed")

    settings = ("method.centroid_mode=epoch_mean", "method.balancing=null")
    with seen_fit(lambda trainer, _: trainer.callbacks.append(Kill())):
        smoke("smoke", output, data_root, *settings)
    return torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)


# An epoch has four batches: killed after its first batch, at its end and right after the start.
@pytest.mark.parametrize("killed_at", every(3, [5, 4, 8]))
def test_epoch_means_survive_a_kill(killed_at: int, tmp_path: Path) -> None:
    undisturbed = run(tmp_path / "whole", tmp_path / "data", None)
    with pytest.raises(KeyError, match="killed"):
        run(tmp_path / "killed", tmp_path / "data", killed_at)
    resumed = run(tmp_path / "killed", tmp_path / "data", None)
    assert resumed["global_step"] == undisturbed["global_step"] == 12
    assert_same(resumed["state_dict"], undisturbed["state_dict"])
    assert undisturbed["state_dict"]["centroids.prototypes"].norm(dim=1).min() > 0.99
    assert undisturbed["class_counts"] == resumed["class_counts"]
    assert sum(undisturbed["class_counts"]) == 62


def smoke(experiment: str, output: Path, data_root: Path, *overrides: str) -> dict[str, Any]:
    common = [f"output_dir={output}", f"data_root={data_root}", "logger.wandb=null"]
    common += ["trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"]
    return entry.run(compose_experiment(f"iccl/{experiment}", *common, *overrides))


@pytest.fixture(scope="module")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage-1 checkpoint; its data lie beside the run."""
    folder = tmp_path_factory.mktemp("iccl")
    metrics = smoke("smoke", folder / "stage1", folder / "data")["metrics"]
    variants = ("joint", "crt", "lws", "tau_norm", "ncm", "probe")
    assert {f"test/{variant}_macro" for variant in variants} <= set(metrics)
    return folder / "stage1" / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("learnt", ["crt", "lws"])
def test_stage_2_follows_stage_1(learnt: str, stage1: Path, tmp_path: Path) -> None:
    changes = (f"warm_start.path={stage1}", f"method.learnt={learnt}")
    results = smoke("smoke_stage2", tmp_path / "stage2", stage1.parents[2] / "data", *changes)
    assert f"test/{learnt}_few" in results["metrics"]
    assert "test/joint_few" not in results["metrics"]
    before = torch.load(stage1, weights_only=True)["state_dict"]
    after = torch.load(tmp_path / "stage2/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    backbone = [name for name in after if name.startswith("encoder.backbone.")]
    assert backbone
    assert all(torch.equal(after[name], before[name]) for name in backbone)
    kept = torch.equal(after["encoder.classifier.weight"], before["encoder.classifier.weight"])
    assert kept == (learnt == "lws")
    assert ("scales" in after) == (learnt == "lws")
    torch.testing.assert_close(after["teacher.weight"], before["encoder.classifier.weight"])
    logged = (tmp_path / "stage2" / "metrics.csv").read_text()
    assert "train/kl" in logged
    assert "val/macro" in logged


@pytest.mark.parametrize(
    ("override", "named"),
    [("data.val_split=test", r"data\.val_split"), ("data.probe_split=null", r"data\.probe_split")],
)
def test_a_missing_set_is_refused_before_training(
    override: str, named: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=named):
        smoke("smoke", tmp_path / "run", tmp_path / "data", override)
    assert not (tmp_path / "run" / "checkpoints").exists()
