"""metrics.csv, always whole; Weights & Biases, never in the way."""

from __future__ import annotations

import csv
import io
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from shared.files import open_own, open_regular, replacing

HEADER = ("step", "epoch", "metric", "value")
FILES = ("config.yaml", "results.json", "metrics.csv", "error.txt", "*.png")  # of a run's folder
MODES = ("online", "offline", "disabled")  # of W&B


class CsvLogger(Logger):
    """Appends ``step,epoch,metric,value`` rows to one file, which survives kills and resumes.

    Lightning's ``CSVLogger`` rewrites the whole file with every flush, and a killed run loses it.
    ``step`` counts finished optimiser steps from 0; a resumed run that repeats an evaluation adds
    no second row. Values read back as the same float64.
    """

    name, version = "csv", ""

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._file: io.TextIOWrapper | None = None
        self._last_step = -1
        self._written: set[str] = set()  # the metrics that the last step already has

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write the metrics of one step at once, and hand them to the operating system."""
        if self._file is None:
            self._file = self._open()
        step = self._last_step if step is None else step
        if step > self._last_step:
            self._last_step, self._written = step, set()
        epoch = int(metrics["epoch"]) if "epoch" in metrics else ""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        # Sorted, because Lightning's order is that of first appearance since the last (re)start.
        for metric, value in sorted(metrics.items()):
            if metric != "epoch" and metric not in self._written:
                self._written.add(metric)
                rows.writerow((step, epoch, metric, repr(float(value))))
        self._file.write(text.getvalue())
        self._file.flush()

    @rank_zero_only
    def continue_from(self, global_step: int) -> None:
        """Drop the rows of step >= `global_step`, that of the checkpoint the run goes on from."""
        self.close()
        if self.path.exists():
            text = io.StringIO()
            rows = csv.DictWriter(text, HEADER, lineterminator="\n")
            rows.writeheader()
            rows.writerows(r for r in read_metrics(self.path) if int(r["step"]) < global_step)
            with replacing(self.path) as file:
                file.write(text.getvalue().encode())
        self._file = self._open()

    def finalize(self, status: str) -> None:
        """Close the file between stages; the next metric opens it again."""
        self.close()

    def close(self, exit_code: int = 0) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> io.TextIOWrapper:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._last_step, self._written = -1, set()
        whole = open_own(self.path)
        content = whole.read()
        whole.truncate(content.rfind(b"\n") + 1)  # a half line, left by a kill
        for row in _rows(content, self.path):
            if int(row["step"]) > self._last_step:
                self._last_step, self._written = int(row["step"]), set()
            self._written.add(row["metric"])
        file = io.TextIOWrapper(io.BufferedWriter(whole), newline="")
        if b"\n" not in content:
            file.write(",".join(HEADER) + "\n")
            file.flush()
        return file


def read_metrics(path: str | Path) -> list[dict[str, str]]:
    """The whole rows of a metrics.csv; a half-written last line, left by a kill, is ignored.
    OSError or ValueError if it is no such file."""
    with open_regular(path) as file:
        return _rows(file.read(), path)


def _rows(content: bytes, path: str | Path) -> list[dict[str, str]]:
    whole = content[: content.rfind(b"\n") + 1].decode()
    if not whole:
        return []
    reader = csv.DictReader(io.StringIO(whole), strict=True)
    if tuple(reader.fieldnames or ()) != HEADER:
        raise ValueError(f"{path} is not a metrics file: its columns are {reader.fieldnames}")
    try:
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    for number, row in enumerate(rows, 2):
        if not (row["step"].isdecimal() and row.get(None) is None and row["value"] is not None):
            raise ValueError(f"{path}, line {number} is no row of {','.join(HEADER)}")
    return rows


class WandbLogger(Logger):
    """Weights & Biases, switched off for the rest of the run by whatever goes wrong in it.

    W&B uploads in a process of its own, so a slow network delays no step. A missing package gives
    one notice, any exception one warning. A run that is started again continues the same W&B run,
    whose id was drawn when it began and stands in the file ``wandb-id`` of its folder.

    Args:
        output_dir: W&B's files go to the folder ``wandb`` in it.
        mode: one of W&B's, or "auto": online where an API key is set, else offline.
        patience: seconds to wait for W&B at the start and at the end of the run.
        checkpoint: whether the last checkpoint is an artifact, too, as are config and results.
    """

    name, version = "wandb", ""

    def __init__(
        self,
        output_dir: str | Path,
        experiment: str,
        arm: str,
        seed: int,
        project: str = "tenfold",
        mode: str = "auto",
        patience: float = 30.0,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if mode not in ("auto", *MODES):
            raise ValueError(f"logger.wandb.mode must be auto or one of {MODES}: {mode}")
        if mode == "auto":
            automatic = "online" if os.environ.get("WANDB_API_KEY") else "offline"
            mode = os.environ.get("WANDB_MODE") or automatic
        self.mode = mode if mode in MODES else "offline"
        self.patience = patience
        self._folder, self._checkpoint = Path(output_dir).resolve(), checkpoint
        self._arguments: dict[str, Any] = {  # of wandb.init
            "project": project,
            "group": experiment,
            "job_type": arm,
            "name": f"{experiment} {arm} seed {seed}",
            "tags": [experiment.split("/")[0], experiment, arm, f"seed{seed}"],
            "dir": str(self._folder),
            "config": {},
        }
        self._run: Any = None
        self._off = self.mode == "disabled"

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `begin` is given the whole config."""

    @rank_zero_only
    def begin(self, config: Mapping[str, Any]) -> None:
        """Start the W&B run, before training, with the resolved config of the run."""
        self._arguments["config"] = dict(config)
        if not self._off:
            with self._guard():
                self._run = self._start()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Hand the finite values to W&B; what JSON cannot hold is left to the CSV."""
        if self._off:
            return
        with self._guard():
            if self._run is None:
                self._run = self._start()
            finite = {k: float(v) for k, v in metrics.items() if math.isfinite(float(v))}
            self._run.log(finite if step is None else {**finite, "step": step})

    @rank_zero_only
    def keep_files(self) -> None:
        """Hand config, results, metrics and pictures of the run's folder to W&B as an artifact."""
        if self._off or self._run is None:
            return
        with self._guard():
            import wandb

            artifact = wandb.Artifact(f"run-{self._run.id}", type="run")
            wanted = [*FILES, *(["checkpoints/last.ckpt"] if self._checkpoint else [])]
            for path in sorted(p for pattern in wanted for p in self._folder.glob(pattern)):
                if path.is_file() and not path.is_symlink():
                    artifact.add_file(str(path), name=path.relative_to(self._folder).as_posix())
            self._run.log_artifact(artifact)

    def close(self, exit_code: int = 0) -> None:
        """Finish the W&B run with the exit status of ours; waits ``patience`` seconds at most."""
        run, self._run = self._run, None
        with self._guard():
            if run is not None and not self._off:
                run.finish(exit_code=exit_code)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Let no error of W&B reach the training."""
        try:
            yield
        except ModuleNotFoundError:
            self._off = True
            rank_zero_info("wandb is not installed (pip install 'tenfold[wandb]'): CSV only.")
        except Exception as error:
            self._off = True
            reason = f"{type(error).__name__}: {error}"
            rank_zero_warn(f"W&B is switched off for the rest of this run: {reason}. CSV goes on.")

    def _start(self) -> Any:
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        wanted: dict[str, Any] = {
            "init_timeout": self.patience / 2,  # so that the offline run has time to begin
            "finish_timeout": self.patience,
            "console": "off",
            "silent": True,
            "x_disable_stats": True,
        }
        known = wandb.Settings.model_fields  # older versions lack some
        settings = wandb.Settings(**{k: v for k, v in wanted.items() if k in known})
        arguments: Any = {**self._arguments, "settings": settings, "mode": self.mode}
        arguments["id"] = self.version = _id_of(self._folder / "wandb-id")
        if self.mode == "online":  # offline, the same id alone continues a run
            arguments["resume"] = "allow"
        try:
            run = wandb.init(**arguments)
        except Exception as error:
            if self.mode == "offline":
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            rank_zero_warn(f"W&B cannot be reached ({reason}): logging offline.")
            wandb.teardown()  # else its service holds the id to be in use
            run = wandb.init(**{**arguments, "mode": "offline", "resume": None})
        run.define_metric("*", step_metric="step")
        return run


def _id_of(path: Path) -> str:
    """The id of the W&B run of a folder: drawn once, so that no two users' runs share one."""
    with suppress(OSError, UnicodeDecodeError), open_regular(path) as file:
        if re.fullmatch("[0-9a-f]{16}", found := file.read(17).decode()):
            return found
    drawn = secrets.token_hex(8)
    with replacing(path) as file:
        file.write(drawn.encode())
    return drawn


@contextmanager
def closing(loggers: Sequence[Logger]) -> Iterator[None]:
    """Close the loggers with the exit status that the block ends with."""
    status = 1
    try:
        yield
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
        raise
    finally:
        for logger in loggers:
            if isinstance(logger, CsvLogger | WandbLogger):
                logger.close(status)
