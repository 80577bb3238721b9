"""A claim's workspace of W&B, built without an account."""

import json

import pytest

from benchmarks import workspace
from benchmarks.claims import claim_hash, claim_path, compose_arms, load_claim
from shared.experiments import CONF

CLAIMS = sorted(
    path.relative_to(CONF / "reproduce").with_suffix("").parts
    for path in (CONF / "reproduce").rglob("*.yaml")
)


@pytest.fixture(autouse=True)
def package():
    pytest.importorskip("wandb_workspaces")


@pytest.mark.parametrize("parts", [("albef",), ("cascode",)], ids="/".join)
def test_a_claims_workspace_shows_its_runs_by_arm(parts, tmp_path):
    file = tmp_path / "workspace.json"
    assert workspace.main([*parts, "--json", str(file)]) == 0
    claim = load_claim(claim_path(*parts, None))
    digest = claim_hash(claim, compose_arms(claim))
    made = json.loads(file.read_text())
    text = json.dumps(made)
    assert made["project"] == "tenfold"
    assert digest[:8] in made["displayName"]
    assert digest in json.dumps(made["spec"]["section"]["runSets"])  # other runs are left out
    assert claim.claim in text
    sections = {s["name"]: s for s in made["spec"]["section"]["panelBankConfig"]["sections"]}
    bars, curves = (
        [p["config"] for p in sections[name]["panels"] if p["viewType"] == kind]
        for name, kind in (("The claim", "Bar Chart"), ("Learning curves", "Run History Line Plot"))
    )
    assert bars[0]["metrics"] == [claim.primary.metric]
    assert curves[0]["metrics"] == [claim.curve]
    assert {panel["groupBy"] for panel in (*bars, *curves)} == {"arm.value"}


@pytest.mark.slow
@pytest.mark.parametrize("parts", CLAIMS, ids="/".join)
def test_every_claim_has_one(parts, tmp_path):
    method, *name = parts
    given = ["--claim", *name] if name else []
    assert workspace.main([method, *given, "--json", str(tmp_path / "w.json")]) == 0


def test_an_unknown_claim_is_one_line(tmp_path, capsys):
    assert workspace.main(["comatch", "--claim", "nothing", "--json", str(tmp_path / "w")]) == 2
    assert "nothing" in capsys.readouterr().err
