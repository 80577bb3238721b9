"""SimCal's two stages as runs: calibration follows joint training, and survives a kill."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from shared import run as entry
from shared.checkpoints.reading import load_module
from tests.conformance.conftest import assert_same, compose_experiment, seen_fit
from tests.hostile.damages import every


def smoke(experiment: str, output: Path, data_root: Path, *overrides: str) -> dict[str, Any]:
    common = [f"output_dir={output}", f"data_root={data_root}", "logger.wandb=null"]
    common += ["trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"]
    return entry.run(compose_experiment(f"simcal/{experiment}", *common, *overrides))


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of stage A; its data lie beside the run."""
    folder = tmp_path_factory.mktemp("simcal")
    settings = ("trainer.max_steps=60", "method.lr=0.01")
    metrics = smoke("smoke", folder / "joint", folder / "data", *settings)["metrics"]
    # Regions that know their classes are worth more, of boxes and of masks.
    assert metrics["test/oracle_AP"] > metrics["test/AP"]
    assert metrics["test/oracle_mask_bAP"] > metrics["test/mask_bAP"]
    assert 0 < metrics["test/recall"] <= 100
    return folder / "joint" / "checkpoints" / "last.ckpt"


def calibrate(joint: Path, output: Path, *overrides: str) -> dict[str, Any]:
    data = joint.parents[2] / "data"
    return smoke("smoke_calibration", output, data, f"warm_start.path={joint}", *overrides)


def state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("head", every(3, ["3fc_ft", "crt", "lws", "3fc_rand", "2fc_rand"]))
def test_calibration_follows_joint_training(head: str, joint: Path, tmp_path: Path) -> None:
    metrics = calibrate(joint, tmp_path, f"method.head={head}")["metrics"]
    before, after = torch.load(joint, weights_only=True)["state_dict"], state(tmp_path)
    kept = {name: value for name, value in after.items() if not name.startswith("heads.")}
    assert_same(kept, before)
    layer = "heads.0.classifier." + ("scale" if head == "lws" else "weight")
    start = before["detector.box_heads.0.cls_score.weight"]
    assert not torch.equal(after[layer], torch.ones_like(after[layer]) if head == "lws" else start)
    assert metrics["test/original_AP"] >= 0
    assert {"test/AP", "test/calibrated_mask_bAP", "test/mean_AP1", "test/recall"} <= set(metrics)
    logged = (tmp_path / "metrics.csv").read_text()
    assert "train/loss_calibration" in logged
    assert "train/regions" in logged
    rebuilt = load_module(tmp_path / "checkpoints" / "last.ckpt")
    assert_same(dict(rebuilt.state_dict()), after)


def test_a_head_that_needs_no_training_is_only_evaluated(joint: Path, tmp_path: Path) -> None:
    settings = ("method.head=tau_norm", "method.tau=0.5", "evaluate_only=true")
    assert "test/bAP" in calibrate(joint, tmp_path, *settings)["metrics"]


@pytest.mark.parametrize("control", ["Unbalanced", "ProposalLevelOnly"])
def test_controls_see_ordinary_batches(control: str, joint: Path, tmp_path: Path) -> None:
    target = f"method._target_=methods.simcal.controls.{control}"
    calibrate(joint, tmp_path, target, "sampling@data.sampling=random")
    assert "train/loss_calibration" in (tmp_path / "metrics.csv").read_text()


def test_calibration_refuses_ordinary_batches(joint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="calibration needs the class that each image"):
        calibrate(joint, tmp_path, "sampling@data.sampling=random")


def test_calibration_survives_a_kill(joint: Path, tmp_path: Path) -> None:
    class Kill(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 6:
                raise KeyError("killed")

    calibrate(joint, tmp_path / "whole")
    with (
        pytest.raises(KeyError, match="killed"),
        seen_fit(lambda trainer, _: trainer.callbacks.append(Kill())),
    ):
        calibrate(joint, tmp_path / "killed")
    calibrate(joint, tmp_path / "killed")
    assert_same(state(tmp_path / "killed"), state(tmp_path / "whole"))
