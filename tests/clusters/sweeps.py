"""CoMatch's smoke experiment as a sweep on a cluster, and what has to come out of it."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.checkpoints.reading import load_checkpoint

ROOT = Path(__file__).parents[2]
SECONDS = 600.0  # of a few jobs on a busy machine
SMOKE = ["experiment=comatch/smoke", "logger=csv", "trainer.enable_progress_bar=false"]
LONG = ["trainer.max_steps=300", "trainer.check_val_every_n_epoch=100", "checkpoint_every=20"]


def sweep(folder: Path, launcher: Sequence[str], *overrides: str) -> list[str]:
    """The command of a multirun by a launcher, each run in a folder of its own."""
    places = [f"data_root={folder}/data", f"hydra.sweep.dir={folder}/sweep"]
    command = [sys.executable, "-m", "shared.run", "-m", *SMOKE, *launcher, *places]
    return [*command, f"output_dir={folder}/runs/${{seed}}", *overrides]


def results(folder: Path, seed: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"runs/{seed}/results.json").read_text())


def last(folder: Path) -> Path:
    return folder / "runs/0/checkpoints/last.ckpt"


def assert_resumed_as_if_never_stopped(folder: Path, undisturbed: Path) -> None:
    assert results(folder)["resumed"]
    assert results(folder)["metrics"] == results(undisturbed)["metrics"]
    weights, expected = (load_checkpoint(last(f))["state_dict"] for f in (folder, undisturbed))
    assert weights.keys() == expected.keys()
    assert all(bool((weights[key] == expected[key]).all()) for key in expected)
