"""The one entry point: compose a config, fit, evaluate, write results.json.

    tenfold experiment=comatch/mini seed=3
    tenfold -m experiment=comatch/mini,comatch/mini_fixmatch seed=1,2 hydra/launcher=local

Running the same command again continues an interrupted run, and reuses a finished one.
"""

import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from shared.overrides import check_overrides
from shared.training.allocator import keep_freed_memory
from shared.training.callbacks import (
    FiniteGradients,
    ResumeCheckpoint,
    Throughput,
    peak_memory_mb,
    progress_callback,
)
from shared.training.checkpoint_io import AtomicCheckpointIO
from shared.training.precision import choose_precision

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parent.parent
# What may differ between two starts of the same experiment.
NOT_HASHED = ("output_dir", "data_root", "logger", "threads", "claim", "checkpoint_every")


class RunError(RuntimeError):
    """A run that cannot start; the message says what to do."""


def main() -> None:
    """Console script `tenfold`."""
    if sys.argv[1:2] == ["predict"]:
        from shared.predict import main as predict

        return predict(sys.argv[2:])
    check_overrides(sys.argv[1:])
    return _hydra_main()


@hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")
def _hydra_main(cfg: DictConfig) -> float | None:
    return objective(cfg, run(cfg)["metrics"])


def objective(cfg: DictConfig, metrics: dict[str, float]) -> float | None:
    """What a sweeper optimises: the metric that `objective` of conf/sweep names, if any.

    Raises:
        RunError: the run has no such metric.
    """
    name = cfg.get("objective")
    if name is not None and name not in metrics:
        raise RunError(f"objective={name} is no metric of this run: {', '.join(sorted(metrics))}")
    return None if name is None else metrics[name]


def run(cfg: DictConfig) -> dict[str, Any]:
    """One run into `cfg.output_dir`; returns what results.json holds.

    Raises:
        RunError: no experiment, or the output folder belongs to another config.
    """
    if not (cfg.get("method") and cfg.get("data")):
        raise RunError(
            "nothing to run: name an experiment, as in `tenfold experiment=comatch/mini`"
        )
    keep_freed_memory()
    output = Path(cfg.output_dir)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    data = instantiate(cfg.source, _partial_=True)() if cfg.source else {}
    precision = resolve_precision(cfg)
    resolved = resolved_config(cfg, precision)
    config_hash = hash_config(resolved)
    if results := finished_results(output, config_hash):
        log.info("reused: %s is finished (%s)", output, _short(results["metrics"]))
        return results
    claim_folder(output, resolved, config_hash)

    started, wall, cpu = datetime.now(UTC), time.perf_counter(), time.process_time()
    pl.seed_everything(cfg.seed, verbose=False)
    datamodule = _instantiate(resolved["data"])
    module = _instantiate(resolved["method"])
    official = import_module(type(module).__module__.rpartition(".")[0] + ".official")
    if cfg.warm_start:
        log.info("%s", official.warm_start(module, cfg.warm_start.path, cfg.warm_start.kind))
    if cfg.official_checkpoint:
        log.info("%s", official.load(module, cfg.official_checkpoint))
    throughput = Throughput()
    loggers = [instantiate(entry) for entry in cfg.logger.values() if entry]
    trainer = instantiate(
        cfg.trainer,
        precision=precision,
        default_root_dir=str(output),  # where Lightning puts its own checkpoint under SLURM
        logger=loggers,
        callbacks=[
            ResumeCheckpoint(output / "checkpoints", cfg.checkpoint_every),
            FiniteGradients(),
            throughput,
            *([progress_callback()] if cfg.trainer.enable_progress_bar else []),
        ],
        plugins=[AtomicCheckpointIO()],
    )
    last = output / "checkpoints" / "last.ckpt"
    resumed = last.exists()
    try:
        if not cfg.evaluate_only:
            if resumed:
                log.info("continuing from %s", last)
            trainer.fit(module, datamodule=datamodule, ckpt_path=last if resumed else None)
            if trainer.interrupted:
                raise KeyboardInterrupt
        tested = trainer.test(module, datamodule=datamodule, verbose=False)
        metrics = tested[0] if tested else {}  # data without a test split have nothing to test
    finally:
        for logger in loggers:
            getattr(logger, "close", lambda: None)()

    results = {
        "schema": 1,
        "status": "finished",
        "method": type(module).__module__.split(".")[1],
        "experiment": cfg.name,
        "arm": cfg.arm,
        "seed": cfg.seed,
        "metrics": metrics,
        "resumed": resumed,  # then the figures below cover the last process only
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "samples_per_second": throughput.samples_per_second,
        "peak_memory_mb": peak_memory_mb(),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        **git_state(),
        "config_hash": config_hash,
        "claim": resolved["claim"],
        "data": data,
        "paper": resolved["paper"],
        "started": started.isoformat(),
        "finished": datetime.now(UTC).isoformat(),
    }
    if trainer.is_global_zero:
        _write_json(output / "results.json", results)
        log.info("finished: %s (%s)", output, _short(metrics))
    return results


def resolve_precision(cfg: DictConfig) -> str:
    """The precision of the run: as configured, as a started run has it, or measured for `auto`."""
    if cfg.precision != "auto":
        return cfg.precision
    if cfg.evaluate_only:
        return "32-true"
    saved = Path(cfg.output_dir) / "config.yaml"
    if saved.exists():
        return OmegaConf.load(saved).precision
    plain = resolved_config(cfg, "32-true")
    threads = torch.get_num_threads()
    torch.set_num_threads(cfg.threads or threads)  # as the run will have them
    keep_freed_memory()
    with torch.random.fork_rng():
        pl.seed_everything(cfg.seed, verbose=False)
        datamodule = _instantiate(plain["data"])
        datamodule.setup("fit")
        batch = next(iter(datamodule.train_dataloader()))
        gpu = torch.cuda.is_available() and cfg.trainer.accelerator != "cpu"
        module = _instantiate(plain["method"])
        module.attach(datamodule)
        choice = choose_precision(module, batch, device="cuda" if gpu else "cpu")
    torch.set_num_threads(threads)
    log.info("%s", choice)
    return choice.precision


def resolved_config(cfg: DictConfig, precision: str) -> dict[str, Any]:
    """The config as plain containers, every interpolation resolved."""
    resolved: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return {**resolved, "precision": precision}


def hash_config(resolved: dict[str, Any]) -> str:
    """Hex digest of what decides the outcome of a run.

    Where things lie does not count; neither does the place of the data inside `source`, `data`,
    nor that of the results inside `warm_start`.
    """
    kept = {key: value for key, value in resolved.items() if key not in NOT_HASHED}
    text = json.dumps(kept, sort_keys=True)
    for key, name in (("data_root", "<data>/"), ("output_dir", "<output>/")):
        text = text.replace(json.dumps(str(resolved[key]))[1:-1] + "/", name)
    return hashlib.sha256(text.encode()).hexdigest()


def finished_results(output: Path, config_hash: str) -> dict[str, Any] | None:
    """results.json of a finished run of this very config; None if there is none.

    Raises:
        RunError: the folder holds a finished run of another config.
    """
    path = output / "results.json"
    if not path.exists():
        return None
    results = json.loads(path.read_text())
    if results["config_hash"] != config_hash:
        raise RunError(
            f"{path} belongs to another config: choose another output_dir or move it away"
        )
    return results


def claim_folder(output: Path, resolved: dict[str, Any], config_hash: str) -> None:
    """Write the resolved config, or check that the one there is the same.

    Raises:
        RunError: the folder holds an unfinished run of another config.
    """
    path = output / "config.yaml"
    if path.exists():
        there: Any = OmegaConf.to_container(OmegaConf.load(path))
        if hash_config(there) != config_hash:
            differing = sorted(k for k in resolved if resolved[k] != there.get(k))
            raise RunError(
                f"{output} holds an unfinished run of another config (differs in "
                f"{', '.join(differing)}): choose another output_dir or move it away"
            )
        return
    output.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(resolved)))
    os.replace(temporary, path)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    names = ("torch", "torchvision", "pytorch-lightning", "numpy", "hydra-core")
    return {"python": platform.python_version()} | {n: metadata.version(n) for n in names}


def git_state() -> dict[str, Any]:
    """Commit of the code and whether it has uncommitted changes; None outside a checkout."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(ROOT), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
    }


def _instantiate(config: dict[str, Any]) -> Any:
    # Nested `_target_`s stay plain values: modules are rebuilt from them, also from a checkpoint.
    # Called outside of `instantiate`, which would wrap an error in one of its own.
    return instantiate(config, _recursive_=False, _convert_="all", _partial_=True)()


def _short(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
