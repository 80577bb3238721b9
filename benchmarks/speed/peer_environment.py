"""A virtual environment of their own for the peers, so that their dependencies never meet ours."""

import hashlib
import re
import subprocess
import sys
import venv
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.speed.protocol import SpeedError


def ensure(folder: Path, peer: Mapping[str, Any]) -> Path:
    """The Python of the environment, made if need be; SpeedError says how to make it by hand.

    Pip is asked for the peer's `requirement` without what it depends on, for the `dependencies`
    that its import needs, and for torch and torchvision in our versions.
    """
    python, requirement = folder / "bin" / "python", peer["requirement"]
    same = [f"{name}=={metadata.version(name)}" for name in ("torch", "torchvision")]
    installs = [[*same, *peer["dependencies"]], ["--no-deps", requirement]]
    wanted = hashlib.sha256(repr(installs).encode()).hexdigest()
    stamp = folder / f"complete-{re.split('[=<>~]', requirement)[0]}"  # peers share torch
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing {requirement} into {folder.name} (once)", file=sys.stderr)
    try:
        venv.create(folder, with_pip=True)
        for install in installs:
            command = [str(python), "-m", "pip", "install", "--quiet", *install]
            subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        by_hand = [f"{folder.name}/bin/pip install {' '.join(install)}" for install in installs]
        steps = "\n  ".join([f"python -m venv {folder.name}", *by_hand])
        said = f"the peer {requirement} is absent and could not be installed:"
        again = "The comparison needs it once. With a package index within reach, run again, or:"
        reason = reason.strip()[-2000:]
        raise SpeedError(f"{said}\n{reason}\n{again}\n  {steps}") from error
    stamp.write_text(wanted)
    return python
