"""Official checkpoint <-> our module, from a table of key patterns in which every key counts.

A method's ``official.py`` holds a :class:`KeyTable` and nothing clever::

    CIFAR = KeyTable(
        rules=[
            Rule("model/backbone.{rest}", "encoder.backbone.{rest}"),
            Rule("queue/queue_feats", "bank.features", TRANSPOSED),
        ],
        dropped={"optimizer/{rest}": "training state of another trainer"},
        fresh={"alignment.{rest}": "not saved by the official code"},
    )

``{name}`` stands for any non-empty text, slashes for nested dictionaries of the official file. The
first rule that matches a key decides; rules that repeat its official pattern all apply (one key may
fill several of ours). Export is the same table read from right to left.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from shared.checkpoints.reading import CheckpointError

Source = Mapping[Any, Any]
Form = TypeVar("Form")


@dataclass(frozen=True)
class Conversion:
    """Two functions that change the form of a value; the second gets our tensor and whole state."""

    to_ours: Callable[[Any, Tensor], Tensor]  # of the official value and our present tensor
    to_official: Callable[[Tensor, Mapping[str, Tensor]], Any] | None  # None: import only
    interpolates: bool = False  # `to_ours` fits values of other sizes; the report names them


AS_IS = Conversion(lambda value, _: value, lambda value, _: value)
TRANSPOSED = Conversion(lambda value, _: value.t(), lambda value, _: value.t().contiguous())
"""A matrix kept the other way round, such as a queue of columns."""
SCALAR = Conversion(
    lambda value, ours: torch.as_tensor(value).reshape(ours.shape),
    lambda value, _: value.reshape(1),
)
"""One number, kept as a tensor of shape (1,) there and of any one-element shape here."""


@dataclass(frozen=True)
class Rule:
    """``official`` and ``ours`` name the same tensor; see the module's docstring."""

    official: str
    ours: str
    conversion: Conversion = AS_IS


def translation(names: Mapping[str, str], official: str, ours: str) -> list[Rule]:
    """Rules of names that begin keys, there behind `official`, here behind `ours`."""
    return [
        Rule(f"{official}{theirs}{{rest}}", f"{ours}{mine}{{rest}}")
        for theirs, mine in names.items()
    ]


@dataclass(frozen=True)
class KeyTable:
    """Rules, and the keys that exist on one side only, each pattern with its reason."""

    rules: Sequence[Rule]
    dropped: Mapping[str, str] = field(default_factory=dict)
    fresh: Mapping[str, str] = field(default_factory=dict)


@dataclass
class KeyReport:
    """Fate of every key of both sides; the last three are faults."""

    mapped: list[tuple[str, str]] = field(default_factory=list)  # (official, ours)
    interpolated: list[str] = field(default_factory=list)  # fitted to another size
    dropped: dict[str, str] = field(default_factory=dict)  # with the reason
    fresh: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)  # keys of the receiver that nothing fills
    unexpected: list[str] = field(default_factory=list)  # keys of the source
    resized: list[str] = field(default_factory=list)  # with both shapes

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.resized)

    def __str__(self) -> str:
        lines = [f"{len(self.mapped)} keys mapped"]
        lines += [f"  interpolated: {key}" for key in self.interpolated]
        for title, keys in (("dropped", self.dropped), ("left as initialised", self.fresh)):
            counts = Counter(keys.values())
            lines += [f"{count} {title}: {reason}" for reason, count in counts.items()]
        for title in ("missing", "unexpected", "resized"):
            faults = getattr(self, title)
            lines += [f"{len(faults)} {title}:", *(f"  {key}" for key in faults)] if faults else []
        return "\n".join(lines)


def import_official(source: Source, table: KeyTable, module: nn.Module) -> KeyReport:
    """Load an official checkpoint (as read by ``load_checkpoint``) into ``module``, or nothing at a
    missing, unexpected or resized key: CheckpointError names them all."""
    present = module.state_dict()
    state, report = convert_official(source, table, present)
    if not report.complete:
        raise CheckpointError(f"the official checkpoint does not fit; nothing loaded\n{report}")
    module.load_state_dict({**present, **state})
    return report


def convert_official(
    source: Source, table: KeyTable, present: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], KeyReport]:
    """The part of the state ``present`` of our module that ``source`` fills, and what became of
    every key. What is resized stays as it is in ``present``."""
    state: dict[str, Tensor] = {}
    report = KeyReport()
    rules = [(rule.official, rule.ours, rule.conversion) for rule in table.rules]
    for key, value in _flatten(source).items():
        if (reason := _reason(table.dropped, key)) is not None:
            report.dropped[key] = reason
            continue
        targets = _translate(key, rules)
        if not targets:
            report.unexpected.append(key)
        for ours, conversion in targets:
            if ours not in present:
                report.unexpected.append(f"{key} (as {ours})")
                continue
            if ours in state:
                raise CheckpointError(f"two official keys become {ours}; the second is {key}")
            state[ours] = present[ours]
            expected = tuple(present[ours].shape)
            try:
                converted = conversion.to_ours(value, present[ours])
                shape = tuple(converted.shape)
            except (RuntimeError, AttributeError, TypeError, ValueError) as error:
                report.resized.append(f"{key} cannot become {ours}: {error}")
                continue
            if shape != expected:
                report.resized.append(f"{key} {shape} there, {ours} {expected} here")
                continue
            state[ours] = converted
            report.mapped.append((key, ours))
            if conversion.interpolates and shape != tuple(value.shape):
                report.interpolated.append(f"{key} {tuple(value.shape)} -> {shape}")
    for ours in (key for key in present if key not in state):
        if (reason := _reason(table.fresh, ours)) is not None:
            report.fresh[ours] = reason
        else:
            report.missing.append(ours)
    return state, report


def export_official(module: nn.Module | Mapping[str, Tensor], table: KeyTable) -> dict[str, Any]:
    """The official form of a module's state (or state dict): nested as the patterns' slashes say.
    CheckpointError names keys of ours that no rule and no ``fresh`` pattern explains."""
    state = module.state_dict() if isinstance(module, nn.Module) else module
    conversions = [(rule.ours, rule.official, rule.conversion.to_official) for rule in table.rules]
    rules = [(ours, official, back) for ours, official, back in conversions if back is not None]
    unnamed = {**table.fresh, **{ours: "" for ours, _, back in conversions if back is None}}
    exported: dict[str, Any] = {}
    unexplained = []
    for ours, value in state.items():
        if targets := _translate(ours, rules):
            key, to_official = targets[0]
            if key not in exported:  # one of several copies that the official code keeps once
                exported[key] = to_official(value, state)
        elif _reason(unnamed, ours) is None:
            unexplained.append(ours)
    if unexplained:
        raise CheckpointError("keys without an official name: " + ", ".join(unexplained))
    return _nest(exported)


def _translate(key: str, rules: Sequence[tuple[str, str, Form]]) -> list[tuple[str, Form]]:
    """``key`` under the first pattern that matches, and under its repetitions."""
    decided: str | None = None
    found = []
    for pattern, replacement, form in rules:
        if decided is not None and pattern != decided:
            continue
        if match := _expression(pattern).fullmatch(key):
            decided = pattern
            found.append((replacement.format(**match.groupdict()), form))
    return found


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", pattern)
    return re.compile(
        "".join(f"(?P<{piece}>.+)" if i % 2 else re.escape(piece) for i, piece in enumerate(pieces))
    )


def _reason(patterns: Mapping[str, str], key: str) -> str | None:
    return next((why for p, why in patterns.items() if _expression(p).fullmatch(key)), None)


def _flatten(source: Source, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in source.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split("/")
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = value
    return nested
