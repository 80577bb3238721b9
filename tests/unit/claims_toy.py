"""A toy method's configs, claim and results, for the tests of the claims engine."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig

from benchmarks import claims
from shared.experiments import arms

ARMS = ("ours", "broken", "base", "more")
CLAIM = {
    "title": "Toy with few labels",
    "claim": "Ours beats base.",
    "source": "nowhere",
    "arms": {arm: f"toy/{arm}" for arm in ARMS},
    "primary": {"metric": "test/top1_ema", "method": "ours", "baseline": "base"},
    "expected_sign": 1,
    "smallest_difference": 1.0,
    "control": "broken",
    "secondary": [{"method": "ours", "baseline": "more"}],
    "optional": ["more"],
    "seeds": [1, 2, 3],
    "tuning_seeds": [100],
}


MEMORY: dict[tuple, DictConfig] = {}


def remember(patch: pytest.MonkeyPatch) -> None:
    """Compose once what has the same files and overrides; of the claim's file the arm counts."""
    compose = claims.compose_experiment

    def remembered(experiment: str, overrides: Sequence[str] = (), conf: Path = claims.CONF) -> Any:
        paths = [p for p in sorted(conf.rglob("*.yaml")) if p.parent.name != "reproduce"]
        files = [path.read_text() for path in paths]
        claim, _, arm = experiment.removeprefix("reproduce/").rpartition("/")
        key = (experiment, repr(arms(claim, conf).get(arm)), *overrides, *files)
        if key not in MEMORY:
            MEMORY[key] = compose(experiment, overrides, conf)
        return MEMORY[key].copy()

    patch.setattr(claims, "compose_experiment", remembered)


PAGE = {"page": "sheet.html"}


def write_conf(root: Path, claim: Mapping | None = None) -> Path:
    """A conf folder with a toy method; returns it."""
    conf = root / "conf"
    (conf / "experiment" / "toy").mkdir(parents=True, exist_ok=True)
    (conf / "reproduce").mkdir(exist_ok=True)
    config = {
        "defaults": ["_self_", {"experiment": None}], "name": "none", "arm": "none", "seed": 0,
        "threads": None, "precision": "32-true", "output_dir": "outputs/${name}/seed${seed}",
        "data_root": "data", "claim": None, "source": None, "paper": None,
        "logger": {"csv": {"save_dir": "${output_dir}"}},
        "data": {"root": "${data_root}/toy", "seed": "${seed}"},
        "method": {"rate": 0.1}, "trainer": {"max_steps": 10, "max_epochs": -1},
    }  # fmt: skip
    (conf / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    for i, arm in enumerate((*ARMS, "pretraining")):
        write_experiment(conf, arm, {"method": {"rate": 0.1 * i}})
    write_claim(conf, claim or CLAIM)
    return conf


def write_experiment(conf: Path, arm: str, content: Mapping) -> None:
    body = {"name": f"toy/{arm}", "arm": arm, **content}
    text = "# @package _global_\n" + yaml.safe_dump(body)
    (conf / "experiment" / "toy" / f"{arm}.yaml").write_text(text)


def write_rows(conf: Path, **lines: Mapping) -> None:
    """A table of rows, each the toy's experiment "ours" with a name of its own."""
    rows = {name: {**line, "name": f"toy/{name}"} for name, line in lines.items()}
    block = {"experiment": "toy/ours", "rows": rows}
    (conf / "rows").mkdir(exist_ok=True)
    (conf / "rows" / "toy.yaml").write_text(yaml.safe_dump([block]))


def write_claim(conf: Path, claim: Mapping) -> Path:
    path = conf / "reproduce" / "toy.yaml"
    path.write_text(yaml.safe_dump(dict(claim), sort_keys=False))
    return path


def write_results(folder: Path, arm: str, seed: int, metrics: Mapping) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        "schema": 1, "status": "finished", "method": "toy", "experiment": f"toy/{arm}", "arm": arm,
        "seed": seed, "metrics": dict(metrics), "cpu_seconds": 12.0, "precision": "32-true",
        "git_commit": None,
        "data": {"toy-set": {"figures": {"Told of the set": {"by lot": seed + 0.5}}, **PAGE}},
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    rows = [f"{step},0,val/top1_ema,{50 + step / 10 + seed}" for step in range(0, 101, 20)]
    (folder / "metrics.csv").write_text("\n".join(["step,epoch,metric,value", *rows]) + "\n")


def assert_says(text: str, *words: str) -> None:
    assert [word for word in words if word not in text] == []


PER_QUERY = "per_query.json"


class FakeLauncher:
    """Writes the results that a multirun would: `value(arm, seed)`, None for a run that fails, and
    `by_query(arm, seed)` as its per_query.json; remembers what it was asked to run."""

    def __init__(
        self,
        value: Callable[[str, int], float | None],
        by_query: Callable[[str, int], str] | None = None,
    ) -> None:
        self.value = value
        self.by_query = by_query
        self.commands: list[Sequence[str]] = []
        self.ran: list[tuple[str, int]] = []

    def __call__(self, command, runs, log, jobs, console) -> int:
        self.commands.append(command)
        log.write_text("output of the multirun\n")
        failed = False
        for run in runs:
            self.ran.append((run.arm, run.seed))
            value = self.value(run.arm, run.seed)
            if value is None:
                failed = True
                run.folder.mkdir(parents=True, exist_ok=True)
                (run.folder / "error.txt").write_text("Traceback\nValueError: the toy broke\n")
            else:
                write_results(run.folder, run.arm, run.seed, {"test/top1_ema": value})
                if self.by_query:
                    (run.folder / PER_QUERY).write_text(self.by_query(run.arm, run.seed))
        return int(failed)
