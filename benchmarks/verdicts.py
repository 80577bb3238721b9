"""Keeps in docs/verdicts.yaml what the claims were found to be, and writes README's table from it.

    python -m benchmarks.verdicts [--outputs outputs] [--replace]

Takes the verdict of every claim below the outputs folder that stands as conf/reproduce states it
today. The first run of a config counts: another one, which may round otherwise, is told of and not
taken. What was kept of others stays, and is shown as of an earlier config once its hash is. A test
compares README with the file.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks import claims, summary
from benchmarks.evidence import gather
from benchmarks.outputs import Outputs
from shared.experiments import CONF
from shared.files import replacing
from shared.provenance import ROOT

KEPT, README = ROOT / "docs" / "verdicts.yaml", ROOT / "README.md"
BEGIN, END = "<!-- verdicts: python -m benchmarks.verdicts -->\n", "<!-- end of verdicts -->"
HEADER = ["command", "claim in the miniature", "difference, 95 % interval", "control", "verdict"]
SHORT = 8  # digits of a hash


def found_in(outputs: Path, conf: Path = CONF) -> dict[str, dict[str, Any]]:
    """Claim -> figures, of those below `outputs` that stand as `conf` states them."""
    found = {}
    for evidence in gather(Outputs(outputs), conf):
        for claim in evidence.claims:
            if claim["standing"] == "current":
                own = claim["name"] == evidence.method
                name = evidence.method if own else f"{evidence.method} {claim['name']}"
                primary, *others = [
                    {key: _rounded(pair[key]) for key in ("mean", "low", "high")}
                    for pair in claim["comparisons"][:2]
                ]
                found[name] = {
                    "hash": claim["hash"][:SHORT],
                    "verdict": claim["verdict"],
                    "difference": primary,
                    "control": others[0] if others else None,
                    "commits": sorted({str(c)[:SHORT] for c in claim["git_commits"]}),
                }
    return found


def hashes(names: Sequence[str], conf: Path = CONF) -> dict[str, str]:
    """Claim -> its hash today; "" of one that is no more."""
    known = {}
    for name in names:
        method, _, other = name.partition(" ")
        try:
            claim = claims.load_claim(claims.claim_path(method, other or None, conf))
            known[name] = claims.claim_hash(claim, claims.compose_arms(claim, (), conf))[:SHORT]
        except claims.ClaimError:
            known[name] = ""
    return known


def rendered(kept: Mapping[str, Mapping[str, Any]], today: Mapping[str, str]) -> str:
    """README's table of what is kept; `today` are the claims' hashes."""
    rows = []
    for name, entry in kept.items():
        method, _, other = name.partition(" ")
        command = f"`METHOD={method}{f' CLAIM={other}' if other else ''}`"
        verdict = entry["verdict"]
        if entry["hash"] != today.get(name):
            verdict += " (of an earlier config)"
        figures = [_interval(entry[key]) for key in ("difference", "control")]
        rows.append([command, entry["says"], *figures, verdict])
    lines = [HEADER, ["---"] * len(HEADER), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def updated(text: str, shown: str) -> str:
    """README with another table; ValueError if it has no place for it."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README has no lines {BEGIN.strip()} and {END}")
    return f"{before}{begin}\n{shown.strip()}\n\n{end}{after}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _interval(pair: Mapping[str, Any] | None) -> str:
    if pair is None or pair["mean"] is None:
        return "none"
    mean, low, high = (summary.number(pair[key], "+.2f") for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdicts", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    parser.add_argument("--replace", action="store_true", help="take later runs, too")
    options = parser.parse_args(arguments)
    kept: dict[str, dict[str, Any]] = yaml.safe_load(KEPT.read_text())
    found = found_in(options.outputs)
    for name, entry in found.items():
        before = kept.get(name, {})
        if before.get("hash") != entry["hash"] or options.replace:
            kept[name] = {"says": before.get("says", name), **entry}
        elif entry["difference"] != before["difference"]:
            told = [f"{of['verdict']}, {_interval(of['difference'])}" for of in (before, entry)]
            print(f"{name}: {told[0]} stays; this run: {told[1]}")
    kept = dict(sorted(kept.items()))
    with replacing(KEPT) as file:
        file.write(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=200).encode())
    shown = updated(README.read_text(), rendered(kept, hashes(list(kept))))
    with replacing(README) as file:
        file.write(shown.encode())
    print(f"{README}: {len(found)} verdicts of {options.outputs}, {len(kept)} in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
