"""The one entry point: compose a config, fit, evaluate, write results.json.

    tenfold experiment=comatch/mini seed=3
    tenfold -m experiment=comatch/cifar10_40,comatch/cifar10_250 seed=1,2 hydra/launcher=local

Running the same command again continues an interrupted run, and reuses a finished one.
"""

import logging
import os
import platform
import signal
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module, metadata
from typing import Any, NoReturn

import hydra
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LambdaCallback, RichProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from shared.checkpoints.reading import CheckpointError
from shared.checkpoints.writing import AtomicCheckpointIO
from shared.files import UnsafeFileError
from shared.nn.building import applied, build, call
from shared.overrides import check_overrides
from shared.provenance import ROOT, git_state, place
from shared.training import callbacks, slurm
from shared.training.allocator import keep_freed_memory
from shared.training.compiling import compile_blocks
from shared.training.keeping import BestCheckpoint, epoch_checkpoints
from shared.training.lightning_internals import leave_requeueing, let_children_end, shortfall
from shared.training.loggers import WandbLogger, closing
from shared.training.method import Method
from shared.training.precision import choose_precision
from shared.training.run_folder import RunBusyError, RunError, RunFolder, hash_config, read_config

log = logging.getLogger(__name__)

REFUSED, FAILED, BUSY, TERMINATED = 2, 1, os.EX_TEMPFAIL, 128 + signal.SIGTERM
"""Exit statuses: wrong input, an error that left a traceback, a folder that another process has, a
run that SIGTERM has ended."""
OF_LIBRARIES = (MisconfigurationException, HydraException)
REFUSALS = (RunError, CheckpointError, *OF_LIBRARIES, ValueError, OSError)
"""Before training begins the message of these says all that there is to know."""
FULL_ERROR = "TENFOLD_FULL_ERROR"  # as HYDRA_FULL_ERROR was when the command was given


def launch() -> None:
    """Run what the checked command line says. What is wrong goes to stderr in one line; the exit
    status is 0, `REFUSED`, `FAILED`, `BUSY` or `TERMINATED`, 130 after Ctrl-C."""
    os.environ.setdefault(FULL_ERROR, os.environ.get("HYDRA_FULL_ERROR", "0"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors arrive here, not on the screen
    # Of our conf/hydra/launcher/ray.yaml, which has the name of the plugin's own, as users expect.
    warnings.filterwarnings("ignore", ".*is validated against ConfigStore schema", UserWarning)
    try:
        return _hydra_main()
    except KeyboardInterrupt:
        print("tenfold: stopped; the same command continues", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        _end(error)


def _end(error: Exception) -> NoReturn:
    """Say what went wrong and exit; `HYDRA_FULL_ERROR=1` shows the traceback instead."""
    if os.environ[FULL_ERROR] == "1":
        raise error
    print(f"tenfold: {explain(error)}", file=sys.stderr)
    if isinstance(error, RunBusyError):
        sys.exit(BUSY)
    sys.exit(FAILED if hasattr(error, "__notes__") else REFUSED)


def explain(error: BaseException) -> str:
    """What went wrong in one line; what nobody foresaw says its type as well."""
    if isinstance(error, ValueError) and isinstance(error.__cause__, UnsafeFileError):
        error = error.__cause__  # what a log file is refused for, wrapped by `logging`
    said = " ".join(str(error).split())
    if not isinstance(error, REFUSALS):
        said = f"{type(error).__name__}: {said}"
    notes = " ".join(getattr(error, "__notes__", []))
    return f"{said} ({notes})" if notes else said


@hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")
def _hydra_main(cfg: DictConfig) -> float | None:
    try:
        return objective(cfg, run(cfg)["metrics"])
    except Exception as error:
        # A single run ends here, before Hydra prints all overrides; a sweep goes on.
        if HydraConfig.get().mode is RunMode.RUN:
            _end(error)
        log.error("failed: %s: %s", cfg.output_dir, explain(error), exc_info=error)
        raise


def objective(cfg: DictConfig, metrics: dict[str, float]) -> float | None:
    """The metric that `objective` names for a sweeper, if any; RunError of a name without one."""
    name = cfg.get("objective")
    if name is not None and name not in metrics:
        raise RunError(f"objective={name} is no metric of this run: {', '.join(sorted(metrics))}")
    return None if name is None else metrics[name]


def run(cfg: DictConfig) -> dict[str, Any]:
    """One run into `cfg.output_dir`; returns what results.json holds."""
    if not (cfg.get("method") and cfg.get("data")):
        raise RunError("nothing to run: name an experiment, as in `experiment=comatch/mini`")
    keep_freed_memory()
    folder = RunFolder(cfg.output_dir, _rank())
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    # Processes of the same run on other GPUs write nothing.
    with folder.held() if _rank() == 0 else nullcontext():
        try:
            return _run(cfg, folder)
        except SystemExit as end:
            if end.code == TERMINATED and _rank() == 0:
                slurm.requeue()
            raise
        except Exception as error:
            folder.record(error)
            if not isinstance(error, REFUSALS):
                error.add_note(f"traceback: {folder.error}")
            raise


def _run(cfg: DictConfig, folder: RunFolder) -> dict[str, Any]:
    data = call(cfg.source) if cfg.source else {}
    resolved = resolved_config(cfg, resolve_precision(cfg))
    if cfg.measure_only:
        folder.claim(resolved)
        return {"metrics": {}}
    config_hash = hash_config(resolved)
    if results := folder.results(config_hash):
        log.info("reused: %s is finished (%s)", folder.path, _short(results["metrics"]))
        return results
    started, wall, cpu = datetime.now(UTC), time.perf_counter(), time.process_time()
    loggers = [
        build(entry, Logger)  # type: ignore[type-abstract]
        for entry in resolved["logger"].values()
        if entry
    ]
    watched = _watched(cfg, folder)
    # Not before, so that a start that fails leaves the folder to the corrected command.
    claiming = LambdaCallback(on_train_start=lambda *_: folder.claim(resolved))
    trainer = build_trainer(
        resolved["trainer"],
        precision=resolved["precision"],
        default_root_dir=str(folder.path),
        logger=loggers,
        callbacks=[*watched.callbacks, claiming],
        plugins=[AtomicCheckpointIO()],
    )
    leave_requeueing(trainer)
    start = {"world_size": _world_size(trainer), **place()}
    resolved["start"] = start
    folder.check(resolved)
    module, datamodule = _method_and_data(cfg, resolved)
    with closing(loggers):
        resumed = folder.last.exists()
        of_wandb = [logger for logger in loggers if isinstance(logger, WandbLogger)]
        for logger in of_wandb:
            logger.begin(resolved)
        metrics = _fit_and_test(cfg, folder, trainer, module, datamodule, watched)
        missing = shortfall(trainer, fitted=not cfg.evaluate_only)
        results = {
            "schema": 1,
            "status": "stopped" if missing else "finished",
            "reason": missing,
            "method": type(module).__module__.split(".")[1],
            "experiment": cfg.name,
            "arm": cfg.arm,
            "seed": cfg.seed,
            "metrics": metrics,
            "best": watched.best and watched.best.state_dict(),
            "resumed": resumed,  # then the figures below cover the last process only
            "wall_seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "samples_per_second": watched.throughput.samples_per_second,
            "peak_memory_mb": callbacks.peak_memory_mb(),
            "precision": resolved["precision"],
            "threads": torch.get_num_threads(),
            "versions": versions(),
            **git_state(),
            "config_hash": config_hash,
            "claim": resolved["claim"],
            "data": data,
            "paper": resolved["paper"],
            **start,
            "started": started.isoformat(),
            "finished": datetime.now(UTC).isoformat(),
        }
        if trainer.is_global_zero:
            folder.claim(resolved)
            folder.finish(results)
            for logger in of_wandb:
                logger.keep_files()
            said = f"stopped ({missing})" if missing else "finished"
            log.info("%s: %s (%s)", said, folder.path, _short(metrics))
    return results


@dataclass(frozen=True)
class _Watched:
    """What looks on while a run trains; `best` first, see there."""

    best: BestCheckpoint | None
    throughput: callbacks.Throughput
    resume: callbacks.ResumeCheckpoint
    others: list[pl.Callback]

    @property
    def callbacks(self) -> list[pl.Callback]:
        first = [self.best] if self.best else []
        return [*first, *self.others, self.throughput, self.resume]


def _watched(cfg: DictConfig, folder: RunFolder) -> _Watched:
    if cfg.best and not str(cfg.best).startswith("val/"):
        raise RunError(f"best={cfg.best}: name a metric of validation, as val/accuracy")
    kept = folder.last.parent
    minutes = cfg.trainer.get("checkpoint_minutes") or 0.0
    others: list[pl.Callback] = [callbacks.FiniteGradients()]
    if cfg.keep_every:
        others.append(epoch_checkpoints(kept, cfg.keep_every))
    if cfg.trainer.enable_progress_bar:
        others.append(RichProgressBar() if sys.stdout.isatty() else callbacks.PlainProgress())
    return _Watched(
        best=BestCheckpoint(kept, cfg.best) if cfg.best and not cfg.evaluate_only else None,
        throughput=callbacks.Throughput(),
        resume=callbacks.ResumeCheckpoint(kept, cfg.checkpoint_every, minutes),
        others=others,
    )


def _world_size(trainer: pl.Trainer) -> int:
    """The number of processes; RunError if the environment says several and the trainer one."""
    if trainer.world_size == 1 and (_rank() != 0 or slurm.tasks() > 1):
        said = f"this is process {_rank()} of several, by the environment, but the trainer runs one"
        raise RunError(f"{said}: unset RANK, LOCAL_RANK, SLURM_PROCID, or choose trainer=ddp")
    return trainer.world_size


def _method_and_data(
    cfg: DictConfig, resolved: Mapping[str, Any]
) -> tuple[Method, pl.LightningDataModule]:
    """Both as configured, with the weights that the run begins with."""
    pl.seed_everything(cfg.seed, verbose=False)
    datamodule = build(resolved["data"], pl.LightningDataModule)
    module = build(resolved["method"], Method)
    batches = cfg.trainer.accumulate_grad_batches
    if batches != 1 and not module.accumulates:
        said = f"trainer.accumulate_grad_batches={batches}: {type(module).__name__} moves queues or"
        raise RunError(f"{said} averages with every batch, not every update; set it to 1")
    official = import_module(type(module).__module__.rpartition(".")[0] + ".official")
    if cfg.warm_start:
        log.info("%s", official.warm_start(module, cfg.warm_start.path, cfg.warm_start.kind))
    if cfg.official_checkpoint:
        try:
            log.info("%s", official.load(module, cfg.official_checkpoint))
        except FileNotFoundError as error:
            said = "docs/weights.md says where official files come from"
            raise RunError(f"official_checkpoint: {error}; {said}") from error
    if backend := cfg.trainer.get("compile"):
        log.info("%d blocks will be compiled", compile_blocks(module, backend))
    if rank := _rank():  # dropout differs between the processes, as in the official code
        torch.manual_seed(cfg.seed + rank)
    return module, datamodule


def _fit_and_test(
    cfg: DictConfig,
    folder: RunFolder,
    trainer: pl.Trainer,
    module: Method,
    datamodule: pl.LightningDataModule,
    watched: _Watched,
) -> dict[str, float]:
    """Train, or go on, and return the metrics of the test; none of data without a test split."""
    resume = watched.resume
    try:
        if not cfg.evaluate_only:
            last = folder.last if folder.last.exists() else None
            if last:
                log.info("continuing from %s", last)
            trainer.fit(module, datamodule=datamodule, ckpt_path=last)
        best = watched.best.path if watched.best else None
        if best and not best.exists():
            raise RunError(f"best={cfg.best}, but the run has not validated; see data.val_split")
        tested = trainer.test(module, datamodule=datamodule, ckpt_path=best, verbose=False)
        return dict(tested[0]) if tested else {}
    except SystemExit as end:  # as Lightning passes a signal on
        if isinstance(end, SIGTERMException):
            let_children_end()
            raise SystemExit(TERMINATED) from end
        if isinstance(end.__context__, KeyboardInterrupt):
            raise SystemExit(128 + signal.SIGINT) from end
        raise
    except Exception as error:
        if resume.terminated:  # another process has left a collective that this one was in
            let_children_end()
            raise SystemExit(TERMINATED) from error
        if watched.throughput.steps and isinstance(error, REFUSALS):
            error.add_note(f"traceback: {folder.error}")
        raise


def build_trainer(config: Any, **further: Any) -> pl.Trainer:
    """The trainer that conf/trainer describes; ValueError if it names another class, or a strategy
    that shares out weights."""
    if OmegaConf.is_config(config):
        config = OmegaConf.to_container(config, resolve=True)
    arguments = {**config, **further}
    arguments.pop("compile", None)  # the module's blocks
    arguments.pop("checkpoint_minutes", None)  # ResumeCheckpoint's
    # Of matrix products; cuDNN's convolutions have TF32 by default.
    torch.set_float32_matmul_precision("high" if arguments.pop("tf32", False) else "highest")
    strategy = str(arguments.get("strategy", "auto"))
    if strategy != "auto" and not strategy.startswith("ddp"):
        said = f"trainer.strategy={strategy}: momentum copies and queues need whole weights"
        raise ValueError(f"{said}, and the largest network of a row fits a GPU; take ddp")
    if (target := arguments.pop("_target_", None)) != "pytorch_lightning.Trainer":
        raise ValueError(f"trainer._target_={target}: only pytorch_lightning.Trainer trains here")
    return applied(pl.Trainer, arguments)


def resolve_precision(cfg: DictConfig) -> str:
    """The precision of the run: as configured, as a started run has it, or measured for `auto`."""
    if cfg.precision != "auto":
        return cfg.precision
    if cfg.evaluate_only:
        return "32-true"
    folder = RunFolder(cfg.output_dir)
    if saved := read_config(folder.config):
        return str(saved["precision"])
    alone = cfg.trainer.strategy == "auto"
    if _rank() != 0 and not alone:
        return folder.agreed_precision(slurm.start())
    plain = resolved_config(cfg, "32-true")
    threads = torch.get_num_threads()
    torch.set_num_threads(cfg.threads or threads)  # as the run will have them
    keep_freed_memory()
    with torch.random.fork_rng():
        pl.seed_everything(cfg.seed, verbose=False)
        datamodule = build(plain["data"], pl.LightningDataModule)
        datamodule.setup("fit")
        batch = next(iter(datamodule.train_dataloader()))
        gpu = torch.cuda.is_available() and cfg.trainer.accelerator != "cpu"
        module = build(plain["method"], Method)
        module.attach(datamodule)
        choice = choose_precision(module, batch, device="cuda" if gpu else "cpu")
    torch.set_num_threads(threads)
    log.info("%s", choice)
    if not alone:
        folder.agree_on_precision(choice.precision, slurm.start())
    return choice.precision


def resolved_config(cfg: DictConfig, precision: str) -> dict[str, Any]:
    """The config as plain containers, every interpolation resolved."""
    resolved: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return {**resolved, "precision": precision}


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    names = ("torch", "torchvision", "pytorch-lightning", "numpy", "hydra-core")
    return {"python": platform.python_version()} | {n: metadata.version(n) for n in names}


def _rank() -> int:
    """The number that the environment gives this process; 0 if it says nothing."""
    return getattr(rank_zero_only, "rank", 0)


def _short(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())


if __name__ == "__main__":  # `tenfold` begins in `shared.cli`
    check_overrides(sys.argv[1:])
    launch()
