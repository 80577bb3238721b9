"""The comparison page: `python -m benchmarks.report` writes index.html.

The page is one file that opens anywhere: styles inline, pictures as base64, no script, and a
content security policy that forbids the browser to load anything. All from files is escaped.
"""

import argparse
import base64
import sys
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from benchmarks import summary
from benchmarks.claims import CONF
from benchmarks.evidence import KINDS, Evidence, PaperRow, gather
from benchmarks.outputs import Outputs
from shared.files import own_folder, replacing

TEMPLATES = Path(__file__).parent / "templates"
MOST_PICTURES = 50  # of a showcase


def build(outputs: Path = Path("outputs"), conf: Path = CONF) -> Path:
    """Writes the page of all evidence below `outputs` and `conf`, and returns its path."""
    folder = own_folder(outputs / "report")
    files = Outputs(outputs)
    methods = gather(files, conf)
    with replacing(folder / "index.html") as file:
        file.write(html(methods, files).encode())
    return folder / "index.html"


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own = {"checks": checks, "paper_cells": paper_cells, "speed_rows": speed_rows}
    return environment.get_template("report.html", globals={"summary": summary, **own})


def html(methods: Sequence[Evidence], files: Outputs) -> str:
    """The page."""
    pictures = {"picture": partial(picture, files), "showcase": partial(showcase, files)}
    return _template().render(methods=methods, files=files, **pictures)


def picture(files: Outputs, claim: Mapping[str, Any], name: str = "learning_curves") -> str:
    """data: URI of a claim's picture; empty if there is none."""
    content = files.picture(claim["folder"] / f"{name}.png")
    return "data:image/png;base64," + base64.b64encode(content).decode() if content else ""


def showcase(files: Outputs, claim: Mapping[str, Any]) -> list[str]:
    """data: URIs of the pictures that `tenfold predict` drew of a claim's method."""
    folder = claim["folder"] / "showcase"
    if folder.is_symlink():
        files.refuse(folder, "it is a link, which is not followed")
        return []
    names = ["contact_sheet", *sorted(path.stem for path in folder.glob("overlay_*.png"))]
    uris = (picture(files, claim, f"showcase/{name}") for name in names[:MOST_PICTURES])
    return [uri for uri in uris if uri]


def checks(evidence: Evidence) -> list[tuple[str, str]]:
    """What parity, mutants, speed and chaos found, one line each, or the command that finds out."""
    not_run = {kind: f"not run: make {kind} METHOD={evidence.method}" for kind in KINDS}
    found = {kind: _found(kind, content) for kind, content in evidence.files.items()}
    return list((not_run | found).items())


def _found(kind: str, content: Mapping[str, Any]) -> str:
    match kind:
        case "parity":
            return f"{content['passed']} of {content['total']} cases"
        case "mutants":
            return f"caught {content['caught']} of {content['total']}"
        case "speed":
            ratio, spread = _plain(content.get("ratio")), _plain(content.get("iqr"))
            return f"ratio {ratio} (ours/peer, lower is better), interquartile range {spread}"
    kills, difference = content.get("kills", "?"), content["first_difference"]
    moments = []
    if isinstance(kills, list):
        moments = [_plain(moment) for kill in kills if (moment := kill.get("moment"))]
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
    return header, [[*row[:4], summary.number(row.ours), row.note] for row in rows]


def speed_rows(evidence: Evidence) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the speed table, whatever columns the benchmark wrote."""
    found = evidence.files.get("speed", {}).get("rows") or []
    rows = [row for row in found if isinstance(row, dict)]
    header = list(dict.fromkeys(key for row in rows for key in row))
    return header, [[_plain(row[key]) if key in row else "" for key in header] for row in rows]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    options = parser.parse_args(arguments)
    print(f"report: {build(options.outputs)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
