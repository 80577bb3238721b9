"""What the outputs folder proves of each method: the ladder of evidence, gathered from files.

Every number of the report comes from a file that a command wrote: summary.json of the claims,
outputs/parity, mutants, speed and chaos/METHOD.json, the tests' outputs/junit.xml, results.json of
the paper's rows. What is missing is said to be missing, with the command that makes it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from benchmarks.claims import (
    ClaimError,
    claim_hash,
    comparable,
    compose_arms,
    compose_experiment,
    load_claim,
)

State = Literal["proved", "partly", "failed", "open"]
KINDS = ("parity", "mutants", "speed", "chaos")


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder: how far it is proved, and by what."""

    name: str
    state: State
    detail: str


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's result table beside ours.

    Attributes:
        ours: mean of our finished runs, or None.
        note: number of runs, or `not run: needs about N GPU-hours`.
    """

    experiment: str
    table: str
    metric: str
    paper: str
    source: str
    ours: float | None
    note: str


@dataclass
class Evidence:
    """All that is known of one method.

    Attributes:
        claims: summary.json of each claim, with `folder`, `standing` (current, altered, superseded
            or unknown) added.
        files: kind -> content of outputs/KIND/METHOD.json; absent where there is none.
        rungs, paper_rows: see there.
    """

    method: str
    claims: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, Any] = field(default_factory=dict)
    paper_rows: list[PaperRow] = field(default_factory=list)
    rungs: list[Rung] = field(default_factory=list)


def gather(outputs: Path, conf: Path) -> list[Evidence]:
    """Evidence of every method that has configs or results, by name."""
    methods = {p.parent.name for p in (conf / "experiment").glob("*/*.yaml")}
    methods |= {p.stem for p in (conf / "reproduce").glob("*.yaml")}
    methods |= {p.parents[1].name for p in outputs.glob("reproduce/*/*/summary.json")}
    methods |= {p.stem for kind in KINDS for p in (outputs / kind).glob("*.json")}
    tests = _unit_tests(outputs / "junit.xml")
    results = _finished_results(outputs)
    return [_of_method(method, outputs, conf, tests, results) for method in sorted(methods)]


def _of_method(
    method: str,
    outputs: Path,
    conf: Path,
    tests: Mapping[str, bool],
    results: Sequence[Mapping[str, Any]],
) -> Evidence:
    evidence = Evidence(method)
    for path in sorted(outputs.glob(f"reproduce/{method}/*/summary.json")):
        if (summary := read_json(path)) is not None and "verdict" in summary:
            standing = _standing(summary, conf)
            evidence.claims.append({**summary, "folder": path.parent, "standing": standing})
    order = ("current", "altered", "unknown", "superseded")
    evidence.claims.sort(key=lambda claim: (order.index(claim["standing"]), claim["name"]))
    for kind in KINDS:
        if (content := read_json(outputs / kind / f"{method}.json")) is not None:
            evidence.files[kind] = content
    for path in sorted((conf / "experiment" / method).glob("*.yaml")):
        if row := _paper_row(method, path, results, conf):
            evidence.paper_rows.append(row)
    evidence.rungs = _ladder(evidence, tests)
    return evidence


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no readable one."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _standing(summary: Mapping[str, Any], conf: Path) -> str:
    """Whether a summary belongs to the claim as conf/reproduce states it today."""
    method, name = summary["method"], summary["name"]
    root = conf / "reproduce"
    path = root / f"{method}.yaml" if name == method else root / method / f"{name}.yaml"
    try:
        claim = load_claim(path)
        digest = claim_hash(claim, compose_arms(claim, summary["overrides"], conf))
    except (ClaimError, HydraException, OmegaConfBaseException):
        return "unknown"
    if digest != summary["hash"]:
        return "superseded"
    return "altered" if summary["overrides"] else "current"


def _finished_results(outputs: Path) -> list[dict[str, Any]]:
    found = ((read_json(path), path.parent) for path in sorted(outputs.rglob("results.json")))
    return [{**r, "folder": folder} for r, folder in found if r and r.get("status") == "finished"]


def _paper_row(
    method: str, path: Path, results: Sequence[Mapping[str, Any]], conf: Path
) -> PaperRow | None:
    """The row that an experiment file states, None if it states none."""
    config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    if not isinstance(config, dict) or not isinstance(config.get("paper"), dict):
        return None
    paper = config["paper"]
    experiment, metric = f"{method}/{path.stem}", str(paper.get("metric", ""))
    found = [r for r in results if r.get("experiment") == experiment]
    found = [r for r in found if metric in r.get("metrics", {})]
    as_stated = [r for r in found if _ran_as_stated(experiment, r, conf)]
    values = [float(r["metrics"][metric]) for r in as_stated]
    hours = paper.get("gpu_hours")
    needs = "an unstated number of" if hours is None else f"about {hours:g}"
    note = f"{len(values)} finished" if values else f"not run: needs {needs} GPU-hours"
    if other := len(found) - len(as_stated):
        note += f" ({other} with other settings left out)"
    spread = f"\u00a0±\u00a0{paper['std']}" if paper.get("std") is not None else ""
    return PaperRow(
        experiment=experiment,
        table=str(paper.get("table", "")),
        metric=metric,
        paper="unknown" if paper.get("value") is None else f"{paper['value']}{spread}",
        source=str(paper.get("source", "")),
        ours=sum(values) / len(values) if values else None,
        note=note,
    )


def _ran_as_stated(experiment: str, results: Mapping[str, Any], conf: Path) -> bool:
    """Whether a run's resolved config is what its experiment file says, precision apart.

    A paper row tried with fewer steps must not stand beside the paper's number.
    """
    try:
        ran = OmegaConf.load(results["folder"] / "config.yaml")
        assert isinstance(ran, DictConfig)
        stated = comparable(
            compose_experiment(experiment, (), conf),
            **{key: ran[key] for key in ("seed", "data_root", "output_dir", "precision")},
        )
        return stated == comparable(ran)
    except (OSError, HydraException, OmegaConfBaseException):
        return False


def _unit_tests(path: Path) -> dict[str, bool]:
    """Test id -> passed, from a JUnit file as pytest writes it; skipped tests are left out."""
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return {}
    return {
        f"{case.get('classname')}.{case.get('name')}": case.find("failure") is None
        and case.find("error") is None
        for case in cases
        if case.find("skipped") is None
    }


def _ladder(evidence: Evidence, tests: Mapping[str, bool]) -> list[Rung]:
    """The six rungs of DESIGN section 6."""
    method = evidence.method
    own = {name: passed for name, passed in tests.items() if _is_about(name, method)}
    protocols = {n: p for n, p in own.items() if "evaluat" in n.lower() or "protocol" in n.lower()}
    checkpoints = {n: p for n, p in own.items() if "official" in n.lower()}
    equations = {
        n: p for n, p in own.items() if ".unit." in n and n not in (protocols | checkpoints)
    }
    return [
        _tested("equations", equations, "make test"),
        _steps(method, evidence.files),
        _tested("protocols", protocols, "make test"),
        _tested("checkpoints", checkpoints, "make test"),
        _miniature(evidence),
        _paper(evidence.paper_rows),
    ]


def _is_about(test: str, method: str) -> bool:
    """Whether the test's file or its parameters name the method as a whole word."""
    name, _, parameters = test.lower().partition("[")
    place = name.rpartition(".")[0] + f"[{parameters}"
    return re.search(rf"(?<![a-z0-9]){re.escape(method)}(?![a-z0-9])", place) is not None


def _tested(name: str, tests: Mapping[str, bool], command: str) -> Rung:
    if not tests:
        return Rung(name, "open", f"no result; run {command}")
    passed = sum(tests.values())
    state: State = "proved" if passed == len(tests) else "failed"
    return Rung(name, state, f"{passed} of {len(tests)} tests")


def _steps(method: str, files: Mapping[str, Any]) -> Rung:
    parity, mutants = files.get("parity"), files.get("mutants")
    if not parity:
        return Rung("steps", "open", f"no result; run make parity METHOD={method}")
    detail = f"parity {parity.get('passed')} of {parity.get('total')}"
    if not parity.get("total") or parity.get("passed") != parity["total"]:
        return Rung("steps", "failed", detail)
    if not mutants:
        return Rung("steps", "partly", f"{detail}; mutants not run")
    detail += f", mutants {mutants.get('caught')} of {mutants.get('total')}"
    caught = mutants.get("total") and mutants.get("caught") == mutants["total"]
    return Rung("steps", "proved" if caught else "partly", detail)


def _miniature(evidence: Evidence) -> Rung:
    current = [claim for claim in evidence.claims if claim["standing"] == "current"]
    if not current:
        return Rung("miniature", "open", f"no result; run make reproduce METHOD={evidence.method}")
    detail = ", ".join(f"{claim['name']}: {claim['verdict']}" for claim in current)
    answers = {claim["verdict"] for claim in current}
    state: State = "proved" if answers == {"yes"} else "failed" if answers == {"no"} else "partly"
    return Rung("miniature", state, detail)


def _paper(rows: Sequence[PaperRow]) -> Rung:
    run = sum(row.ours is not None for row in rows)
    if not rows:
        return Rung("paper rows", "open", "no row configured")
    state: State = "proved" if run == len(rows) else "partly" if run else "open"
    return Rung("paper rows", state, f"{run} of {len(rows)} run")
