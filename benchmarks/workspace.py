"""A workspace of W&B for a claim, from conf/reproduce: its arms side by side, as in the report.

    python -m benchmarks.workspace METHOD [--claim NAME] --entity ME     creates it
    python -m benchmarks.workspace METHOD [--claim NAME] --json FILE     writes it, offline

It needs `pip install -e '.[wandb]'`, and the first form an API key. Runs are those of the claim's
hash; each arm is one group, whose mean and standard deviation are over seeds.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.claims import ClaimError, claim_hash, claim_path, compose_arms, load_claim

PROJECT = "tenfold"  # as conf/logger/default.yaml has it


def workspace(method: str, name: str | None, entity: str, project: str) -> Any:
    """The workspace of a claim, not yet on any server."""
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as ws

    claim = load_claim(claim_path(method, name))
    digest = claim_hash(claim, compose_arms(claim))
    by_arm: Any = {"groupby": "arm", "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    judged = [claim.primary.metric, *(further.metric for further in claim.further)]
    bars = [
        reports.BarPlot(title=metric, metrics=[metric], orientation="v", **by_arm)
        for metric in dict.fromkeys(judged)
    ]
    curve = reports.LinePlot(title=claim.curve, x="step", y=[claim.curve], **by_arm)
    losses = reports.LinePlot(title="losses", x="step", metric_regex="train/loss.*", **by_arm)
    about = reports.MarkdownPanel(
        markdown=f"# {claim.title}\n\n{claim.claim}\n\n{claim.source}\n\n"
        f"`{claim.primary.method}` against `{claim.primary.baseline}`; control `{claim.control}`."
    )
    sections = [
        ws.Section("The claim", panels=[about, *bars], is_open=True),
        ws.Section("Learning curves", panels=[curve, losses], is_open=True),
    ]
    runs = ws.RunsetSettings(
        filters=ws.And(ws.Config("claim.hash") == digest),
        groupby=[ws.Config("arm")],
        order=[ws.Ordering(ws.Config("seed"), ascending=True)],
    )
    title = f"{method} {name or method} {digest[:8]}"
    return ws.Workspace(entity, project, title, sections=sections, runset_settings=runs)


def main(argv: Sequence[str] | None = None) -> int:
    """Create the workspace, or write it to a file; returns the exit status."""
    parser = argparse.ArgumentParser(description="A claim's workspace of W&B.")
    parser.add_argument("method")
    parser.add_argument("--claim")
    parser.add_argument("--project", default=PROJECT)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--entity", help="the user or team whose project it is")
    where.add_argument("--json", type=Path, help="write it here, without an account")
    given = parser.parse_args(argv)
    try:
        made = workspace(given.method, given.claim, given.entity or "offline", given.project)
    except ModuleNotFoundError as error:
        print(f"{error.name} is not installed: pip install -e '.[wandb]'", file=sys.stderr)
        return 2
    except ClaimError as error:
        print(error, file=sys.stderr)
        return 2
    if given.json:
        given.json.write_text(made._to_model().model_dump_json(by_alias=True, indent=1))
        print(given.json)
    else:
        print(made.save().url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
