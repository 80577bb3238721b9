"""Experiments that are lines of a table: the rows of a paper, the arms of a claim.

A row of conf/rows/METHOD.yaml runs as `experiment=METHOD/ROW`, an arm of conf/reproduce/CLAIM.yaml
as `experiment=reproduce/CLAIM/ARM`, as if each had a file below conf/experiment/.

A line is a mapping. `experiment` names what it stands on (a file or another line, if any), the keys
of `FIGURES` say what is known of it, and every other key is an override as on the command line. A
table of rows is a list of blocks: what stands in a block beside `rows` holds for each row of it. A
line with a `metric` is a row of the paper, whose figures the run keeps under `paper`; one with `of`
runs nothing, its figure is the mean of the metric over the rows that `of` lists, often only one.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).resolve().parent.parent / "conf"
PAPER = ("table", "metric", "value", "std", "source", "gpu_hours")
FIGURES = (*PAPER, "memory_gb", "about", "of")
# What says where, when or how fast a run happens, not what it computes: it may differ between two
# starts of the same run, and in `trainer` what stands below.
NOT_HASHED = (
    *("output_dir", "data_root", "logger", "threads", "claim", "checkpoint_every"),
    *("measure_only", "start", "keep_every"),
)
TRAINER_NOT_HASHED = ("max_time", "profiler", "checkpoint_minutes")
WITHOUT_EFFECT = {"best": None}  # values that change nothing, of keys that came later
Line = Mapping[str, Any]


def decisive(config: Mapping[Any, Any]) -> dict[str, Any]:
    """What of a config of plain values decides what a run computes."""
    kept = {
        str(key): value
        for key, value in config.items()
        if key not in NOT_HASHED and (key not in WITHOUT_EFFECT or value != WITHOUT_EFFECT[key])
    }
    if isinstance(trainer := kept.get("trainer"), dict):
        kept["trainer"] = {k: v for k, v in trainer.items() if k not in TRAINER_NOT_HASHED}
    return kept


def rows(method: str, conf: Path = CONF) -> dict[str, Line]:
    """Name -> line of what can be run of a method's table, see `table`."""
    return {name: line for name, line in table(method, conf).items() if "of" not in line}


def table(method: str, conf: Path = CONF) -> dict[str, Line]:
    """Name -> line of a method's table, its block's included; ValueError of a damaged one."""
    path = conf / "rows" / f"{method}.yaml"
    lines: dict[str, Line] = {}
    try:
        for block in _read(path) or []:
            shared = {key: value for key, value in block.items() if key != "rows"}
            lines |= {name: {**shared, **(line or {})} for name, line in block["rows"].items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no list of blocks with `rows` ({error!r})") from error
    return lines


def arms(claim: str, conf: Path = CONF) -> dict[str, Line]:
    """Name -> line of all that a claim runs, `overrides` of the claim included for its arms, which
    may stand on each other. Empty if there is no claim, a ValueError if it is no yaml."""
    written = _read(conf / "reproduce" / f"{claim}.yaml") or {}
    own, shared = written.get("arms") or {}, written.get("overrides") or {}
    together = {**(written.get("prepare") or {}), **own}
    lines: dict[str, Line] = {}
    for name in together:
        lines[name] = {**_line(name, together), **(shared if name in own else {}), "arm": name}
    return lines


def _line(name: str, written: Mapping[str, str | Line]) -> Line:
    """An arm's line as one mapping, without the arm that it stands on."""
    line = written[name]
    line = {"experiment": line} if isinstance(line, str) else line
    others = {other: value for other, value in written.items() if other != name}
    below = line.get("experiment")
    if isinstance(below, str) and below in others:
        return {**_line(below, others), **{k: v for k, v in line.items() if k != "experiment"}}
    return line


def _read(path: Path) -> Any:
    try:
        about = path.stat()
    except OSError:
        return None
    return _parsed(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=64)
def _parsed(path: Path, *_: int) -> Any:
    try:
        return yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no yaml: {error}") from error
