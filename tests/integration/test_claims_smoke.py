"""The claims engine for real: a Hydra multirun of three arms and two seeds, a dozen steps each."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.processes import run

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    """A copy of the code in which both claims are CoMatch's."""
    for name in ("benchmarks", "conf", "methods", "shared"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyc"))
    for claim in HERE.glob("claim_*.yaml"):
        shutil.copy(claim, tmp_path / "conf" / "reproduce" / "comatch")
    return tmp_path


def reproduce(folder, claim, *arguments):
    command = [sys.executable, "-m", "benchmarks.reproduce", "comatch", "--claim", claim]
    return run([*command, f"data_root={folder / 'data'}", *arguments], 1200, cwd=folder)


@pytest.mark.slow
def test_claim_runs_reuses_and_names_what_failed(folder):
    first = reproduce(folder, "claim_smoke")
    assert first.returncode == 0, first.stdout + first.stderr
    (base,) = folder.glob("outputs/reproduce/comatch/claim_smoke-*")
    results = [json.loads(p.read_text()) for p in base.glob("*/seed*/results.json")]
    assert len(results) == 6
    summary = json.loads((base / "summary.json").read_text())
    assert {r["claim"]["hash"] for r in results} == {summary["hash"]}
    assert {r["threads"] for r in results} == {1}
    assert (folder / "outputs" / "report" / "index.html").is_file()

    second = reproduce(folder, "claim_smoke")
    assert "reused 6 of 6 runs" in second.stdout
    assert second.returncode == 0

    occupied = base / "fixmatch_da" / "seed3"
    occupied.mkdir()
    shutil.copy(base / "comatch" / "seed1" / "config.yaml", occupied)
    third = reproduce(folder, "claim_smoke", "--seeds", "1,2,3")
    assert third.returncode == 1
    for said in ("failed: fixmatch_da seed 3", "RunError", "claim holds: undecided"):
        assert said in third.stdout
    assert len(list(base.glob("*/seed3/results.json"))) == 2


@pytest.mark.slow
def test_arms_start_from_what_was_prepared_for_their_seed(folder):
    done = reproduce(folder, "claim_prepare_smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    place = "reproduce/comatch/claim_prepare_smoke/pretrained"
    assert f"Prepared once per seed: pretrained ({place})" in done.stdout
    (base,) = folder.glob("outputs/reproduce/comatch/claim_prepare_smoke-*")
    results = {p.parent.parent.name for p in base.glob("*/seed2/results.json")}
    assert results == {"pretrained", "comatch", "from_pcl", "from_pcl_permuted"}
    prepared = json.loads((base / "pretrained" / "seed2" / "results.json").read_text())
    assert (prepared["arm"], prepared["seed"]) == ("pretrained", 2)
    log = (base / "multirun.log").read_text()
    assert log.count("dropped: PCL's own state") == 4  # two arms, two seeds
