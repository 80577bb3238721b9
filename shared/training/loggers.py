"""metrics.csv, always whole; Weights & Biases, never in the way."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from shared.files import open_own, open_regular, replacing

HEADER = ("step", "epoch", "metric", "value")


class CsvLogger(Logger):
    """Appends ``step,epoch,metric,value`` rows to one file, which survives kills and resumes.

    Lightning's ``CSVLogger`` deletes an existing file and rewrites the whole of it with every
    flush, so a killed run loses its history and a long run slows down.

    ``step`` counts finished optimiser steps from 0. A metric is written once per step: a resumed
    run that repeats an evaluation adds no second row. Values are written so that reading them
    back gives the same float64.

    Args:
        path: the file; its folder is made.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._file: io.TextIOWrapper | None = None
        self._last_step = -1
        self._written: set[str] = set()  # the metrics that the last step already has

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

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
        epoch = metrics.get("epoch", "")
        epoch = int(epoch) if epoch != "" else ""
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
        """Drop what was written after the checkpoint from which the run goes on.

        Args:
            global_step: optimiser steps done in that checkpoint; rows of step >= this go.
        """
        self.close()
        if self.path.exists():
            earlier = [row for row in read_metrics(self.path) if int(row["step"]) < global_step]
            with replacing(self.path) as file:
                text = io.TextIOWrapper(file, newline="", write_through=True)
                rows = csv.DictWriter(text, HEADER, lineterminator="\n")
                rows.writeheader()
                rows.writerows(earlier)
                text.detach()
        self._file = self._open()

    def finalize(self, status: str) -> None:
        """Close the file between stages; the next metric opens it again."""
        self.close()

    def close(self) -> None:
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

    Raises:
        OSError: no such file, or no file.
        ValueError: the file has other columns, or a row that is none.
    """
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

    W&B writes and uploads in a process of its own, so a slow network delays no step. A missing
    package gives one notice, any exception one warning. The run is online where an API key is
    set and offline otherwise (``wandb sync`` uploads later). A run that is started again
    continues the same W&B run.

    Args:
        output_dir: the run's folder; W&B's files go to its ``wandb`` folder, and the run's
            identity derives from its absolute path.
        project, method, experiment, arm, seed: how runs are grouped (method/experiment), typed
            (arm), named and tagged.
        mode: "auto", or one of W&B's "online", "offline", "disabled".
        patience: seconds to wait for W&B at the start and at the end of the run.

    Raises:
        ValueError: another mode.
    """

    def __init__(
        self,
        output_dir: str | Path,
        experiment: str,
        arm: str,
        seed: int,
        project: str = "tenfold",
        method: str | None = None,
        mode: str = "auto",
        patience: float = 30.0,
    ) -> None:
        super().__init__()
        if mode not in ("auto", "online", "offline", "disabled"):
            raise ValueError(f"logger.wandb.mode must be auto, online, offline or disabled: {mode}")
        method = method or experiment.split("/")[0]
        self._folder = Path(output_dir).resolve()
        self.run_id = hashlib.sha256(str(self._folder).encode()).hexdigest()[:16]
        self.mode = _automatic_mode() if mode == "auto" else mode
        self.patience = patience
        self._identity = {
            "project": project,
            "group": f"{method}/{experiment.removeprefix(f'{method}/')}",
            "job_type": arm,
            "name": f"{experiment} {arm} seed {seed}",
            "tags": [method, experiment, arm, f"seed{seed}"],
            "id": self.run_id,
            "dir": str(self._folder),
        }
        self._hyperparameters: dict[str, Any] = {}
        self._run: Any = None
        self._off = self.mode == "disabled"

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return self.run_id

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Remember the values for the start of the W&B run."""
        self._hyperparameters.update(params if isinstance(params, dict) else vars(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Hand the finite values to W&B; what JSON cannot hold is left to the CSV."""
        with self._guard():
            if self._off:
                return
            if self._run is None:
                self._run = self._start()
            finite = {k: float(v) for k, v in metrics.items() if math.isfinite(float(v))}
            self._run.log(finite if step is None else {**finite, "step": step})

    def close(self) -> None:
        """Finish the W&B run; waits ``patience`` seconds at most. Call it once the run is over."""
        run, self._run = self._run, None
        with self._guard():
            if run is not None and not self._off:
                run.finish(exit_code=0)

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
        arguments: dict[str, Any] = {
            **self._identity,
            "config": self._hyperparameters,
            "settings": settings,
        }
        # Offline, the same id alone continues a run.
        as_configured: dict[str, Any] = {
            "mode": self.mode,
            "resume": "allow" if self.mode == "online" else None,
        }
        try:
            run = wandb.init(**arguments, **as_configured)
        except Exception as error:
            if self.mode == "offline":
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            rank_zero_warn(f"W&B cannot be reached ({reason}): logging offline.")
            run = wandb.init(**arguments, mode="offline")
        run.define_metric("*", step_metric="step")
        return run


def _automatic_mode() -> str:
    if mode := os.environ.get("WANDB_MODE"):
        return mode if mode in ("online", "offline", "disabled") else "offline"
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"
