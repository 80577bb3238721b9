"""Hydra's sweeper by today's Optuna: asks for trials, launches them, tells what they have given.

It lies here because Hydra takes plugins from no other package.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """Searches the swept keys of the command line and of `params`.

    Args:
        n_trials: of this command; a study that `storage` keeps may have more.
        n_jobs: trials that are launched together.
        max_failure_rate: share of this command's trials beyond which it gives up.
        sampler: arguments of Optuna's TPESampler; its `seed` repeats a search from the study's
            length on.
    """

    def __init__(
        self,
        direction: str,
        n_trials: int,
        n_jobs: int,
        max_failure_rate: float,
        study_name: str | None,
        storage: str | None,
        sampler: Mapping[str, Any],
        params: Mapping[str, str],
    ) -> None:
        self.study = {"direction": direction, "study_name": study_name, "storage": storage}
        self.n_trials, self.n_jobs, self.max_failure_rate = n_trials, n_jobs, max_failure_rate
        self.sampler, self.params = dict(sampler), params

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        import optuna

        given = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parsed = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(given)
        overrides = {override.get_key_element(): override for override in parsed}  # the last counts
        space = {k: _distribution(o) for k, o in overrides.items() if o.is_sweep_override()}
        fixed = [
            f"{k}={o.get_value_element_as_str()}" for k, o in overrides.items() if k not in space
        ]
        study = optuna.create_study(**self.study, load_if_exists=True)
        if (seed := self.sampler.pop("seed", None)) is not None:
            seed += len(study.trials)
        study.sampler = optuna.samplers.TPESampler(seed=seed, **self.sampler)
        failures = 0
        for done in range(0, self.n_trials, self.n_jobs):
            trials = [study.ask(space) for _ in range(min(self.n_jobs, self.n_trials - done))]
            jobs = [[*fixed, *(f"{k}={v}" for k, v in trial.params.items())] for trial in trials]
            returns = self.launcher.launch(jobs, initial_job_idx=trials[0].number)
            for trial, returned in zip(trials, returns, strict=True):
                if returned.status is JobStatus.COMPLETED:
                    study.tell(trial, returned.return_value)
                    continue
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                failures += 1
                if failures > self.max_failure_rate * self.n_trials:
                    returned.return_value  # noqa: B018  (raises what the run has raised)
        best = {"best_params": study.best_params, "best_value": study.best_value}
        log.info("best of %d trials: %s", len(study.trials), best)
        OmegaConf.save(best, Path(self.config.hydra.sweep.dir) / "optimization_results.yaml")


def _distribution(override: Override) -> Any:
    """What Optuna draws the key from; values of a choice or range stay as they are written."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(tuple(override.sweep_string_iterator()))
    whole = isinstance(value.start, int) and isinstance(value.end, int)
    kind = IntDistribution if whole else FloatDistribution
    return kind(value.start, value.end, log="log" in value.tags)
