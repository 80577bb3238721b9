"""The entry point: what a run leaves behind, reuses, continues and refuses."""

import json
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from shared import run as entry
from shared.checkpoints.reading import load_checkpoint
from shared.training.precision import PrecisionChoice
from shared.training.run_folder import hash_config

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def smoke(tmp_path: Path):
    """smoke(*overrides) -> the smoke config of CoMatch, its output folder `tmp_path / run`."""

    def config(*overrides: str, experiment: str = "comatch/smoke") -> DictConfig:
        fixed = [
            f"experiment={experiment}",
            f"name={experiment}",
            f"output_dir={tmp_path / 'run'}",
            f"data_root={tmp_path / 'data'}",
            "logger=csv",
            "trainer.enable_progress_bar=false",
        ]
        with initialize_config_dir(version_base="1.3", config_dir=str(entry.ROOT / "conf")):
            return compose("config", [*fixed, *overrides])

    return config


def test_results_say_what_ran(smoke, tmp_path):
    results = entry.run(smoke("seed=3", "trainer.max_steps=2"))
    assert json.loads((tmp_path / "run/results.json").read_text()) == results
    assert results["status"] == "finished"
    assert (results["method"], results["arm"], results["seed"]) == ("comatch", "smoke", 3)
    assert {"test/top1", "test/top1_ema"} <= set(results["metrics"])
    assert results["peak_memory_mb"] > 0
    assert results["cpu_seconds"] > 0
    assert results["versions"]["torch"] == torch.__version__
    (data,) = results["data"].values()
    assert all(len(checksum) == 64 for checksum in data["files"].values())
    saved = OmegaConf.load(tmp_path / "run/config.yaml")
    assert saved.seed == 3
    assert saved.data.split_seed == 3  # resolved


def test_a_finished_run_is_reused_and_another_config_refused(smoke, monkeypatch):
    first = entry.run(smoke("trainer.max_steps=2"))
    with monkeypatch.context() as patch:
        patch.setattr(pl.Trainer, "fit", lambda *_, **__: pytest.fail("trained again"))
        assert entry.run(smoke("trainer.max_steps=2")) == first
        with pytest.raises(entry.RunError, match="another config"):
            entry.run(smoke("trainer.max_steps=3"))


def test_an_interrupted_run_is_continued_and_another_config_refused(smoke, tmp_path, monkeypatch):
    step = pl.LightningModule.optimizer_step

    def fail_later(module, *args, **kwargs):
        if module.global_step == 5:
            raise KeyError("the power went")
        step(module, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pl.LightningModule, "optimizer_step", fail_later)
        with pytest.raises(KeyError):
            entry.run(smoke())
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert load_checkpoint(last)["global_step"] == 5
    with pytest.raises(entry.RunError, match=r"differs in method"):
        entry.run(smoke("method.lr=0.01"))
    assert entry.run(smoke())["resumed"]


def test_the_hash_ignores_places_and_nothing_else(smoke, tmp_path):
    def digest(*overrides: str) -> str:
        return hash_config(entry.resolved_config(smoke(*overrides), "32-true"))

    base = digest()
    same = (f"data_root={tmp_path / 'elsewhere'}", f"output_dir={tmp_path / 'there'}", "threads=2")
    assert digest(*same) == base
    for changed in ("seed=1", "method.lr=0.04", "trainer.max_steps=11", "data.subset_seed=1"):
        assert digest(changed) != base


def test_nothing_to_run_is_said(tmp_path):
    with initialize_config_dir(version_base="1.3", config_dir=str(entry.ROOT / "conf")):
        config = compose("config", ["name=none", f"output_dir={tmp_path}"])
    with pytest.raises(entry.RunError, match="name an experiment"):
        entry.run(config)


def test_auto_precision_is_measured_once_and_kept(smoke, monkeypatch):
    choices = iter(["bf16-mixed", "32-true"])
    threads = []

    def choose(*_, **__):
        threads.append(torch.get_num_threads())
        return PrecisionChoice(next(choices), {})

    before = torch.get_num_threads()
    monkeypatch.setattr(entry, "choose_precision", choose)
    first = entry.run(smoke("precision=auto", "threads=1", "trainer.max_steps=2"))
    assert first["precision"] == "bf16-mixed"
    assert threads == [1]
    assert entry.run(smoke("precision=auto", "threads=1", "trainer.max_steps=2")) == first
    torch.set_num_threads(before)


@pytest.mark.parametrize("control", ["PermutedGraph", "PermutedEdges"])
def test_controls_change_what_is_learned(smoke, tmp_path, control):
    entry.run(smoke("method.graph_threshold=0.0"))
    honest = load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["state_dict"]
    folder, target = tmp_path / control, f"method._target_=methods.comatch.controls.{control}"
    entry.run(smoke("method.graph_threshold=0.0", target, f"output_dir={folder}"))
    other = load_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"]
    name = "encoder.projection.fc2.weight"
    assert not torch.equal(honest[name], other[name])


def test_a_sweep_gets_its_objective_and_nothing_else(smoke):
    metrics = {"test/top1": 60.0, "test/knn": 70.0}
    assert entry.objective(smoke(), metrics) is None
    assert entry.objective(smoke("+objective=test/knn"), metrics) == 70.0
    with pytest.raises(entry.RunError, match=r"test/ami is no metric .*: test/knn, test/top1"):
        entry.objective(smoke("+objective=test/ami"), metrics)


def test_where_results_lie_does_not_change_what_a_run_is():
    def digest(output: str, start: str, data: str = "/data") -> str:
        config = {"output_dir": output, "data_root": data, "source": {"root": f"{data}/set"}}
        return hash_config({**config, "warm_start": {"path": f"{output}/../{start}"}})

    assert digest("/here/seed1", "last.ckpt") == digest("/there/seed1", "last.ckpt", "/elsewhere")
    assert digest("/here/seed1", "last.ckpt") != digest("/here/seed1", "other.ckpt")
