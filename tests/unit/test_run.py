"""The entry point: what a run leaves behind, reuses, continues and refuses."""

import csv
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from benchmarks.launch import Run
from shared import run as entry
from shared.checkpoints.reading import load_checkpoint
from shared.provenance import place
from shared.training.precision import PrecisionChoice
from shared.training.run_folder import RunFolder, hash_config
from tests.configs import composed

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def smoke(tmp_path: Path, data_root: Path):
    """smoke(*overrides) -> the smoke config of CoMatch, its output folder `tmp_path / run`."""

    def config(*overrides: str) -> DictConfig:
        places = (f"output_dir={tmp_path / 'run'}", f"data_root={data_root}")
        quiet = ("logger=csv", "trainer.enable_progress_bar=false")
        return composed("comatch/smoke", *places, *quiet, *overrides)

    return config


def test_results_say_what_ran_and_are_reused_but_by_another_config(smoke, tmp_path, monkeypatch):
    results = entry.run(smoke("seed=3", "trainer.max_steps=2"))
    assert json.loads((tmp_path / "run/results.json").read_text()) == results
    assert results["status"] == "finished"
    assert (results["method"], results["arm"], results["seed"]) == ("comatch", "smoke", 3)
    assert {"test/top1", "test/top1_ema"} <= set(results["metrics"])
    assert results["peak_memory_mb"] > 0
    assert results["cpu_seconds"] > 0
    assert torch.__version__.startswith(results["versions"]["torch"])
    (data,) = results["data"].values()
    assert all(len(checksum) == 64 for checksum in data["files"].values())
    saved = OmegaConf.load(tmp_path / "run/config.yaml")
    assert saved.seed == 3
    assert saved.data.split_seed == 3  # resolved
    monkeypatch.setattr(pl.Trainer, "fit", lambda *_, **__: pytest.fail("trained again"))
    assert entry.run(smoke("seed=3", "trainer.max_steps=2")) == results
    with pytest.raises(entry.RunError, match="another config"):
        entry.run(smoke("seed=3", "trainer.max_steps=3"))


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

    def started(output: str, start: str, data: str = "/data") -> str:
        config = {"output_dir": output, "data_root": data, "source": {"root": f"{data}/set"}}
        return hash_config({**config, "warm_start": {"path": f"{output}/../{start}"}})

    assert started("/here/seed1", "last.ckpt") == started("/there/seed1", "last.ckpt", "/elsewhere")
    assert started("/here/seed1", "last.ckpt") != started("/here/seed1", "other.ckpt")


def test_nothing_to_run_is_said(smoke):
    config = smoke()
    config.method = None
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


def test_controls_change_what_is_learned(smoke, tmp_path):
    weights = []
    for name in ("CoMatch", "PermutedGraph", "PermutedEdges"):
        target = f"method._target_=methods.comatch.{'controls' if weights else 'module'}.{name}"
        few = ("method.graph_threshold=0.0", "trainer.max_steps=4")
        entry.run(smoke(*few, target, f"output_dir={tmp_path / name}"))
        state = load_checkpoint(tmp_path / name / "checkpoints/last.ckpt")["state_dict"]
        weights.append(state["encoder.projection.fc2.weight"])
    assert not any(torch.equal(weights[0], other) for other in weights[1:])


def test_a_sweep_gets_its_objective_and_nothing_else(smoke):
    metrics = {"test/top1": 60.0, "test/knn": 70.0}
    assert entry.objective(smoke(), metrics) is None
    assert entry.objective(smoke("+objective=test/knn"), metrics) == 70.0
    with pytest.raises(entry.RunError, match=r"test/ami is no metric .*: test/knn, test/top1"):
        entry.objective(smoke("+objective=test/ami"), metrics)


def test_a_run_says_where_it_ran(smoke, tmp_path, monkeypatch):
    for key, value in {"ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "2", "JOB_ID": "9"}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    results = entry.run(smoke("trainer.max_steps=1"))
    saved = OmegaConf.load(tmp_path / "run/config.yaml").start
    said = {key: results[key] for key in ("world_size", "host", "job", "log")}
    assert saved == said
    assert (said["world_size"], said["host"], said["job"]) == (1, socket.gethostname(), "7_2")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID")
    assert place()["job"] == "9"


def test_another_number_of_processes_does_not_continue_a_run(smoke, tmp_path, monkeypatch):
    entry.run(smoke("trainer.max_steps=1"))
    (tmp_path / "run/results.json").unlink()
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace("world_size: 1", "world_size: 8"))
    with pytest.raises(entry.RunError, match="was begun by 8 processes, not 1"):
        entry.run(smoke("trainer.max_steps=1"))
    for key in ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.setenv(key, "2")
    with pytest.raises(entry.RunError, match="is process 0 of several"):
        entry.run(smoke("trainer.max_steps=1", f"output_dir={tmp_path / 'two'}"))


def test_a_checkpoint_of_lightnings_requeueing_is_refused(smoke, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/hpc_ckpt_1.ckpt").touch()
    with pytest.raises(entry.RunError, match=r"hpc_ckpt_1\.ckpt .*delete it"):
        entry.run(smoke())


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        ("+trainer.fast_dev_run=true", "fast_dev_run=True"),
        ("trainer.limit_train_batches=1", "limit_train_batches=1"),
        ("trainer.limit_test_batches=1", "limit_test_batches=1"),
    ],
)
def test_part_of_a_run_is_not_a_finished_one(smoke, tmp_path, cut, reason):
    results = entry.run(smoke("trainer.max_steps=2", cut))
    assert (results["status"], results["reason"]) == ("stopped", reason)
    run = Run("arm", 1, "comatch/smoke", tmp_path / "run")
    assert run.results() is None  # so `reproduce` starts it again


def test_a_run_out_of_time_goes_on_when_it_gets_more(smoke, tmp_path, monkeypatch):
    step = pl.LightningModule.optimizer_step

    def step_slowly(module, *args, **kwargs):
        step(module, *args, **kwargs)
        time.sleep(1.1)

    in_epochs = ("trainer.max_steps=-1", "trainer.max_epochs=2", "checkpoint_every=100")
    with monkeypatch.context() as patch:
        patch.setattr(pl.LightningModule, "optimizer_step", step_slowly)
        stopped = entry.run(smoke(*in_epochs, "+trainer.max_time=00:00:00:01"))
    assert (stopped["status"], stopped["reason"]) == ("stopped", "max_time ended it after step 1")
    assert load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 1
    continued = entry.run(smoke(*in_epochs, "+trainer.max_time=01:00:00:00"))
    assert (continued["status"], continued["resumed"]) == ("finished", True)
    whole = entry.run(smoke(*in_epochs, f"output_dir={tmp_path / 'whole'}"))
    assert (whole["status"], whole["resumed"]) == ("finished", False)
    assert continued["metrics"] == whole["metrics"]


def test_sigterm_saves_and_is_not_an_error(smoke, tmp_path, monkeypatch):
    step = pl.LightningModule.optimizer_step

    def send_later(module, *args, **kwargs):
        step(module, *args, **kwargs)
        if module.global_step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    requeued = []
    monkeypatch.setattr(entry.slurm, "requeue", lambda: requeued.append(True))
    with monkeypatch.context() as patch:
        patch.setattr(pl.LightningModule, "optimizer_step", send_later)
        with pytest.raises(SystemExit) as end:
            entry.run(smoke("checkpoint_every=100"))
    assert (end.value.code, requeued) == (143, [True])
    assert load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 7
    assert not (tmp_path / "run/error.txt").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert entry.run(smoke("checkpoint_every=100"))["resumed"]


def test_the_first_process_measures_the_precision_of_all(smoke, tmp_path, monkeypatch):
    config = smoke("precision=auto", "trainer.strategy=ddp")
    monkeypatch.setattr(entry, "choose_precision", lambda *_, **__: PrecisionChoice("32-true", {}))
    folder = RunFolder(tmp_path / "run")
    folder.agree_on_precision("bf16-mixed", "of an earlier start")
    assert entry.resolve_precision(config) == "32-true"
    monkeypatch.setattr(entry, "choose_precision", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr(entry.rank_zero_only, "rank", 1)
    assert entry.resolve_precision(config) == "32-true"
    with pytest.raises(entry.RunError, match="has measured nothing"):
        folder.agreed_precision("of another start", patience=0.3)


def test_blocks_are_compiled_and_learn_the_same(smoke, tmp_path, monkeypatch):
    compiled = []
    plain = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda block, **how: compiled.append(how) or plain(block, **how)
    )
    whole = entry.run(smoke())
    assert not compiled
    same = entry.run(smoke("+trainer.compile=aot_eager", f"output_dir={tmp_path / 'compiled'}"))
    assert compiled
    assert {how["backend"] for how in compiled} == {"aot_eager"}
    assert same["metrics"] == pytest.approx(whole["metrics"], abs=5)
    names = [
        set(load_checkpoint(tmp_path / folder / "checkpoints/last.ckpt")["state_dict"])
        for folder in ("run", "compiled")
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_stage_2"])
def test_strategies_that_share_out_weights_are_refused(smoke, strategy):
    with pytest.raises(ValueError, match=f"trainer.strategy={strategy}: momentum copies and"):
        entry.run(smoke(f"trainer.strategy={strategy}"))


def test_the_best_epoch_by_validation_is_tested_if_asked_for(smoke, tmp_path):
    config = smoke("best=val/top1")
    assert hash_config(entry.resolved_config(smoke("best=null"), "32-true")) != hash_config(
        entry.resolved_config(config, "32-true")
    )
    results = entry.run(config)
    kept = load_checkpoint(tmp_path / "run/checkpoints/best.ckpt")
    assert results["best"]["step"] == kept["global_step"]
    rows = csv.DictReader((tmp_path / "run/metrics.csv").read_text().splitlines())
    judged = [float(row["value"]) for row in rows if row["metric"] == "val/top1"]
    assert results["best"]["value"] == pytest.approx(max(judged))
    with pytest.raises(entry.RunError, match="best=val/top1, but the run has not validated"):
        entry.run(
            smoke("best=val/top1", "trainer.limit_val_batches=0", f"output_dir={tmp_path / 'none'}")
        )


def test_the_best_is_never_chosen_by_the_test(smoke):
    with pytest.raises(entry.RunError, match="best=test/top1: name a metric of validation"):
        entry.run(smoke("best=test/top1"))


def test_accumulated_batches_are_refused_where_each_moves_a_queue(smoke):
    with pytest.raises(entry.RunError, match="CoMatch moves queues or averages with every batch"):
        entry.run(smoke("trainer.accumulate_grad_batches=2"))


def test_processes_draw_their_own_dropout(smoke, monkeypatch):
    drawn = []
    config = smoke()
    for rank in (0, 1):
        monkeypatch.setattr(entry.rank_zero_only, "rank", rank)
        module, _ = entry._method_and_data(config, entry.resolved_config(config, "32-true"))
        drawn.append((torch.rand(3), next(module.parameters()).detach().clone()))
    (noise, weight), (other_noise, same_weight) = drawn
    assert torch.equal(weight, same_weight)
    assert not torch.equal(noise, other_noise)


@pytest.mark.parametrize(("given", "precision"), [("true", "high"), ("false", "highest")])
def test_rows_say_whether_products_have_tf32(smoke, given, precision):
    try:
        entry.build_trainer(smoke(f"+trainer.tf32={given}").trainer, logger=False)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
    assert composed("albef/vqa").trainer.tf32 is True


def test_an_official_file_that_is_missing_is_not_searched_for(smoke):
    with pytest.raises(entry.RunError, match=r"no checkpoint at none\.pth; docs/weights\.md says"):
        entry.run(smoke("official_checkpoint=none.pth"))
