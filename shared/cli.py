"""The console script `tenfold`: what it can do, in a second; whatever trains is imported later.

Nothing here imports torch. Wrong arguments are refused before anything that does is loaded.
"""

import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from shared.files import read_json
from shared.predict import USAGE

CONF = Path(__file__).resolve().parent.parent / "conf"
WELCOME = """\
tenfold {version}: ten vision, language and code papers, one lab.

  tenfold experiment=NAME [key=value ...]    train and evaluate a run; the same command continues it
  tenfold -m experiment=A,B seed=1,2,3       a sweep (hydra/launcher=local, slurm or ray)
  tenfold predict checkpoint=FILE images=DIR a folder of pictures through a trained model
  tenfold list [METHOD]                      what can be run, with the paper's figures and costs
  tenfold --cfg job experiment=NAME          what a run would use
  tenfold-search index DIR                   search code in plain words: tenfold-search --help

Try, on any laptop:
  tenfold experiment=comatch/smoke           ten seconds, to see that everything works
  tenfold list comatch                       CoMatch's rows
  make reproduce METHOD=comatch              does the paper's claim hold? (some minutes)
"""


def main() -> None:
    """Answer what needs no torch, and hand everything else on."""
    arguments = sys.argv[1:]
    try:
        if not arguments or {"-h", "--help"} & set(arguments[:1]):
            print(WELCOME.format(version=metadata.version("tenfold")), end="")
        elif arguments[0] in ("--version", "-V"):
            print(f"tenfold {metadata.version('tenfold')}")
        elif arguments[0] == "list":
            list_rows(arguments[1:])
        elif arguments[0] == "predict":
            _predict(arguments[1:])
        else:
            from shared.overrides import check_overrides

            check_overrides(arguments)
            from shared.run import launch

            launch()
    except KeyboardInterrupt:
        print("tenfold: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # as of `| head`
        sys.stderr.close()
        sys.exit(1)


def _predict(arguments: Sequence[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        print(f"{USAGE}\n\n{(CONF / 'predict.yaml').read_text()}", end="")
        return
    from shared.overrides import OverrideError, validate

    try:
        validate(arguments, "predict")
    except OverrideError as error:
        _refuse(f"tenfold predict: {error}")
    given = {argument.partition("=")[0] for argument in arguments}
    if missing := [key for key in ("checkpoint", "images") if key not in given]:
        _refuse(f"tenfold predict: {' and '.join(missing)} not given; usage: {USAGE}")
    from shared.predict.command import main as predict

    predict(arguments, checked=True)


def list_rows(arguments: Sequence[str]) -> None:
    """Print the methods, or one method's experiments: those of the paper's tables, then the others.

    Exits with status 2 and one line for a method that does not exist.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    methods = sorted(p.name for p in (CONF / "experiment").iterdir() if p.is_dir())
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    if not arguments:
        table = Table("method", "rows of the paper", "other experiments", box=box.SIMPLE_HEAD)
        for method in methods:
            found = list(_experiments(method))
            rows = sum(bool(paper) for _, paper, _ in found)
            table.add_row(method, str(rows), str(len(found) - rows))
        console.print(table)
        console.print("tenfold list METHOD shows them")
        return
    method = arguments[0]
    if method not in methods or len(arguments) > 1:
        _refuse(f"tenfold list: {' '.join(arguments)!r} is no method; one of {', '.join(methods)}")
    table = Table("experiment=", "table", "metric", "paper", "GPU-hours", "finished here")
    table.box = box.SIMPLE_HEAD
    others = []
    for name, paper, finished in _experiments(method):
        if not paper:
            others.append(name)
            continue
        value = "unknown" if paper.get("value") is None else f"{paper['value']}"
        spread = f" ± {paper['std']}" if paper.get("std") is not None else ""
        cost = "unknown" if paper.get("gpu_hours") is None else f"about {paper['gpu_hours']:g}"
        named = [str(paper.get(key, "")) for key in ("table", "metric")]
        table.add_row(name, *named, value + spread, cost, str(finished or "-"))
    console.print(table)
    console.print(f"others: {', '.join(others)}", soft_wrap=True)


def _experiments(method: str) -> Iterator[tuple[str, dict[str, Any] | None, int]]:
    """Name, what it says of the paper, and the number of finished runs in its usual place."""
    for path in sorted((CONF / "experiment" / method).glob("*.yaml")):
        if path.stem.endswith("_base"):
            continue
        config = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        paper = config.get("paper") if isinstance(config, dict) else None
        name = f"{method}/{path.stem}"
        yield name, paper if isinstance(paper, dict) else None, _finished(name)


def _finished(name: str) -> int:
    count = 0
    for path in Path("outputs", name).glob("seed*/results.json"):
        try:
            results = read_json(path)
        except (OSError, ValueError):
            continue
        count += isinstance(results, dict) and results.get("status") == "finished"
    return count


def _refuse(said: str) -> None:
    print(said, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
