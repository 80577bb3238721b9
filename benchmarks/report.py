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
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from benchmarks import summary
from benchmarks.claims import CONF
from benchmarks.evidence import KINDS, Evidence, PaperRow, gather
from benchmarks.outputs import Outputs
from shared.files import own_folder, replacing

TEMPLATES = Path(__file__).parent / "templates"
MOST_PICTURES = 50  # of a showcase
REACH = 5.0  # smallest differences that matter, on each side of the picture of all claims


class Line(NamedTuple):
    """A claim in the table of all: its mean difference, its interval, what is compared and the
    control, as text. `places` are those of the interval's ends and the mean in the picture, from -1
    to 1, right where the claim points, 1 / `REACH` what matters; empty without an interval."""

    method: str
    name: str
    cells: list[str]
    verdict: str
    places: tuple[float, ...]


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
    own = {"checks": checks, "lines": lines, "paper_cells": paper_cells, "speed_rows": speed_rows}
    return environment.get_template("report.html", globals={"summary": summary, **own})


def html(methods: Sequence[Evidence], files: Outputs) -> str:
    """The page."""
    pictures = {"picture": partial(picture, files), "showcase": partial(showcase, files)}
    pictures["reach"] = REACH
    return _template().render(methods=methods, files=files, **pictures)


def lines(methods: Sequence[Evidence]) -> list[Line]:
    """All claims that stand as conf/reproduce states them today, further ones behind theirs."""
    return [
        line(evidence.method, name, stated, of)
        for evidence in methods
        for claim in evidence.claims
        if claim["standing"] == "current"
        for name, stated, of in (
            (claim["claim"]["title"], claim["claim"], claim),
            *((further["name"], further, further) for further in claim["further"]),
        )
    ]


def line(method: str, name: str, stated: Mapping[str, Any], of: Mapping[str, Any]) -> Line:
    """The line of a claim `of` which comparisons and verdict are known."""
    primary, *others = of["comparisons"]
    compared, *figures = summary.difference(primary)
    controls = [" ".join(summary.difference(control)[:2]) for control in others[:1]]
    cells, unit = [*figures, compared, *controls], REACH * stated["smallest_difference"]
    ends = [primary[key] for key in ("low", "mean", "high")]
    if None in ends or not unit > 0:
        return Line(method, name, cells, of["verdict"], ())
    sign = -1.0 if stated.get("expected_sign") == -1 else 1.0
    places = sorted(max(-1.0, min(1.0, sign * end / unit)) for end in ends)
    return Line(method, name, cells, of["verdict"], tuple(places))


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
