"""Refuse misspelt command-line overrides before anything starts, with the nearest valid name."""

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from itertools import product
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Sweep
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import shared.composing  # noqa: F401  (finds rows and arms)
from shared.experiments import CONF

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
TINY, HUGE = 1e-9, 1e12
RANGES: dict[str, tuple[float, float]] = {
    "accumulate_grad_batches": (1, 1e6),
    "batch_size": (1, 1e6),
    "check_val_every_n_epoch": (1, HUGE),
    "checkpoint_every": (1, HUGE),
    "checkpoint_minutes": (0, 1e6),
    "ema_decay": (0, 1),
    "eval_batch_size": (1, 1e6),
    "keep_every": (1, HUGE),
    "log_every_n_steps": (1, HUGE),
    "lr": (0, 1e6),
    "max_corrupt": (0, 1),
    "momentum": (0, 1),
    "mu": (1, 1e4),
    "num_classes": (1, 1e7),
    "num_labels": (1, HUGE),
    "num_workers": (0, 256),
    "queue_size": (1, 1e9),
    "seed": (0, 2**32 - 1),
    "temperature": (TINY, HUGE),
    "threads": (1, 1024),
    "weight_decay": (0, HUGE),
}
"""What a number may be, by the last part of its key; beyond, torch or Lightning loop or fail."""


EXTRAS = {
    "hydra/launcher": {
        **dict.fromkeys(("slurm", "slurm_cpu"), ("hydra_plugins.hydra_submitit_launcher", "slurm")),
        **dict.fromkeys(("ray", "ray_cpu"), ("hydra_plugins.hydra_ray_launcher", "ray")),
    },
    "sweep": dict.fromkeys(
        (path.stem for path in (CONF / "sweep").glob("*.yaml")),
        ("optuna", "sweep"),
    ),
}
"""Options that need a package, and the extra of ours that installs it."""


class OverrideError(ValueError):
    """An override that cannot be meant as written; the message suggests what may be meant."""


KINDS: tuple[tuple[type | tuple[type, ...], Any, str], ...] = (
    (bool, bool, "true or false"),
    ((int, float), (int, float), "a number"),
    (str, (str, int, float), "a text"),
    (list, list, "a list"),
    (dict, dict, "a mapping"),
)
"""The kind of a configured value, what may be given for it, and how that is called."""
OF_SEVERAL_KINDS = ("k_test", "rerank")
"""Keys that take a number or a word, or true or a word: what they are given to checks them."""


def check_overrides(argv: Sequence[str]) -> None:
    """Exit with status 2 and one line on stderr if the command line misspells something."""
    arguments = get_args_parser().parse_args(list(argv))
    own = arguments.config_path or arguments.config_dir or arguments.config_name
    if arguments.help or arguments.hydra_help or own:
        return  # Hydra checks configs of the user's own
    try:
        validate(arguments.overrides)
    except OverrideError as error:
        print(f"tenfold: {error}", file=sys.stderr)
        sys.exit(2)


def validate(overrides: Sequence[str], config_name: str = "config") -> None:
    """OverrideError of the first override, each value of a sweep included, that does not fit."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        # The loader's own `get_group_options` copies the whole repository at each call.
        repository: IConfigRepository = loader.repository  # type: ignore[attr-defined]
        try:
            parsed = OverridesParser.create(loader).parse_overrides(list(overrides))
            groups = set(_groups(repository))
            chosen = [o for o in parsed if o.key_or_group in groups]
            for override in chosen:
                _check_option(repository, override)
            # A key may exist for one experiment of a sweep and not for the next.
            for combination in product(*(_spellings(o) for o in chosen)):
                composed = compose(config_name, list(combination), return_hydra_config=True)
                config = OmegaConf.to_container(composed)
                for override in parsed:
                    if override.key_or_group not in groups:
                        _check_key(config, override, groups, combination)
        # Ours, Hydra's, and that of a damaged table of rows.
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise OverrideError(" ".join(str(error).split())) from error


def _check_option(repository: IConfigRepository, override: Override) -> None:
    group = override.key_or_group
    options = list(_options(repository, group))
    for value in _values(override):
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str) and "${" not in name and name not in options:
                said = f"unknown {group} {name!r}{_meant(name, options)}"
                method = name.partition("/")[0]
                if group == "experiment" and (CONF / "rows" / f"{method}.yaml").is_file():
                    said += f" (rows: tenfold list {method}, conf/rows/{method}.yaml)"
                raise OverrideError(said)
            package, extra = EXTRAS.get(group, {}).get(str(name), ("hydra", ""))
            if find_spec(package) is None:
                raise OverrideError(f"{group}={name} needs pip install 'tenfold[{extra}]'")


def _check_key(
    config: Any, override: Override, groups: set[str], combination: Sequence[str]
) -> None:
    key = override.key_or_group
    if override.is_add() or override.is_force_add():
        return
    found, present = _find(config, key)
    if not found:
        section = key.partition(".")[0]
        if section in groups and not config.get(section):
            raise OverrideError(f"{key}: {section} is empty; name an experiment, which fills it")
        where = ", ".join(c for c in combination if c.startswith("experiment="))
        meant = _meant(key, [*_keys(config), *groups])
        raise OverrideError(f"unknown key {key}{f' for {where}' if where else ''}{meant}")
    for value in _values(override):
        if isinstance(value, dict) and isinstance(present, dict) and present:
            known = [f"{key}.{name}" for name in present]
            for name in (f"{key}.{name}" for name in value):
                if name not in known:
                    raise OverrideError(f"unknown key {name}{_meant(name, known)}")
        if (expected := _misfit(key, present, value)) is not None:
            shown = str(value).lower() if isinstance(value, bool) else value
            raise OverrideError(f"{key}={shown}: {key} expects {expected}")
        if key == "precision" and isinstance(value, str) and value not in PRECISIONS:
            raise OverrideError(f"unknown {key} {value!r}{_meant(value, PRECISIONS)}")


def _find(config: Any, key: str) -> tuple[bool, Any]:
    """Whether a config of plain values has the key, and its value; None where that is open or
    interpolated."""
    node = config
    for part in key.replace("[", ".").replace("]", "").split("."):
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict) and part in node:
            node = node[part]
        else:
            return False, None
    is_open = isinstance(node, str) and (node == "???" or "${" in node)
    return True, None if is_open else node


def _misfit(key: str, present: Any, value: Any) -> str | None:
    """Kind or range of the values that the key takes; None if `value` fits or cannot be told."""
    if value is None or (isinstance(value, str) and "${" in value):
        return None
    last = key.rpartition(".")[2]
    for kind, accepted, words in () if last in OF_SEVERAL_KINDS else KINDS:
        if isinstance(present, kind):
            if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
                return words
            break
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    low, high = RANGES.get("seed" if last.endswith("_seed") else last, (-math.inf, math.inf))
    return None if low <= value <= high else f"a number from {low:.15g} to {high:.15g}"


def _values(override: Override) -> list[Any]:
    """The values that an override can take; none for intervals, ranges and globs."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return [Override._convert_value(item) for item in value.list]
    return [] if isinstance(value, Sweep) or override.is_delete() else [value]


def _spellings(override: Override) -> list[str]:
    """The override once for each value of a sweep."""
    if override.is_sweep_override() and override.is_discrete_sweep():
        key = override.get_key_element()
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [override.input_line or ""]


def _groups(repository: IConfigRepository) -> Iterator[str]:
    for name in repository.get_group_options("", ObjectType.GROUP):
        if name == "hydra":
            yield from (f"hydra/{n}" for n in repository.get_group_options(name, ObjectType.GROUP))
        else:
            yield name


def _options(repository: IConfigRepository, group: str, prefix: str = "") -> Iterator[str]:
    """Options of a group as they are written after `group=`, those in folders included."""
    here = f"{group}/{prefix}".rstrip("/")
    yield from (prefix + name for name in repository.get_group_options(here, ObjectType.CONFIG))
    for folder in repository.get_group_options(here, ObjectType.GROUP):
        yield from _options(repository, group, f"{prefix}{folder}/")


def _keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")


def _meant(name: str, known: Sequence[str]) -> str:
    """`; did you mean ...?`, or nothing if no known name is near; names with the same last part (a
    forgotten group) come first, then those with the same beginning."""
    last = re.split(r"[./]", name)[-1]
    same_end = [k for k in known if re.split(r"[./]", k)[-1] == last]
    beside = [k for k in known if k.rpartition(".")[0] == name.rpartition(".")[0]]
    nearest = (
        get_close_matches(name, same_end, n=1, cutoff=0.3)
        or get_close_matches(name, beside, n=1, cutoff=0.75)
        or get_close_matches(name, known, n=1)
    )
    if nearest:
        return f"; did you mean {nearest[0]}?"
    return f"; one of {', '.join(known)}" if 0 < len(known) <= 12 else ""
