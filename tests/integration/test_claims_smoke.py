"""The claims engine for real: a Hydra multirun of three arms and two seeds, a dozen steps each."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.processes import run

CLAIM = Path(__file__).with_name("claim_smoke.yaml")


def reproduce(folder, claim, *arguments):
    command = [sys.executable, "-m", "benchmarks.reproduce", "comatch", "--claim", claim]
    return run([*command, f"data_root={folder / 'data'}", *arguments], 1200, cwd=folder)


@pytest.mark.slow
def test_claim_runs_reuses_and_names_what_failed(tmp_path):
    first = reproduce(tmp_path, CLAIM)
    assert first.returncode == 0, first.stdout + first.stderr
    (folder,) = tmp_path.glob("outputs/reproduce/comatch/claim_smoke-*")
    results = [json.loads(p.read_text()) for p in folder.glob("*/seed*/results.json")]
    assert len(results) == 6
    summary = json.loads((folder / "summary.json").read_text())
    assert {r["claim"]["hash"] for r in results} == {summary["hash"]}
    assert {r["threads"] for r in results} == {1}
    assert (tmp_path / "outputs" / "report" / "index.html").is_file()

    second = reproduce(tmp_path, CLAIM)
    assert "reused 6 of 6 runs" in second.stdout
    assert second.returncode == 0

    occupied = folder / "fixmatch_da" / "seed3"
    occupied.mkdir()
    shutil.copy(folder / "comatch" / "seed1" / "config.yaml", occupied)
    third = reproduce(tmp_path, CLAIM, "--seeds", "1,2,3")
    assert third.returncode == 1
    assert "failed: fixmatch_da seed 3" in third.stdout
    assert "RunError" in third.stdout
    assert "claim holds: undecided" in third.stdout
    assert len(list(folder.glob("*/seed3/results.json"))) == 2


@pytest.mark.slow
def test_arms_start_from_what_was_prepared_for_their_seed(tmp_path):
    done = reproduce(tmp_path, CLAIM.with_name("claim_prepare_smoke.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Prepared once per seed: pretrained (pcl/smoke)" in done.stdout
    (folder,) = tmp_path.glob("outputs/reproduce/comatch/claim_prepare_smoke-*")
    results = {p.parent.parent.name for p in folder.glob("*/seed2/results.json")}
    assert results == {"pretrained", "comatch", "from_pcl", "from_pcl_permuted"}
    prepared = json.loads((folder / "pretrained" / "seed2" / "results.json").read_text())
    assert (prepared["arm"], prepared["seed"]) == ("pretrained", 2)
    log = (folder / "multirun.log").read_text()
    assert log.count("dropped: PCL's own state") == 4  # two arms, two seeds
