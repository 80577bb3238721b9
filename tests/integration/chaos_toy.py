"""A training program for test_chaos.py: `python chaos_toy.py output_dir=DIR [fault]`.

Each epoch begins with an E-step, which is announced and takes a while. Faults: `forget` resumes
without the momentum buffer, `crash` ends with an error, `hasty` has an E-step that takes no time.
Torch, whose import takes seconds, only reads and writes checkpoints.
"""

import json
import random
import sys
import time
from pathlib import Path

from shared.files import replacing

STEPS, EPOCH, EVERY = 120, 40, 7


def main(arguments: list[str]) -> None:
    folder = Path(next(a for a in arguments if a.startswith("output_dir=")).split("=")[1])
    metrics, last = folder / "metrics.csv", folder / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True, exist_ok=True)
    weight, momentum, start = 1.0, 0.0, 0
    rows = ["step,epoch,metric,value\n"]
    if last.exists():
        import torch

        state = torch.load(last, weights_only=True)
        weight, start = state["state_dict"]["weight"].item(), state["global_step"]
        if "forget" not in arguments:
            momentum = state["optimizer_states"][0]["momentum"]
        rows += metrics.read_text().splitlines(keepends=True)[1 : 1 + 2 * start]
    metrics.write_text("".join(rows))
    for step in range(start, STEPS):
        if "crash" in arguments and step == 3:
            raise SystemExit("the toy is broken")
        if step % EPOCH == 0 or step == start:
            print(f"E-step: epoch {step // EPOCH}", flush=True)
            time.sleep(0.0 if "hasty" in arguments else 0.2)
        momentum = 0.9 * momentum + random.Random(step).gauss() * weight
        weight = weight - 0.01 * momentum
        values = {"train/loss": weight, "perf/clock": time.time()}
        with metrics.open("a") as file:
            file.writelines(f"{step},{step // EPOCH},{n},{v!r}\n" for n, v in values.items())
        if (step + 1) % EVERY == 0 or step + 1 == STEPS:
            import torch

            state = {
                "state_dict": {"weight": torch.tensor(weight, dtype=torch.float64)},
                "optimizer_states": [{"momentum": momentum}], "lr_schedulers": [], "callbacks": {},
                "global_step": step + 1, "epoch": step // EPOCH,
                "loops": {"fit_loop": {"state_dict": {}}},
            }  # fmt: skip
            with replacing(last) as checkpoint:
                torch.save(state, checkpoint)
        time.sleep(0.02)
    results = {"status": "finished", "metrics": {"test/top1": weight}}
    results |= {"config_hash": "0", "precision": "32-true"}
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
