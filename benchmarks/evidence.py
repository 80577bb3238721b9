"""What the outputs folder proves of each method: the ladder of evidence, gathered from files.

Every number of the report comes from a file that a command wrote: summary.json of the claims,
outputs/parity, mutants, speed and chaos/METHOD.json, the tests' outputs/junit.xml, results.json of
the paper's rows. What is missing is said to be missing, with the command that makes it.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple
from xml.etree import ElementTree

import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from benchmarks import claims
from benchmarks.outputs import CHECKS, RESULTS, SUMMARY, Outputs
from shared.composing import compose_experiment
from shared.experiments import Line, table
from shared.training.run_folder import parse_config

State = Literal["proved", "partly", "failed", "open"]
KINDS = tuple(CHECKS)
RUNGS = yaml.safe_load(Path(__file__).with_name("rungs.yaml").read_text())
LONGEST_OVERRIDE = 500  # letters


class Rung(NamedTuple):
    """One rung of the ladder: how far it is proved, and by what."""

    name: str
    state: State
    detail: str


class PaperRow(NamedTuple):
    """A row of the paper's result table beside `ours`, the mean of our finished runs if there are
    some; `note` has their number, or `not run: needs about N GPU-hours`."""

    experiment: str
    table: str
    metric: str
    paper: str
    ours: float | None
    note: str


class Evidence(NamedTuple):
    """All that is known of one method: summary.json of each claim, with `folder` and `standing`
    (current, altered, superseded or unknown) added; kind -> content of outputs/KIND/METHOD.json;
    the paper's rows; and the six rungs that README's "How far is a package proved?" explains."""

    method: str
    claims: list[dict[str, Any]]
    files: dict[str, Any]
    paper_rows: list[PaperRow]
    rungs: list[Rung]


def gather(files: Outputs, conf: Path) -> list[Evidence]:
    """Evidence of every method that has configs or results, by name."""
    outputs = files.root
    methods = {p.parent.name for p in (conf / "experiment").glob("*/*.yaml")}
    methods |= {p.stem for folder in ("rows", "reproduce") for p in (conf / folder).glob("*.yaml")}
    methods |= {p.parent.name for p in outputs.glob("reproduce/*/*") if p.is_dir()}
    methods |= {p.stem for kind in KINDS for p in (outputs / kind).glob("*.json")}
    tests = files.read(outputs / "junit.xml", _unit_tests) or {}
    results = _finished_results(files)
    return [_of_method(method, files, conf, tests, results) for method in sorted(methods)]


def _of_method(
    method: str,
    files: Outputs,
    conf: Path,
    tests: Mapping[str, bool],
    results: Sequence[Mapping[str, Any]],
) -> Evidence:
    summaries = _claims(method, files, conf)
    contents = ((k, files.json(files.root / k / f"{method}.json", CHECKS[k])) for k in KINDS)
    found = {kind: content for kind, content in contents if content}
    paper_rows = [
        _paper_row(method, name, line, results, conf, files)
        for name, line in table(method, conf).items()
        if "metric" in line
    ]
    equations, protocols, checkpoints = (
        _tested(name, method, tests) for name in ("equations", "protocols", "checkpoints")
    )
    steps, miniature = _steps(method, found), _miniature(method, summaries)
    ladder = [equations, steps, protocols, checkpoints, miniature, _paper(paper_rows)]
    return Evidence(method, summaries, found, paper_rows, ladder)


def _claims(method: str, files: Outputs, conf: Path) -> list[dict[str, Any]]:
    """Summaries of the method's claims, those that hold today first."""
    found = []
    for folder in sorted((files.root / "reproduce" / method).glob("*")):
        if summary := files.json(folder / "summary.json", SUMMARY):
            if summary["method"] == method:
                added = {"folder": folder, "standing": _standing(summary, conf)}
                found.append({"further": [], **summary, **added})
            else:
                files.refuse(folder / "summary.json", "it is of another method")
    order = ("current", "altered", "unknown", "superseded")
    return sorted(found, key=lambda claim: (order.index(claim["standing"]), claim["name"]))


def _standing(summary: Mapping[str, Any], conf: Path) -> str:
    """Whether a summary belongs to the claim as conf/reproduce states it today."""
    method, name, overrides = summary["method"], summary["name"], summary["overrides"]
    for override in overrides:  # sets a value, and neither Hydra itself nor what it reads
        hydra = override.lstrip("+~").startswith("hydra")
        if hydra or "${" in override or len(override) > LONGEST_OVERRIDE:
            return "unknown"
    try:
        claim = claims.load_claim(claims.claim_path(method, name, conf))
        digest = claims.claim_hash(claim, claims.compose_arms(claim, overrides, conf))
    except (claims.ClaimError, HydraException, OmegaConfBaseException, RecursionError):
        return "unknown"
    if digest != summary["hash"]:
        return "superseded"
    return "altered" if overrides else "current"


def _finished_results(files: Outputs) -> list[dict[str, Any]]:
    walk = os.walk(files.root)
    folders = sorted(Path(f) for f, inner, names in walk if "results.json" in [*inner, *names])
    found = ((files.json(folder / "results.json", RESULTS), folder) for folder in folders)
    return [{**r, "folder": folder} for r, folder in found if r and r["status"] == "finished"]


def _paper_row(
    method: str,
    name: str,
    paper: Line,
    results: Sequence[Mapping[str, Any]],
    conf: Path,
    files: Outputs,
) -> PaperRow:
    metric = str(paper["metric"])
    experiments = [f"{method}/{source}" for source in paper.get("of", [name])]
    values: dict[str, list[float]] = {}
    other = 0
    for experiment in experiments:
        found = [r for r in results if r.get("experiment") == experiment]
        found = [r for r in found if math.isfinite(r["metrics"].get(metric, math.nan))]
        as_stated = [r for r in found if _ran_as_stated(experiment, r["folder"], conf, files)]
        values[experiment] = [float(r["metrics"][metric]) for r in as_stated]
        other += len(found) - len(as_stated)
    finished = sum(map(len, values.values()))
    hours = paper.get("gpu_hours")
    needs = "an unstated number of" if hours is None else f"about {hours:g}"
    note = f"{finished} finished" if finished else f"not run: needs {needs} GPU-hours"
    if lacking := [experiment for experiment, found in values.items() if finished and not found]:
        note += f", none of {', '.join(lacking)}"
    if other:
        note += f" ({other} with other settings left out)"
    spread = f"\u00a0±\u00a0{paper['std']}" if paper.get("std") is not None else ""
    value = "unknown" if paper.get("value") is None else f"{paper['value']}{spread}"
    ours = fmean(map(fmean, values.values())) if all(values.values()) else None
    shown = f"{method}/{name}" if "of" not in paper else f"of {', '.join(experiments)}"
    return PaperRow(shown, str(paper.get("table", "")), metric, value, ours, note)


def _ran_as_stated(experiment: str, folder: Path, conf: Path, files: Outputs) -> bool:
    """Whether a run's resolved config is what its experiment file says, precision apart."""

    def read(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
        ran = OmegaConf.create(parse_config(content.decode("utf-8-sig")))
        keys = ("seed", "data_root", "output_dir", "precision")
        return {key: ran[key] for key in keys}, claims.comparable(ran)

    if (found := files.read(folder / "config.yaml", read)) is None:
        return False
    values, plain = found
    try:
        return claims.comparable(compose_experiment(experiment, (), conf), **values) == plain
    except (HydraException, OmegaConfBaseException):
        return False


def _unit_tests(content: bytes) -> dict[str, bool]:
    """Test id -> passed, from a JUnit file as pytest writes it; skipped tests are left out."""
    text = content.decode("utf-8-sig")
    if "<!DOCTYPE" in text:
        raise ValueError("it has a DOCTYPE, whose entities can grow without end")
    return {
        f"{case.get('classname')}.{case.get('name')}": case.find("failure") is None
        and case.find("error") is None
        for case in ElementTree.fromstring(text).iter("testcase")
        if case.find("skipped") is None
    }


def _tested(name: str, method: str, tests: Mapping[str, bool]) -> Rung:
    named = RUNGS.get(method, {"equations": [f"unit.test_{method}"]}).get(name, [])
    modules = [f"tests.{module}." for module in named]
    results = [passed for test, passed in tests.items() if test.startswith(tuple(modules))]
    if not results:
        return Rung(name, "open", "no result; run make test")
    state: State = "proved" if all(results) else "failed"
    return Rung(name, state, f"{sum(results)} of {len(results)} tests")


def _steps(method: str, files: Mapping[str, Any]) -> Rung:
    parity, mutants = files.get("parity"), files.get("mutants")
    if not parity:
        return Rung("steps", "open", f"no result; run make parity METHOD={method}")
    detail = f"parity {parity['passed']} of {parity['total']}"
    if not parity["total"] or parity["passed"] != parity["total"]:
        return Rung("steps", "failed", detail)
    if not mutants:
        return Rung("steps", "partly", f"{detail}; mutants not run")
    caught = mutants["total"] and mutants["caught"] == mutants["total"]
    detail += f", mutants {mutants['caught']} of {mutants['total']}"
    return Rung("steps", "proved" if caught else "partly", detail)


def _miniature(method: str, summaries: Sequence[Mapping[str, Any]]) -> Rung:
    current = [claim for claim in summaries if claim["standing"] == "current"]
    if not current:
        return Rung("miniature", "open", f"no result; run make reproduce METHOD={method}")
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
