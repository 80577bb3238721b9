"""One side of a comparison: a process that steps when told to, and otherwise stands still.

`python -m benchmarks.speed.serving MODULE:CLASS SETTINGS` answers JSON lines on stdin with JSON
lines on stdout: `{"command": "describe"}`, `{"command": "run", "variant": "float32", "steps": 3}`,
`{"command": "values"}` where a comparison has values that must be equal on both sides, or
`{"command": "figures"}` where one side counts something. Only torch and the standard library, so
that a peer's environment needs nothing of ours.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import torch


class Workload:
    """One side of a comparison; builds each variant when it is first asked for.

    A variant is a precision, "float32" or "bf16", alone or followed by what is done. `rows` is the
    number of images, or of the comparison's unit, of a step. The settings' `queries` say how many a
    step answers together, by what is done: the time of one is reported.
    """

    rows: int

    def __init__(self, settings: dict[str, Any]):
        torch.set_num_threads(settings["threads"])
        torch.manual_seed(settings["seed"])
        self.settings = settings
        self.steps: dict[str, Callable[[], float]] = {}

    def parameters(self) -> Iterable[torch.Tensor]:
        """The weights whose number both sides must share."""
        raise NotImplementedError

    def step(self, precision: str, what: str) -> Callable[[], float]:
        """What a step of a variant calls; it returns its loss."""
        raise NotImplementedError

    def values(self) -> dict[str, list[float]]:
        """What both sides must compute alike."""
        raise NotImplementedError

    def figures(self) -> dict[str, float]:
        """What is counted on our side alone, as so many a second."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        return {
            "parameters": sum(p.numel() for p in self.parameters()),
            "images_per_step": self.rows,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def run(self, variant: str, steps: int) -> tuple[list[float], list[float]]:
        """Seconds and loss of each of `steps` further steps of that variant."""
        precision, _, what = variant.partition(" ")
        if variant not in self.steps:
            self.steps[variant] = self.step(precision, what)
        seconds, losses = timed(self.steps[variant], steps)
        together = self.settings.get("queries", {}).get(what, 1)
        return [value / together for value in seconds], losses


def timed(step: Callable[[], float], steps: int) -> tuple[list[float], list[float]]:
    """Seconds and losses of so many calls."""
    seconds, losses = [], []
    for _ in range(steps):
        begin = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - begin)
    return seconds, losses


def serve(name: str, settings: dict[str, Any]) -> None:
    """Build the workload that MODULE:CLASS names, then answer until stdin closes."""
    # What libraries print must not get between the replies.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(content: Any) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    try:
        module, _, kind = name.partition(":")
        workload: Workload = getattr(import_module(module), kind)(settings)
        for line in sys.stdin:
            given = json.loads(line)
            command = given.pop("command")
            reply(getattr(workload, command)(**given))
    except Exception as error:
        traceback.print_exc()  # into the log
        reply({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
