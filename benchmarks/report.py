"""The comparison page: `python -m benchmarks.report` writes index.html and report.md.

The page is one file that opens anywhere: styles inline, pictures as base64, no script, and a
content security policy that forbids the browser to load anything.
"""

import argparse
import base64
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks import summary
from benchmarks.claims import CONF
from benchmarks.evidence import KINDS, Evidence, PaperRow, gather

TEMPLATES = Path(__file__).parent / "templates"


def build(outputs: Path = Path("outputs"), conf: Path = CONF) -> Path:
    """Gathers all evidence and writes both forms of the report.

    Args:
        outputs: root of the results.
        conf: root of the configs, for the claims and the paper's rows.

    Returns:
        The HTML page.
    """
    folder = outputs / "report"
    folder.mkdir(parents=True, exist_ok=True)
    methods = gather(outputs, conf)
    page = folder / "index.html"
    page.write_text(html(methods))
    (folder / "report.md").write_text(markdown(methods))
    return page


def html(methods: Sequence[Evidence]) -> str:
    """The page; everything that came from a file is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "picture": picture,
        "arm_rows": summary.arm_rows,
        "comparison_rows": summary.comparison_rows,
        "further_rows": summary.further_rows,
        "baseline_lines": summary.baseline_lines,
        "showcase": showcase,
        "metric_rows": summary.metric_rows,
        "preparation_lines": summary.preparation_lines,
        "checks": checks,
        "paper_cells": paper_cells,
        "speed_rows": speed_rows,
    }
    return environment.get_template("report.html").render(methods=methods)


def picture(claim: Mapping[str, Any], name: str = "learning_curves") -> str:
    """data: URI of a claim's picture; empty if there is none."""
    path = claim["folder"] / f"{name}.png"
    if not path.is_file():
        return ""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def showcase(claim: Mapping[str, Any]) -> list[str]:
    """data: URIs of the pictures that `tenfold predict` drew of a claim's method."""
    folder = claim["folder"] / "showcase"
    names = ["contact_sheet", *sorted(path.stem for path in folder.glob("overlay_*.png"))]
    return [uri for name in names if (uri := picture(claim, f"showcase/{name}"))]


def checks(evidence: Evidence) -> list[tuple[str, str]]:
    """What parity, mutants, speed and chaos found, one line each, or the command that finds out."""
    return [(kind, _check(kind, evidence)) for kind in KINDS]


def _check(kind: str, evidence: Evidence) -> str:
    content = evidence.files.get(kind)
    if content is None:
        return f"not run: make {kind} METHOD={evidence.method}"
    match kind:
        case "parity":
            return f"{content.get('passed', '?')} of {content.get('total', '?')} cases"
        case "mutants":
            return f"caught {content.get('caught', '?')} of {content.get('total', '?')}"
        case "speed":
            return f"ratio {_plain(content.get('ratio'))} (ours/peer, lower is better), " + (
                f"interquartile range {_plain(content.get('iqr'))}"
            )
    if "first_difference" not in content:
        return _plain(content)
    kills, difference = content.get("kills", "?"), content["first_difference"]
    moments = []
    if isinstance(kills, list):
        moments = [str(moment) for kill in kills if (moment := kill.get("moment"))]
        kills = len(kills)
    outcome = "identical" if difference is None else f"first difference: {_plain(difference)}"
    return f"{outcome} after {kills} kills" + (f" (at {', '.join(moments)})" if moments else "")


def _plain(value: Any) -> str:
    """A JSON value as a reader would write it."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " to ".join(map(_plain, value)) if len(value) == 2 else ", ".join(map(_plain, value))
    return "?" if value is None else str(value)


def paper_cells(rows: Sequence[PaperRow]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of the paper's rows beside ours."""
    header = ["experiment", "table", "metric", "paper", "ours", "state"]
    return header, [
        [row.experiment, row.table, row.metric, row.paper, summary.number(row.ours), row.note]
        for row in rows
    ]


def speed_rows(evidence: Evidence) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the speed table, whatever columns the benchmark wrote."""
    found = evidence.files.get("speed", {}).get("rows") or []
    rows = [row for row in found if isinstance(row, dict)]
    header = list(dict.fromkeys(key for row in rows for key in row))
    return header, [[_plain(row[key]) if key in row else "" for key in header] for row in rows]


def markdown(methods: Sequence[Evidence]) -> str:
    """The same report in Markdown."""
    parts = ["# Tenfold: how far each method is proved"]
    names = ["method", *(rung.name for rung in methods[0].rungs)] if methods else []
    ladder = [[e.method, *(f"{rung.state}: {rung.detail}" for rung in e.rungs)] for e in methods]
    parts.append(summary.markdown_table(names, ladder) if methods else "No method yet.")
    for evidence in methods:
        parts.append(f"# {evidence.method}")
        for claim in evidence.claims:
            parts.append(summary.markdown(claim).strip())
            if claim["standing"] != "current":
                parts.append(f"This is not the claim as it stands: {claim['standing']}.")
        parts.append("\n".join(f"- {kind}: {said}" for kind, said in checks(evidence)))
        if evidence.files.get("speed", {}).get("rows"):
            parts.append(summary.markdown_table(*speed_rows(evidence)))
        if evidence.paper_rows:
            parts.append(summary.markdown_table(*paper_cells(evidence.paper_rows)))
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: builds the report and prints where it lies."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    options = parser.parse_args(arguments)
    page = build(options.outputs)
    print(f"report: {page} and {page.with_name('report.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
