"""The worker's side: a process that steps when told to, and otherwise stands still.

Commands and replies are JSON lines on stdin and stdout: `{"command": "describe"}`,
`{"command": "run", "variant": "float32", "steps": 3}`, or where a comparison has values that must
be equal on both sides, `{"command": "values"}`. Only the standard library, so that a peer's
environment needs nothing of ours.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol


class Workload(Protocol):
    """One side of a comparison."""

    def describe(self) -> dict[str, Any]:
        """At least `parameters`, `images_per_step`, `threads` and `torch`."""
        ...

    def run(self, variant: str, steps: int) -> tuple[list[float], list[float]]:
        """Seconds and loss of each of `steps` further training steps of that variant."""
        ...

    # Of some: `values() -> dict[str, list[float]]`, what both sides must compute alike.


def timed(step: Callable[[], float], steps: int) -> tuple[list[float], list[float]]:
    """Call `step`, which returns its loss, `steps` times; seconds and losses."""
    seconds, losses = [], []
    for _ in range(steps):
        begin = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - begin)
    return seconds, losses


def serve(build: Callable[[dict[str, Any]], Workload]) -> None:
    """Build the workload from the settings in argv[1], then answer until stdin closes."""
    # What libraries print must not get between the replies.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(content: dict[str, Any]) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    try:
        workload = build(json.loads(sys.argv[1]))
        for line in sys.stdin:
            command = json.loads(line)
            if command["command"] in ("describe", "values"):
                reply(getattr(workload, command["command"])())
            else:
                seconds, losses = workload.run(command["variant"], command["steps"])
                reply({"seconds": seconds, "losses": losses})
    except Exception as error:
        traceback.print_exc()  # into the log
        reply({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)
