"""metrics.csv is whole after every accident; W&B is never in the way."""

import sys
import textwrap
import types

import pytest

from shared.training.loggers import CsvLogger, WandbLogger, read_metrics
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


class FakeRun:
    def __init__(self, fail_at=None):
        self.rows, self.fail_at, self.finished = [], fail_at, False

    def define_metric(self, *_, **__):
        pass

    def log(self, metrics):
        if self.fail_at is not None and len(self.rows) >= self.fail_at:
            raise ConnectionError("the network is gone")
        self.rows.append(metrics)

    def finish(self, exit_code=None):
        self.finished = True


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

    module.Settings, module.init = Settings, init
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
    logger.log_hyperparams({"lr": 0.1})
    log_some(logger)
    logger.close()
    (call,) = fake.calls
    expected = {
        "mode": "offline", "project": "tenfold", "group": "comatch/mini", "job_type": "fixmatch",
        "tags": ["comatch", "comatch/mini", "fixmatch", "seed3"], "config": {"lr": 0.1},
        "id": logger_in(tmp_path).version,
    }  # fmt: skip
    assert {key: call[key] for key in expected} == expected
    assert call["settings"].values == {"init_timeout": 4.0, "finish_timeout": 8.0}  # bounded
    assert fake.run.finished
    assert fake.run.rows[2] == {"train/loss": 2.0, "epoch": 0.0, "step": 2}
    assert (logger.name, logger.version) == ("wandb", call["id"])
    assert logger.version != logger_in(tmp_path / "other").version


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
    assert [call["mode"] for call in fake.calls] == ["online", "offline"]
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


@pytest.mark.slow
def test_real_offline_run_is_written_and_continued_without_hanging(tmp_path):
    """The package itself, twice in one folder, in a process that must end by itself."""
    pytest.importorskip("wandb")
    script = f"""
        from shared.training.loggers import WandbLogger
        for _ in range(2):
            logger = WandbLogger(r"{tmp_path}", "comatch/mini", "comatch", 1, mode="offline")
            for step in range(3):
                logger.log_metrics({{"train/loss": 1.0, "epoch": 0}}, step)
            logger.close()
            print("broken" if logger._off else "fine", logger.version)
    """
    done = run([sys.executable, "-W", "error", "-c", textwrap.dedent(script)], 300)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == second
    assert first.startswith("fine")
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    assert {folder.name.rpartition("-")[2] for folder in runs} == {first.split()[1]}
