"""What runs that a cluster interrupts are compared with."""

from pathlib import Path

import pytest

from tests.clusters.sweeps import LONG, ROOT, SECONDS, sweep
from tests.processes import run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on this machine that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run(sweep(folder, [], *LONG), SECONDS, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder
