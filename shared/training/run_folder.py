"""The folder of one run: who may write to it, what it holds, whether it belongs to this config.

config.yaml         the resolved config, written before the first step
metrics.csv         see `shared.training.loggers`
checkpoints/        last.ckpt
results.json        of a finished run, or of one that was cut short, which can go on
error.txt           the traceback of a start that failed unexpectedly; error.rank1.txt of process 1
precision.json      what the first of several processes has measured, for the others
.lock               held by the process that writes
"""

import hashlib
import json
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from shared import files
from shared.experiments import decisive
from shared.training.loggers import read_metrics
from shared.training.precision import CANDIDATES

DEEPEST = 50  # levels of a config
ELSEWHERE = "choose another output_dir or move it away"
PLACES = {"data_root": "<data>/", "output_dir": "<output>/"}


class RunError(RuntimeError):
    """A run that cannot start; the message says what to do."""


class RunBusyError(RunError):
    """Another process writes to the run's folder; the message says which."""


class RunFolder:
    def __init__(self, path: str | Path, rank: int = 0) -> None:
        self.path = Path(path)
        self.config, self.metrics = self.path / "config.yaml", self.path / "metrics.csv"
        self.last = self.path / "checkpoints" / "last.ckpt"
        self.agreement = self.path / "precision.json"
        self.error = self.path / (f"error.rank{rank}.txt" if rank else "error.txt")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let nobody else write to the folder until the block ends; RunError if it is a link."""
        try:
            files.own_folder(self.path)
            if self.last.parent.is_symlink():
                files.own_folder(self.last.parent)
            with files.locked(self.path / ".lock"):
                files.remove_unfinished(self.path)
                files.remove_unfinished(self.last.parent)
                yield
        except files.LockedError as holder:
            said = f"{self.path} is in use by {holder}: wait for it, or choose another output_dir"
            raise RunBusyError(said) from None
        except files.UnsafeFileError as error:
            raise RunError(str(error)) from error

    def record(self, error: Exception) -> None:
        """Leave the traceback of an error in error.txt."""
        with suppress(OSError), files.replacing(self.error) as file:
            file.write("".join(traceback.format_exception(error)).encode(errors="replace"))

    def results(self, config_hash: str) -> dict[str, Any] | None:
        """results.json of this config's finished run, or None; RunError if damaged or another's."""
        path = self.path / "results.json"
        try:
            results = files.read_json(path)
            if not (isinstance(results, dict) and _is_numbers(results.get("metrics"))):
                raise ValueError("it is no result of a run")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        if results.get("config_hash") != config_hash:
            raise RunError(f"{path} belongs to another config: {ELSEWHERE}")
        return results if results.get("status") == "finished" else None

    def check(self, resolved: Mapping[str, Any]) -> None:
        """RunError of another config's unfinished run, of one by another number of processes, or of
        metrics that cannot be continued."""
        if requeued := sorted(self.path.glob("hpc_ckpt_*.ckpt")):
            said = "is of Lightning's own requeueing, which tests a half-trained model"
            raise RunError(f"{requeued[0]} {said}: delete it; last.ckpt is continued")
        earlier = read_config(self.config) or resolved
        if hash_config(earlier) != hash_config(resolved):
            differing = ", ".join(sorted(k for k, v in resolved.items() if v != earlier.get(k)))
            said = f"{self.path} holds an unfinished run of another config (differs in {differing})"
            raise RunError(f"{said}: {ELSEWHERE}")
        before, now = _processes(earlier), _processes(resolved)
        if before not in (None, now):
            said = f"{self.path} was begun by {before} processes, not {now}: start {before}"
            raise RunError(f"{said} (trainer.devices, trainer.num_nodes), or {ELSEWHERE}")
        try:
            read_metrics(self.metrics)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            raise _damaged(self.metrics, error) from error

    def agree_on_precision(self, precision: str, start: str) -> None:
        """Tell the other processes of this start what the first one has measured."""
        files.own_folder(self.path)
        files.write_json(self.agreement, {"start": start, "precision": precision})

    def agreed_precision(self, start: str, patience: float = 600.0) -> str:
        """What the first process of this start has measured, as soon as it says so; RunError if
        that takes more than `patience` seconds."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            with suppress(OSError, ValueError, TypeError, KeyError):
                said = files.read_json(self.agreement)
                if said["start"] == start and said["precision"] in CANDIDATES:
                    return said["precision"]
            time.sleep(0.2)
        raise RunError(f"{self.agreement}: process 0 has measured nothing; name one: precision=...")

    @rank_zero_only
    def claim(self, resolved: Mapping[str, Any]) -> None:
        """Write the resolved config: from now on the folder is this run's."""
        if not self.config.exists():
            with files.replacing(self.config) as file:
                file.write(OmegaConf.to_yaml(OmegaConf.create(dict(resolved))).encode())

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write results.json, and remove the error of an earlier start."""
        files.write_json(self.path / "results.json", results)
        for error in self.path.glob("error*.txt"):
            error.unlink()


def read_config(path: Path) -> dict[str, Any] | None:
    """The resolved config in a run's config.yaml; None if there is none, RunError if damaged."""
    try:
        with files.open_regular(path) as file:
            return parse_config(file.read().decode())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def parse_config(text: str) -> dict[str, Any]:
    """The resolved config in a yaml text; ValueError if none, with aliases or nested too deep."""
    try:
        levels = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            levels += isinstance(event, yaml.CollectionStartEvent)
            levels -= isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or "${" in getattr(event, "value", ""):
                raise ValueError("it refers to parts of itself")
            if levels > DEEPEST:
                raise ValueError("it is nested too deep")
        content: Any = OmegaConf.to_container(OmegaConf.create(text))
    # Odd nodes end in whatever PyYAML and OmegaConf make of them, assertions among it.
    except Exception as error:
        raise ValueError(" ".join(str(error).split()) or "it is no yaml") from error
    if not (isinstance(content, dict) and {*PLACES, "precision", "seed"} <= set(content)):
        raise ValueError("it is no config of a run")
    return content


def hash_config(resolved: Mapping[str, Any]) -> str:
    """SHA-256 digest, in hex, of what decides the outcome of a run; where things lie, also inside
    `source`, `data` and `warm_start`, does not count."""
    text = json.dumps(decisive(resolved), sort_keys=True)
    for key, name in PLACES.items():
        text = text.replace(json.dumps(str(resolved[key]))[1:-1] + "/", name)
    return hashlib.sha256(text.encode()).hexdigest()


def _processes(resolved: Mapping[str, Any]) -> Any:
    start = resolved.get("start")
    return start.get("world_size") if isinstance(start, dict) else None


def _is_numbers(metrics: Any) -> bool:
    return isinstance(metrics, dict) and all(isinstance(v, int | float) for v in metrics.values())


def _damaged(path: Path, reason: Exception) -> RunError:
    said = " ".join(str(getattr(reason, "strerror", None) or reason).split())[:300]
    return RunError(f"{path} is damaged ({said}): move it away, then run the same command again")
