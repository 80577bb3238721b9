"""A run's folder and command line: nothing is written through links, endings are honest."""

import os
import re
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos import first_difference
from shared import run as entry
from shared.checkpoints.reading import load_checkpoint
from shared.overrides import OverrideError, validate
from shared.training.run_folder import RunBusyError, RunError, RunFolder
from tests.configs import composed
from tests.hostile.damages import DAMAGES, MOSTLY, every
from tests.hostile.tripwire import watched
from tests.processes import ended, run, started

pytestmark = pytest.mark.filterwarnings("ignore")
SMOKE = ["experiment=comatch/smoke", "logger=csv", "precision=32-true", "trainer.max_steps=2"]
SMOKE += ["trainer.enable_progress_bar=false"]
PRECIOUS = b"not yours\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data, a finished run, and a file that nobody may touch."""
    folder = tmp_path_factory.mktemp("home")
    start(folder, "finished")
    (folder / "precious.txt").write_bytes(PRECIOUS)
    return folder


def start(home: Path, name: str, *overrides: str) -> dict[str, Any]:
    """One run in this process into `home / name`; may start git only, and write below `home`."""
    given = [f"data_root={home}/data", f"output_dir={home}/{name}", *overrides]
    if overrides:
        validate([*SMOKE, *given])
    cfg = composed("comatch/smoke", *SMOKE[1:], *given)
    with watched(home, seconds=60) as watch:
        results = entry.run(cfg)
    assert [p for p in watch.processes if "'git'" not in p] == []
    assert watch.outside == []
    return results


def again(home: Path, tmp_path: Path, finished: bool = True) -> str:
    """A name for a copy of the finished run, whose config is the copy's own."""
    name = f"again-{tmp_path.name}"
    shutil.copytree(home / "finished", home / name)
    config = home / name / "config.yaml"
    config.write_text(config.read_text().replace(f"{home}/finished", f"{home}/{name}"))
    if not finished:
        (home / name / "results.json").unlink()
    return name


@pytest.mark.parametrize("damage", MOSTLY)
@pytest.mark.parametrize("file", ["config.yaml", "metrics.csv", "results.json"])
def test_damaged_files_of_a_run(home, tmp_path, file, damage):
    name = again(home, tmp_path, finished=file == "results.json")
    DAMAGES[damage](home / name / file)
    try:
        results = start(home, name)
    except entry.REFUSALS as error:
        said = entry.explain(error)
        assert "\n" not in said
        assert (file in said and ("move it away" in said or "is a link" in said)) or (
            "of another config" in said
        )
    else:
        assert results["metrics"] == start(home, "finished")["metrics"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_agreement_names_no_precision(tmp_path, damage):
    folder = RunFolder(tmp_path)
    folder.agree_on_precision("32-true", "job 5")
    DAMAGES[damage](folder.agreement)
    with pytest.raises(RunError, match=r"precision\.json: process 0 has measured nothing"):
        folder.agreed_precision("job 5", patience=0.1)


def test_a_run_killed_behind_its_last_checkpoint_has_the_rows_of_an_undisturbed_one(home, tmp_path):
    name = again(home, tmp_path, finished=False)
    metrics = home / name / "metrics.csv"
    kept = [line for line in metrics.read_text().splitlines(True) if ",test/" not in line]
    metrics.write_text("".join(kept))
    start(home, name)
    assert rows(home / name / "metrics.csv") == rows(home / "finished" / "metrics.csv")


def test_a_config_that_unfolds(home, tmp_path):
    name = again(home, tmp_path, finished=False)
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    (home / name / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(RunError, match="refers to parts of itself"):
        start(home, name)


@pytest.mark.parametrize(
    "damage", every(2, ["half of it", "empty", "a pipe", "noise", "a folder", "zeros"])
)
def test_damaged_checkpoint_of_a_run(home, tmp_path, damage):
    name = again(home, tmp_path, finished=False)
    DAMAGES[damage](home / name / "checkpoints" / "last.ckpt")
    with pytest.raises(entry.REFUSALS, match=r"last\.ckpt"):
        start(home, name)


LINKS = {
    # what earlier versions wrote beside, and what a run only replaces: the run itself goes on
    "beside": (
        *("results.tmp", ".metrics.csv.tmp", "error.txt"),
        *("checkpoints/.last.ckpt.tmp", "checkpoints/.last.ckpt.0a1b2c3d.tmp"),
    ),
    "results": ("results.json",),
    "config": ("config.yaml",),
    "metrics": ("metrics.csv",),
    "the lock": (".lock",),
    "the checkpoint": ("checkpoints/last.ckpt",),
    "the folder of checkpoints": ("checkpoints",),
    "the folder": ("",),
}


@pytest.mark.parametrize("place", LINKS)
def test_nothing_is_written_through_a_link(home, tmp_path, place):
    name = f"linked-{tmp_path.name}"
    target = home / "elsewhere" if "folder" in place else home / "precious.txt"
    if target.name == "elsewhere":
        target.mkdir(exist_ok=True)
    for file in LINKS[place]:
        link = home / name / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    with suppress(*entry.REFUSALS):
        start(home, name)
    assert (home / "precious.txt").read_bytes() == PRECIOUS
    assert not (home / "elsewhere").exists() or list((home / "elsewhere").iterdir()) == []


def test_a_failed_start_leaves_its_traceback_not_through_a_link(home, monkeypatch):
    folder = home / "failing"
    folder.mkdir()
    (folder / "error.txt").symlink_to(home / "precious.txt")
    monkeypatch.setattr(entry, "versions", lambda: {}["no such key"])
    with pytest.raises(KeyError) as caught:
        start(home, "failing")
    assert "error.txt" in entry.explain(caught.value)
    assert entry.explain(caught.value).startswith("KeyError: ")
    assert "no such key" in (folder / "error.txt").read_text()
    assert (home / "precious.txt").read_bytes() == PRECIOUS
    monkeypatch.undo()
    assert start(home, "failing")["status"] == "finished"
    assert not (folder / "error.txt").exists()


def test_a_start_that_was_refused_does_not_claim_the_folder(home):
    with pytest.raises(entry.REFUSALS, match="/nowhere"):
        start(home, "mistyped", "official_checkpoint=/nowhere")
    assert not (home / "mistyped" / "config.yaml").exists()
    assert start(home, "mistyped")["status"] == "finished"


def test_a_rank_without_a_run_of_several_is_refused(home, monkeypatch):
    monkeypatch.setattr(entry.rank_zero_only, "rank", 3)
    with pytest.raises(RunError, match="process 3 of several"):
        start(home, "stray")
    assert not (home / "stray" / "results.json").exists()


HOSTILE = {
    "data.batch_size": ("0", "-3", "999999999999"),
    "data.eval_batch_size": ("0",),
    "data.num_workers": ("-1", "99999"),
    "data.num_labels": ("0", "-5", "100000"),
    "data.mu": ("0",),
    "data.split_seed": ("-1",),
    "data.subset": ("-1", "99999999"),
    "seed": ("-1", "99999999999999999999"),
    "threads": ("-1", "100000"),
    "checkpoint_every": ("0",),
    "trainer.max_steps": ("-7",),
    "trainer.max_epochs": ("-5",),
    "trainer.devices": ("0",),
    "trainer.accelerator": ("gpu", "quantum"),
    "trainer.strategy": ("nonsense",),
    "trainer.num_nodes": ("-1",),
    "trainer.gradient_clip_val": ("nan",),
    "trainer.accumulate_grad_batches": ("0",),
    "trainer.limit_train_batches": ("-1",),
    "trainer.check_val_every_n_epoch": ("0",),
    "+trainer.foo": ("1",),
    "trainer._target_": ("os.system",),
    "precision": ("64-true",),
    "method.lr": ("nan", "-1", "1e40"),
    "method.num_classes": ("0", "-4"),
    "method.ema_decay": ("2",),
    "method.momentum": ("-1",),
    "method.weight_decay": ("-1",),
    "method.temperature": ("0",),
    "method.backbone.channels": ("[]",),
    "method.backbone._target_": ("os.system", "shared.nn.nothing.X"),
    "+method.foo": ("1",),
    "+data.foo": ("1",),
    "method._target_": ("os.system",),
    "data._target_": ("os.system",),
    "data.dataset._target_": ("os.system", "shared.data.fetching.os.system"),
    "data.augmentation._target_": ("os.system", "shared.data.image_module.ImageDataModule"),
    "source._target_": ("os.system",),
    "logger.csv._target_": ("os.system",),
    "source": ("{_target_:torch.utils.collect_env.run,command:id}",),
    "data.dataset.root": ("/nowhere", "/dev/null"),
    "data_root": ("/dev/null",),
    "output_dir": ("/dev/null", "/proc/1/x", "/dev/full/x"),
    "warm_start": ("{path:/nowhere,kind:pcl}", "{path:/dev/zero,kind:pcl}", "{path:1,kind:2}"),
    "official_checkpoint": ("/nowhere", "/dev/zero", "/dev"),
    "experiment": ("../../../etc/passwd", "comatch/nothing"),
    "objective": ("x",),
}
OVERRIDES = [f"{key}={value}" for key, values in HOSTILE.items() for value in values]


@pytest.mark.parametrize("override", every(11, OVERRIDES))
def test_hostile_overrides_are_refused_in_one_line(home, tmp_path, override):
    with pytest.raises((OverrideError, *entry.REFUSALS)) as caught:
        start(home, f"refused-{tmp_path.name}", override)
    said = entry.explain(caught.value)
    assert 10 < len(said) < 2000
    assert "\n" not in said
    assert not (home / f"refused-{tmp_path.name}" / "config.yaml").exists()


# --- whole commands ---


def command(home: Path, name: str, *overrides: str) -> list[str]:
    given = [f"data_root={home}/data", f"output_dir={home}/{name}", *overrides]
    return [sys.executable, "-m", "shared.run", *SMOKE, *given]


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_stopped_run_says_so_and_another_one_is_told_who_runs(home, number, status):
    name = f"stopped{status}"
    endless = ["trainer.max_steps=1000000"]
    with started(command(home, name, *endless)) as process:
        end = time.monotonic() + 300
        while not (home / name / "metrics.csv").exists() and process.poll() is None:
            assert time.monotonic() < end, "no step was logged within 300 s"
            time.sleep(0.05)
        with pytest.raises(RunBusyError, match=f"in use by process {process.pid} on "):
            start(home, name, *endless)
        process.send_signal(number)
        done = ended(process, 120)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert not (home / name / "results.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0.0, 1.0, 4.0, 5.0, 6.0, 7.0])
def test_two_equal_commands(home, tmp_path, gap):
    name = f"twice-{tmp_path.name}"
    with started(command(home, name)) as first:
        time.sleep(gap)
        with started(command(home, name)) as second:
            done = [ended(process, 300) for process in (first, second)]
    statuses = sorted(one.returncode for one in done)
    said = [one.stderr for one in done]
    assert statuses in ([0, os.EX_TEMPFAIL], [0, 0]), said  # the second may find a finished run
    if statuses[1]:
        assert any("is in use by process" in text and "Traceback" not in text for text in said)
    assert rows(home / name / "metrics.csv") == rows(home / "finished" / "metrics.csv")
    assert first_difference(weights(home / name), weights(home / "finished"), "weights") is None


def weights(folder: Path) -> Any:
    return load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]


def rows(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if ",perf/" not in line]


@pytest.mark.slow
def test_a_failing_command_prints_one_line(home):
    (home / "one-line").mkdir()
    (home / "one-line" / "run.log").symlink_to(home / "precious.txt")
    done = run(command(home, "one-line"))
    assert done.returncode == entry.REFUSED
    (line,) = done.stderr.splitlines()
    assert re.match("tenfold: .*is a link.*run.log", line)
    assert (home / "precious.txt").read_bytes() == PRECIOUS
