"""Where shards keep their journals, and whether these belong together."""

import os
import re
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.data.captioned import journal
from shared.data.captioned.working import CHANGED
from shared.data.errors import WorkError
from shared.data.readers.files import shortened
from shared.files import own_folder

WORK = "work"  # folder below that of the output
FORMAT = 1  # of journals; rises with every change of what is in them
_OWN = ("shard", "where")  # of a header, what shards of one work may have different
_SLURM = "SLURM_ARRAY_TASK_"


def shard_of(given: str | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """Number and count of "i/n", i from 0 on; else of the array task that SLURM says this is; else
    (0, 1)."""
    if given is not None:
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", given)
        if not match or int(match[1]) >= int(match[2]):
            raise WorkError(f"--shard {given[:20]}: i/n is expected, i from 0 to n - 1")
        return int(match[1]), int(match[2])
    if f"{_SLURM}ID" not in environment:
        return 0, 1
    try:
        names = ("ID", "COUNT", "MIN", "MAX")
        task, count, least, most = (int(environment[_SLURM + name]) for name in names)
        step = int(environment.get(f"{_SLURM}STEP") or 1)
    except (KeyError, ValueError):
        raise WorkError("SLURM says of no array which task this is: give --shard i/n") from None
    if step < 1 or (most - least) // step + 1 != count or (task - least) % step:
        said = f"SLURM runs only some tasks of an array, {count} from {least} to {most}"
        raise WorkError(f"{said}, so that shards are not theirs to count: give --shard i/n")
    return (task - least) // step, count


def output_folder(name: str, inputs: Sequence[str]) -> Path:
    """The folder of the output, made if it is not there; WorkError if it has other things."""
    out = own_folder(Path(name))
    real = Path(os.path.realpath(out))
    if any(Path(os.path.realpath(path)) in (real, *real.parents) for path in inputs):
        raise WorkError(f"{out} lies in the input: take another --out")
    if not (out / WORK).exists() and any(out.iterdir()):
        raise WorkError(f"{out} holds other things: --out names a folder of its own")
    return out


def journal_path(folder: Path, number: int, count: int) -> Path:
    """Where a shard keeps its journal; WorkError if shards of another number of shards, which it
    would overlap, lie in the folder."""
    for path in sorted((folder / WORK).glob("shard-*.journal")):
        if not path.name.endswith(f"-of-{count:05}.journal"):
            said = f"{folder} holds {path.stem}, and this would be one of {count}"
            raise WorkError(f"{said}: give --shard i/n as before, or another --out")
    return folder / WORK / f"shard-{number:05}-of-{count:05}.journal"


def check_header(there: Any, here: Mapping[str, Any], folder: Path) -> None:
    """WorkError, which names what differs, unless a journal is of the same work."""
    old, new = (
        _flat({k: v for k, v in header.items() if k not in _OWN}) for header in (there, here)
    )
    told = [
        f"{name} was {shortened(old.get(name))} and is {shortened(new.get(name))}"
        for name in {**new, **old}
        if old.get(name) != new.get(name)
    ]
    if told:
        said = f"{folder} holds work with something else: {'; '.join(told[:5])}"
        raise WorkError(f"{said}. Go on as it began, or take another --out")


def gather(folders: Sequence[Path]) -> tuple[dict[str, Any], list[Path]]:
    """The header and the journals, in order, of all shards; WorkError if one is missing, not at
    its end, there twice, or of another work."""
    places: dict[int, Path] = {}
    headers: dict[int, dict[str, Any]] = {}
    counts: dict[int, Path] = {}
    for path in (path for folder in folders for path in sorted((folder / WORK).glob("*.journal"))):
        header = next(journal.read(path), None)
        if header is None or header.get("format") != FORMAT:
            raise WorkError(f"{path}: no journal of this version of the tool")
        number, count = header["shard"]
        counts[count] = path
        if len(counts) > 1:
            both = " and ".join(map(str, counts.values()))
            raise WorkError(f"shards of {' and of '.join(map(str, counts))} overlap: {both}")
        if number in places:
            both = f"{places[number]} and {path}"
            raise WorkError(f"shard {number}/{count} is there twice: {both}")
        places[number], headers[number] = path, header
    if not places:
        raise WorkError(f"no shard in {', '.join(map(str, folders))}: run them first")
    count = next(iter(counts))
    if missing := [str(number) for number in range(count) if number not in places]:
        listed = ", ".join(missing[:20]) + (", ..." if len(missing) > 20 else "")
        raise WorkError(f"{len(missing)} of {count} shards are missing: {listed} (from 0 on)")
    ends = set()
    for number in range(count):
        check_header(headers[number], headers[0], places[number])
        last = deque(journal.read(places[number]), maxlen=1).pop()
        if "end" not in last:
            said = f"shard {number}/{count} has not ended"
            raise WorkError(f"{said}: run it again with --shard {number}/{count}, it goes on")
        ends.add(last["end"])
    if len(ends) > 1:
        raise WorkError(f"{CHANGED} (shards saw another length)")
    return headers[0], [places[number] for number in range(count)]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Values of nested objects by dotted names."""
    if not isinstance(value, dict):
        return {name[1:]: value}
    parts = (_flat(inner, f"{name}.{key}") for key, inner in value.items())
    return {key: inner for part in parts for key, inner in part.items()}
