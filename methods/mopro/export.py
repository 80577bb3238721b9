"""The pre-trained query encoder in the form that another program takes.

    python -m methods.mopro.export CHECKPOINT OUTPUT --to detectron2

CHECKPOINT is one of our runs, or an official file with `experiment=...` to describe its network.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from methods.mopro import official
from methods.mopro.cleaning import compose_experiment, load_pretraining
from shared.checkpoints.detectron2 import write_detectron2
from shared.checkpoints.reading import CheckpointError
from shared.overrides import OverrideError


def main(argv: Sequence[str]) -> int:
    """Command line; what is wrong goes to stderr in one line, with exit status 2.

    detectron2 gets its pickle of arrays, every other consumer a .safetensors file.
    """
    parser = argparse.ArgumentParser(prog="python -m methods.mopro.export", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--to", required=True, choices=sorted(official.CONSUMERS))
    parser.add_argument(
        "overrides",
        nargs="*",
        default=["experiment=mopro/webvision_v1"],
        help="of an official file: experiment=NAME (mopro/webvision_v1) and further overrides",
    )
    arguments = parser.parse_intermixed_args(argv)
    try:
        module = load_pretraining(arguments.checkpoint, compose_experiment(arguments.overrides))
        state = official.export_for(module, arguments.to)
    except (OverrideError, CheckpointError, FileNotFoundError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    if arguments.to == "detectron2":
        write_detectron2(state, arguments.output, "MoPro")
    else:
        save_file({name: value.contiguous() for name, value in state.items()}, arguments.output)
    print(f"{arguments.output}: {len(state)} tensors for {arguments.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
