"""The console script `tenfold`: what it can do, in a second; whatever trains is imported later.

Nothing here imports torch. Wrong arguments are refused before anything that does is loaded.
"""

import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from shared.demo import USAGE as DEMO_USAGE
from shared.experiments import CONF, Line, rows
from shared.experiments import table as lines_of
from shared.files import read_json
from shared.predict import USAGE, missing

WELCOME = """\
tenfold {version}: ten vision, language and code papers, one lab.

  tenfold experiment=NAME [key=value ...]    train and evaluate a run; the same command continues it
  tenfold -m experiment=A,B seed=1,2,3       a sweep (hydra/launcher=local, slurm or ray)
  tenfold predict checkpoint=FILE images=DIR a folder of pictures, or videos=DIR, through a model
  tenfold demo FILE... [images=DIR]          a local page: captions, questions, matches, objects
  tenfold list [METHOD]                      what can be run, with the paper's figures and costs
  tenfold --cfg job experiment=NAME          what a run would use
  tenfold wandb-sync [FOLDER]                upload to W&B what runs have logged without a network
  tenfold-search index DIR                   search code in plain words: tenfold-search --help
  tenfold-capfilt run INPUT                  caption images and filter texts: tenfold-capfilt --help
  tenfold-detect IMAGES --classes NAMES      objects of classes that you name: tenfold-detect --help

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
            try:
                list_rows(arguments[1:])
            except ValueError as error:  # a damaged table
                _refuse(f"tenfold list: {error}")
        elif arguments[0] == "predict":
            predict(arguments[1:])
        elif arguments[0] == "demo":
            demo(arguments[1:])
        elif arguments[0] == "wandb-sync":
            from shared.training.wandb_sync import main as sync

            sys.exit(sync(arguments[1:]))
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


def predict(arguments: Sequence[str]) -> None:
    """Refuse what is misspelt or missing, then hand on."""
    if not _checked("predict", USAGE, arguments, arguments):
        return
    given = {argument.partition("=")[0] for argument in arguments}
    if lacking := missing(given):
        _refuse(f"tenfold predict: {lacking} not given; usage: {USAGE}")
    from shared.predict.command import main

    main(arguments)


def demo(arguments: Sequence[str]) -> None:
    """Refuse what is misspelt, then hand on; what sets no key names a checkpoint or a method."""
    names = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    if not _checked("demo", DEMO_USAGE, arguments, overrides):
        return
    from shared.demo.command import main

    main(names, overrides)


def _checked(command: str, usage: str, arguments: Sequence[str], overrides: Sequence[str]) -> bool:
    """Whether to go on: overrides that are misspelt end the program, and help is printed."""
    if {"-h", "--help"} & set(arguments):
        print(f"{usage}\n\n{(CONF / f'{command}.yaml').read_text()}", end="")
        return False
    from shared.overrides import OverrideError, validate

    try:
        validate(overrides, command)
    except OverrideError as error:
        _refuse(f"tenfold {command}: {error}")
    return True


def list_rows(arguments: Sequence[str]) -> None:
    """Print the methods, or one method's rows and its other experiments."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    methods = sorted(p.name for p in (CONF / "experiment").iterdir() if p.is_dir())
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    if not arguments:
        table = Table("method", "rows of the paper", "other experiments", box=box.SIMPLE_HEAD)
        for method in methods:
            lines = rows(method)
            of_paper = sum("metric" in line for line in lines.values())
            others = len(lines) - of_paper + len(_files(method))
            table.add_row(method, str(of_paper), str(others))
        console.print(table)
        console.print("tenfold list METHOD shows them")
        return
    method = arguments[0]
    if method not in methods or len(arguments) > 1:
        _refuse(f"tenfold list: {' '.join(arguments)!r} is no method; one of {', '.join(methods)}")
    header = ("experiment=", "table", "metric", "paper", "GPU-hours", "GB", "finished here")
    table = Table(*header, box=box.SIMPLE_HEAD)
    for name, line in lines_of(method).items():
        value = _figure(line, "value") if "metric" in line else "-"
        if line.get("std") is not None:
            value += f" ± {line['std']}"
        about = str(line.get("table") or line.get("about", ""))
        hours, memory = _figure(line, "gpu_hours", "about "), _figure(line, "memory_gb")
        run, metric = f"{method}/{name}", line.get("metric", "-")
        if sources := line.get("of"):
            done = min((_finished(f"{method}/{source}") for source in sources), key=len)
            shown = sources[0] if len(sources) == 1 else f"{len(sources)} rows"
            table.add_row(f"  of {shown}", about, metric, value, "", "", done)
        else:
            table.add_row(run, about, metric, value, hours, memory, _finished(run))
    console.print(table)
    console.print(f"others: {', '.join(_files(method))}", soft_wrap=True)
    console.print(f"arms of claims: experiment=reproduce/{method}/ARM, conf/reproduce/{method}*")


def _files(method: str) -> list[str]:
    """Experiments with a file of their own, without those that others stand on."""
    names = sorted(path.stem for path in (CONF / "experiment" / method).glob("*.yaml"))
    return [f"{method}/{name}" for name in names if not name.endswith("_base")]


def _figure(line: Line, key: str, before: str = "") -> str:
    return "unknown" if line.get(key) is None else f"{before}{line[key]}"


def _finished(experiment: str) -> str:
    """Number of finished runs in an experiment's usual place, "-" for none."""
    count = 0
    for path in Path("outputs", experiment).glob("seed*/results.json"):
        try:
            results = read_json(path)
        except (OSError, ValueError):
            continue
        count += isinstance(results, dict) and results.get("status") == "finished"
    return str(count or "-")


def _refuse(said: str) -> NoReturn:
    print(said, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
