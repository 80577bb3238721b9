"""docs/adding-a-method.md does what it says: its files are written into a copy, checked and run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import run

ROOT = Path(__file__).parents[2]
FILE = re.compile(r"^`(?P<path>[\w./-]+)`\n\n```\w+\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    page = (ROOT / "docs" / "adding-a-method.md").read_text()
    return {match["path"]: match["text"] for match in FILE.finditer(page)}


@pytest.fixture(scope="module")
def copy(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with the tutorial's files in it, none of which was there before."""
    copy = tmp_path_factory.mktemp("copy") / "tenfold"
    tracked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(tracked, cwd=ROOT, text=True).split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith("tests/golden/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    for name, text in files.items():
        path = copy / name
        assert not path.exists(), name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return copy


def python(copy: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(copy), "WANDB_MODE": "disabled"}
    done = run([sys.executable, *arguments], 600, cwd=copy, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_it_is_short(files: dict[str, str]) -> None:
    assert len(files) <= 10
    assert sum(text.count("\n") for text in files.values()) <= 350


def test_its_files_are_clean(copy: Path, files: dict[str, str]) -> None:
    code = [name for name in files if name.endswith(".py")]
    python(copy, "-m", "ruff", "check", *code)
    python(copy, "-m", "ruff", "format", "--check", *code)


def test_the_package_conforms_and_its_claim_composes(copy: Path) -> None:
    """In one process, whose imports take seconds."""
    chosen = ["-q", "-k", "simclr", "-m", "not slow", "-p", "no:cacheprovider"]
    chosen += ["tests/conformance", "tests/unit/test_simclr.py"]
    code = f"""
import sys, pytest
from benchmarks.claims import CONF, compose_arms, load_claim
compose_arms(load_claim(CONF / "reproduce" / "simclr.yaml"))
sys.exit(pytest.main({chosen}))
"""
    said = python(copy, "-c", code)
    assert int(re.findall(r"(\d+) passed", said)[-1]) >= 12


@pytest.mark.slow
def test_its_miniature_trains(copy: Path, tmp_path: Path) -> None:
    """On made-up images in the public format: tests have no network."""
    synthetic = ["source._target_=benchmarks.miniatures.synthetic.fashion_mnist"]
    few = ["data.subset=null", "data.batch_size=16", "trainer.max_epochs=2"]
    few.append("method.evaluation.shots=[1,2]")
    places = [f"data_root={tmp_path}/data", f"output_dir={tmp_path}/run", "precision=32-true"]
    python(copy, "-m", "shared.cli", "experiment=simclr/mini", *synthetic, *few, *places)
    assert (tmp_path / "run" / "results.json").is_file()
