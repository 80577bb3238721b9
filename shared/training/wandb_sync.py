"""Upload what runs have logged for Weights & Biases without a network: `tenfold wandb-sync`."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

USAGE = "tenfold wandb-sync [FOLDER]   (outputs by default; needs WANDB_API_KEY and a network)"


def main(arguments: list[str]) -> int:
    """Hand the offline runs of a folder that are not uploaded yet to `wandb sync`; its status."""
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    folder = Path(*arguments[:1] or ["outputs"])
    if len(arguments) > 1 or not folder.is_dir():
        print(f"tenfold wandb-sync: {' '.join(arguments)}: no folder; {USAGE}", file=sys.stderr)
        return 2
    runs = [run for run in sorted(folder.rglob("wandb/offline-run-*")) if run.is_dir()]
    left = [str(run) for run in runs if not list(run.glob("*.wandb.synced"))]
    print(f"{len(runs)} offline runs in {folder}, {len(left)} of them not uploaded")
    if not left:
        return 0
    if find_spec("wandb") is None:
        print("wandb is not installed: pip install 'tenfold[wandb]'", file=sys.stderr)
        return 2
    return subprocess.run([sys.executable, "-m", "wandb", "sync", *left], check=False).returncode
