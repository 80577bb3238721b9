"""metrics.csv is whole after every accident; W&B is never in the way."""

import os
import re
import sys
import textwrap
import types
from contextlib import suppress
from pathlib import Path

import pytest

from shared.training import wandb_sync
from shared.training.loggers import CsvLogger, WandbLogger, closing, read_metrics
from tests.processes import run

HEADER = "step,epoch,metric,value\n"


def test_rows_are_tidy_exact_and_there_at_once(tmp_path):
    path = tmp_path / "run" / "metrics.csv"
    logger = CsvLogger(path)
    logger.log_metrics({"train/loss": 0.1 + 0.2, "epoch": 3.0}, 7)
    expected = HEADER + "7,3,train/loss,0.30000000000000004\n"
    assert path.read_text() == expected  # without closing
    logger.log_metrics({"val/top1": float("nan")}, 8)
    logger.finalize("success")
    logger.log_metrics({"test/top1": 50}, 8)
    logger.close()
    assert path.read_text() == expected + "8,,val/top1,nan\n8,,test/top1,50.0\n"
    assert logger.name == "csv"
    logger.log_hyperparams({"a": 1})


def test_a_metric_is_written_once_per_step_also_after_a_restart(tmp_path):
    path = tmp_path / "metrics.csv"
    first = CsvLogger(path)
    first.log_metrics({"a": 1.0, "b": 2.0}, 0)
    first.log_metrics({"a": 9.0, "c": 3.0}, 0)
    first.close()
    second = CsvLogger(path)
    second.log_metrics({"a": 9.0, "d": 4.0}, 0)
    second.log_metrics({"a": 5.0}, 1)
    written = [f"{r['step']} {r['metric']} {r['value']}" for r in read_metrics(path)]
    assert written == ["0 a 1.0", "0 b 2.0", "0 c 3.0", "0 d 4.0", "1 a 5.0"]


TWO_ROWS = HEADER + "0,0,a,1.0\n1,0,a,2.0\n"


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        *((TWO_ROWS + rest, TWO_ROWS) for rest in ("2,0,tra", "2", "2,0,a,1.", '"')),
        ("", HEADER),
        ("step,ep", HEADER),  # killed within its header
    ],
)
def test_half_written_line_is_tolerated(tmp_path, content, kept):
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    assert len(read_metrics(path)) == kept.count("\n") - 1
    CsvLogger(path).log_metrics({"a": 3.0, "epoch": 0}, 2)
    assert path.read_text() == kept + "2,0,a,3.0\n"


def test_continuing_drops_later_rows_atomically(tmp_path, monkeypatch):
    path = tmp_path / "metrics.csv"
    path.write_text(HEADER + "".join(f"{i},0,a,{i}.0\n" for i in range(10)) + "10,0")
    whole = path.read_text()
    monkeypatch.setattr("shared.training.loggers.os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        CsvLogger(path).continue_from(4)
    assert path.read_text() == whole
    monkeypatch.undo()
    logger = CsvLogger(path)
    logger.continue_from(4)
    assert [int(r["step"]) for r in read_metrics(path)] == [0, 1, 2, 3]
    logger.log_metrics({"b": 2.0, "a": 1.5}, 3)  # an evaluation of step 3 that comes again
    logger.log_metrics({"a": 4.0}, 4)
    assert path.read_text().endswith("3,0,a,3.0\n3,,b,2.0\n4,,a,4.0\n")
    path.write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match="not a metrics file"):
        read_metrics(path)


class FakeArtifact(dict):
    def __init__(self, name, type):
        self.about = (name, type)

    def add_file(self, path, name):
        self[name] = Path(path).read_bytes()


class FakeRun:
    def __init__(self, fail_at=None):
        self.rows, self.fail_at, self.status, self.artifacts = [], fail_at, None, []
        self.id = "abc"

    def log_artifact(self, artifact):
        self.artifacts.append(artifact)

    def define_metric(self, *_, **__):
        pass

    def log(self, metrics):
        if self.fail_at is not None and len(self.rows) >= self.fail_at:
            raise ConnectionError("the network is gone")
        self.rows.append(metrics)

    def finish(self, exit_code=None):
        self.status = exit_code


@pytest.fixture
def fake(monkeypatch):
    """A stand-in for the package, so that its failures can be chosen."""
    module = types.ModuleType("wandb")
    module.calls, module.run, module.errors = [], FakeRun(), {}

    class Settings:
        model_fields = {"init_timeout": None, "finish_timeout": None}  # noqa: RUF012

        def __init__(self, **values):
            self.values = values

    def init(**arguments):
        module.calls.append(arguments)
        if error := module.errors.get(arguments["mode"]):
            raise error
        return module.run

    module.Settings, module.init, module.Artifact = Settings, init, FakeArtifact
    module.teardown = lambda: module.calls.append({"mode": "teardown"})
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    return module


def logger_in(folder, **arguments):
    arguments = {"experiment": "comatch/mini", "arm": "fixmatch", "seed": 3, **arguments}
    return WandbLogger(folder, **arguments)


def log_some(*loggers):
    for step in range(20):
        for one in loggers:
            one.log_metrics({"train/loss": float(step), "epoch": 0}, step)
    loggers[0].close()


def test_runs_are_grouped_by_method_experiment_arm_and_seed(tmp_path, fake):
    logger = logger_in(tmp_path, patience=8.0)
    logger.begin({"claim": {"hash": "1f"}, "start": {"world_size": 2}})
    assert len(fake.calls) == 1  # before anything is logged
    log_some(logger)
    logger.close()
    (call,) = fake.calls
    expected = {
        "mode": "offline", "project": "tenfold", "group": "comatch/mini", "job_type": "fixmatch",
        "tags": ["comatch", "comatch/mini", "fixmatch", "seed3"],
        "id": (tmp_path / "wandb-id").read_text(),
        "config": {"claim": {"hash": "1f"}, "start": {"world_size": 2}},
    }  # fmt: skip
    assert {key: call[key] for key in expected} == expected
    assert call["settings"].values == {"init_timeout": 4.0, "finish_timeout": 8.0}  # bounded
    assert fake.run.status == 0
    assert fake.run.rows[2] == {"train/loss": 2.0, "epoch": 0.0, "step": 2}
    assert (logger.name, logger.version) == ("wandb", call["id"])


def test_the_id_is_drawn_once_for_a_folder_and_nothing_else_in_its_file_counts(tmp_path, fake):
    for _ in range(2):
        log_some(logger_in(tmp_path / "one"))
    log_some(logger_in(tmp_path / "two"))
    first, again, other = (call["id"] for call in fake.calls)
    assert first == again != other
    for text in (b"../../elsewhere", b"0" * 4000, b"\xff" * 16, b""):
        (tmp_path / "one/wandb-id").write_bytes(text)
        log_some(logger_in(tmp_path / "one"))
        assert re.fullmatch("[0-9a-f]{16}", fake.calls[-1]["id"])
        assert fake.calls[-1]["id"] not in (first, "0" * 16)


def test_a_run_ends_in_wandb_as_it_ends(tmp_path, fake):
    for end, status in ((None, 0), (ValueError(), 1), (SystemExit(143), 143), (SystemExit("x"), 1)):
        logger = logger_in(tmp_path)
        logger.begin({})
        with suppress(ValueError, SystemExit), closing([logger]):
            if end:
                raise end
        assert fake.run.status == status


@pytest.mark.parametrize("checkpoint", [False, True])
def test_what_a_run_leaves_is_an_artifact(tmp_path, fake, checkpoint):
    for name in ("config.yaml", "results.json", "a.png", "checkpoints/last.ckpt", "private.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "b.png").symlink_to(tmp_path / "private.txt")
    logger = logger_in(tmp_path, checkpoint=checkpoint)
    logger.keep_files()
    assert not fake.run.artifacts  # nothing has begun
    logger.begin({})
    logger.keep_files()
    (artifact,) = fake.run.artifacts
    assert artifact.about == ("run-abc", "run")
    wanted = {"config.yaml", "results.json", "a.png"}
    assert set(artifact) == wanted | ({"checkpoints/last.ckpt"} if checkpoint else set())
    assert all(content == name.encode() for name, content in artifact.items())


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
    ],
)
def test_mode_follows_the_environment(tmp_path, fake, monkeypatch, environment, mode):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    logger = logger_in(tmp_path)
    assert logger.mode == mode
    log_some(logger)
    assert len(fake.calls) == (mode != "disabled")
    with pytest.raises(ValueError, match=r"logger\.wandb\.mode"):
        logger_in(tmp_path, mode="onlin")


def test_absent_package_is_one_notice(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    csv = CsvLogger(tmp_path / "metrics.csv")
    with caplog.at_level("INFO"):
        log_some(logger_in(tmp_path), csv)
    assert caplog.text.count("wandb is not installed") == 1
    assert len(read_metrics(tmp_path / "metrics.csv")) == 20


@pytest.mark.filterwarnings("default")
def test_failing_in_the_middle_is_one_warning_and_the_csv_is_whole(tmp_path, fake):
    fake.run.fail_at = 5
    csv, logger = CsvLogger(tmp_path / "metrics.csv"), logger_in(tmp_path)
    with pytest.warns(UserWarning, match="the network is gone") as caught:
        log_some(logger, csv)
    assert len(caught) == 1
    assert len(fake.run.rows) == 5
    assert len(read_metrics(tmp_path / "metrics.csv")) == 20
    logger.log_metrics({"a": 1.0}, 21)  # switched off, silently
    assert len(fake.run.rows) == 5


def test_unreachable_server_falls_back_to_offline_whose_failure_is_one_warning(tmp_path, fake):
    fake.errors["online"] = TimeoutError("no route")
    with pytest.warns(UserWarning, match=r"no route.*offline"):
        log_some(logger_in(tmp_path, mode="online"))
    assert [call["mode"] for call in fake.calls] == ["online", "teardown", "offline"]
    assert fake.calls[0]["resume"] == "allow"
    assert len(fake.run.rows) == 20
    fake.errors["offline"] = PermissionError("read-only")
    with pytest.warns(UserWarning, match="read-only"):
        log_some(logger_in(tmp_path))


def test_values_that_json_cannot_hold_are_left_out(tmp_path, fake):
    logger = logger_in(tmp_path)
    logger.log_metrics({"a": float("nan"), "b": 1}, None)
    logger.close()
    assert fake.run.rows == [{"b": 1.0}]


def run_of_the_package(folder, environment, mode):
    """Two runs in one folder by the package itself, in a process that must end by itself."""
    pytest.importorskip("wandb")
    script = f"""
        import pathlib
        from shared.training.loggers import WandbLogger
        folder = pathlib.Path(r"{folder}")
        (folder / "config.yaml").write_text("seed: 1")
        for _ in range(2):
            logger = WandbLogger(folder, "comatch/mini", "comatch", 1, mode="{mode}", patience=60)
            logger.begin({{"seed": 1, "claim": {{"hash": "1f"}}}})
            for step in range(3):
                logger.log_metrics({{"train/loss": 0.625, "epoch": 0}}, step)
            logger.keep_files()
            logger.close(3)
            print("broken" if logger._off else "fine", logger.version)
    """
    given = {**os.environ, "WANDB_DATA_DIR": str(folder / "data"), **environment}
    given |= {"WANDB_CACHE_DIR": str(folder / "cache"), "WANDB_CONFIG_DIR": str(folder / "config")}
    done = run([sys.executable, "-c", textwrap.dedent(script)], 300, env=given)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == second
    assert first.startswith("fine")
    runs = list((folder / "wandb").glob("offline-run-*"))
    assert {path.name.rpartition("-")[2] for path in runs} == {first.split()[1]}
    return b"".join(path.read_bytes() for path in (folder / "wandb").rglob("offline-run-*/*.wandb"))


@pytest.mark.slow
def test_a_real_offline_run_is_written_and_continued_without_hanging(tmp_path):
    written = run_of_the_package(tmp_path, {}, "offline")
    assert all(text in written for text in (b"train/loss", b"0.625", b"claim", b"config.yaml"))


@pytest.mark.slow
def test_a_key_without_a_network_keeps_the_history(tmp_path):
    nowhere = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    written = run_of_the_package(tmp_path, nowhere, "auto")
    assert all(text in written for text in (b"train/loss", b"0.625", b"claim", b"config.yaml"))


def test_what_is_not_uploaded_is_handed_to_wandb(tmp_path, monkeypatch, capsys):
    calls = []

    def called(command, check):
        calls.append(command)
        return types.SimpleNamespace(returncode=3)

    monkeypatch.setattr(wandb_sync.subprocess, "run", called)
    monkeypatch.setattr(wandb_sync, "find_spec", lambda _: True)
    for name in ("a/seed1", "a/seed2"):
        (tmp_path / name / "wandb/offline-run-1-x").mkdir(parents=True)
    (tmp_path / "a/seed1/wandb/offline-run-1-x/run-x.wandb.synced").touch()
    assert wandb_sync.main([str(tmp_path)]) == 3
    assert calls[0][1:] == ["-m", "wandb", "sync", str(tmp_path / "a/seed2/wandb/offline-run-1-x")]
    (tmp_path / "a/seed2/wandb/offline-run-1-x/run-x.wandb.synced").touch()
    assert wandb_sync.main([str(tmp_path)]) == 0
    assert len(calls) == 1
    assert "2 offline runs" in capsys.readouterr().out


def test_no_folder_and_no_package_are_named(tmp_path, monkeypatch, capsys):
    assert wandb_sync.main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no folder; tenfold wandb-sync [FOLDER]" in capsys.readouterr().err
    (tmp_path / "wandb/offline-run-1-x").mkdir(parents=True)
    monkeypatch.setattr(wandb_sync, "find_spec", lambda _: None)
    assert wandb_sync.main([str(tmp_path)]) == 2
    assert "pip install 'tenfold[wandb]'" in capsys.readouterr().err
