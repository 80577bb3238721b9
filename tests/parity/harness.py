"""Golden vectors: reading a case and comparing an adapter's outputs with it.

An adapter is a function named after its case in `tests/parity/<method>.py`. It gets the case's
config, inputs and weights, never its outputs or tolerances, and returns outputs by name. It may
return more than the file holds, never less. What the official code drew is an input, though some
cases record it among the outputs (`DRAWN`).
"""

import copy
import fnmatch
import importlib
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

EXPECTED = ("out", "answers", "weights")  # of an example in case.json; the rest is its input
DRAWN = ("clip_ops",)  # outputs that no seed of the case tells
MASK = "mask_"  # of an output: 1 at entries that a float32 run reproduces, 0 at those left out
Adapter = Callable[[dict[str, Any], dict[str, Any], dict[str, Tensor]], Mapping[str, Any]]
Convert = Callable[[Any], Any]
Arithmetic = Callable[[], AbstractContextManager[Convert]]


class ParityError(AssertionError):
    """A case that does not pass; the message lists every difference."""


@dataclass(frozen=True)
class Case:
    """One folder `<golden>/<method>/<case>`."""

    method: str
    name: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.method}/{self.name}"

    def description(self) -> dict[str, Any]:
        return json.loads((self.folder / "case.json").read_text())

    def values(self, what: str) -> dict[str, Any]:
        """Everything in `<what>.safetensors` and `<what>.json`; at least one must exist, unless
        case.json holds `examples`: of these the inputs or the outputs, by the same names. Further
        JSON files that case.json names there are found by their names."""
        tensors, others = (self.folder / f"{what}.{end}" for end in ("safetensors", "json"))
        listed = self.description().get(what, {})
        named = [name for name in listed if name.endswith(".json")]
        if not tensors.exists() and not others.exists():
            if examples := self.description().get("examples"):
                return {name: _parts(rows, what) for name, rows in examples.items()}
            raise ParityError(f"{self}: neither {tensors.name} nor {others.name} in the folder")
        found: dict[str, Any] = load_file(tensors) if tensors.exists() else {}
        found |= json.loads(others.read_text()) if others.exists() else {}
        return found | {name: json.loads((self.folder / name).read_text()) for name in named}

    def weights(self) -> dict[str, Tensor]:
        path = self.folder / "weights.safetensors"
        return load_file(path) if path.exists() else {}


def find_cases(golden: Path, methods: list[str] | None = None) -> list[Case]:
    """Every case folder, sorted. Raises FileNotFoundError if a method asked for has none."""
    wanted = methods or sorted(p.name for p in golden.glob("*") if p.is_dir())
    cases = []
    for method in wanted:
        folders = sorted(p for p in (golden / method).glob("*") if p.is_dir())
        if not folders:
            raise FileNotFoundError(f"no case folders under {golden / method}")
        cases += [Case(method, folder.name, folder) for folder in folders]
    return cases


def find_adapter(case: Case, adapters: ModuleType | None = None) -> Adapter:
    """The function of the case's name in the method's adapters; ParityError if there is none."""
    if adapters is None:
        try:
            adapters = importlib.import_module(f"{__package__}.{case.method}")
        except ModuleNotFoundError as error:
            raise ParityError(f"{case}: no tests/parity/{case.method}.py ({error})") from error
    adapter = getattr(adapters, case.name, None)
    home = getattr(adapter, "__module__", None) or ""
    if home != adapters.__name__ and not home.startswith(f"{adapters.__name__}."):
        raise ParityError(f"{case}: no adapter `{case.name}` in tests/parity/{case.method}")
    return adapter


def check(case: Case, adapter: Adapter | None = None) -> list[str]:
    """Run the adapter and compare every output of the file; returns their names.

    Float32 has no one result: another processor sums in another order, and an activation whose
    input is 4e-8 then has another slope. A case counts as passed if its outputs come out, all
    together and within its own tolerances, in one of `ARITHMETICS`; the first is what users get,
    and a warning names a case that needs another. A ParityError lists the first one's differences.
    """
    adapter = adapter or find_adapter(case)
    problems: list[str] = []
    for arithmetic in ARITHMETICS:
        expected, found = _compare(case, adapter, arithmetic)
        if not found:
            if arithmetic is not usual:
                warnings.warn(f"{case}: reproduced in {arithmetic.__name__} only", stacklevel=2)
            return list(expected)
        problems = problems or found
    raise ParityError(f"{case}:\n  " + "\n  ".join(problems))


def _compare(
    case: Case, adapter: Adapter, arithmetic: Arithmetic
) -> tuple[dict[str, Any], list[str]]:
    """The expected outputs, and every difference from them."""
    description = case.description()
    # A case without inputs has them all in its config.
    inputs = {} if description.get("inputs") == {} else case.values("inputs")
    inputs |= {name: value for name, value in case.values("outputs").items() if name in DRAWN}
    config = copy.deepcopy(description["config"])
    with arithmetic() as convert:
        got = dict(adapter(config, convert(inputs), convert(case.weights())))
    if arithmetic is double:
        got = converted(got, torch.float64, torch.float32)
    # Read only now, and from the disk, so that no adapter can have touched them.
    description, expected = case.description(), case.values("outputs")
    atol, rtol = float(description["atol"]), float(description["rtol"])
    described = [] if "examples" in description else description["outputs"]
    problems = [f"{name}: described in case.json, not in the file"
                for name in described if name not in expected
                for pattern in described_patterns(name)
                if not fnmatch.filter(expected, pattern)]  # fmt: skip
    if not expected:
        problems.append("the file holds no outputs")
    for name, value in expected.items():
        if name.removeprefix(MASK) in expected and name.startswith(MASK):
            if not value.any():
                problems.append(f"{name}: leaves nothing to compare")
            continue
        if name in got and (mask := expected.get(f"{MASK}{name}")) is not None:
            got[name] = got[name] * mask
        if name not in got:
            problems.append(f"{name}: the adapter does not return it")
        else:
            problems += list(differences(name, got[name], value, atol, rtol))
    return expected, problems


def described_patterns(name: str) -> list[str]:
    """Patterns of the outputs that one name in case.json stands for: "rois.s" and "loss.EE" are
    numbered, "a.b/c.b" are two, "json:a" is "a" of the JSON file, "block{k}" and "{a,b}_x" are
    several; "_shapes" is none."""
    if name.startswith("_"):
        return []
    name = re.sub(r"\{[^}]*\}", "*", name)
    parts = (part.strip().removeprefix("json:") for part in name.split("/"))
    return [re.sub(r"\.([A-Za-z])\1*$", ".*", part) for part in parts]


def _parts(examples: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    """What each example gives ("inputs") or expects ("outputs")."""
    wanted = what == "outputs"
    return [{k: v for k, v in row.items() if (k in EXPECTED) == wanted} for row in examples]


@contextmanager
def usual() -> Iterator[Convert]:
    """Float32 by the kernels that torch chooses for this processor."""
    yield lambda value: value


@contextmanager
def native() -> Iterator[Convert]:
    """Float32 without oneDNN, whose kernels differ most between processors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TF32.*")  # of GPUs that are not there
        with torch.backends.mkldnn.flags(enabled=False):
            yield lambda value: value


@contextmanager
def double() -> Iterator[Convert]:
    """Float64, wherever the code does not ask for float32 itself."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield lambda value: converted(value, torch.float32, torch.float64)
    finally:
        torch.set_default_dtype(before)


ARITHMETICS: tuple[Arithmetic, ...] = (usual, native, double)


def converted(value: Any, old: torch.dtype, new: torch.dtype) -> Any:
    """Nested containers with their tensors of one type as those of another."""
    if isinstance(value, Tensor):
        return value.to(new) if value.dtype == old else value
    if isinstance(value, Mapping):
        return {key: converted(item, old, new) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(converted(item, old, new) for item in value)
    return value


def differences(name: str, got: Any, expected: Any, atol: float, rtol: float) -> Iterator[str]:
    """Every way in which a value differs: kind, shape, numbers; containers are walked through."""
    if isinstance(expected, Mapping):
        if not isinstance(got, Mapping) or set(got) != set(expected):
            yield f"{name}: keys {sorted(got) if isinstance(got, Mapping) else got!r}"
            return
        for key in expected:
            yield from differences(f"{name}.{key}", got[key], expected[key], atol, rtol)
    elif isinstance(expected, list):
        got = got.tolist() if isinstance(got, Tensor) else got
        if not isinstance(got, list | tuple) or len(got) != len(expected):
            yield f"{name}: expected a list of {len(expected)}, got {got!r}"
            return
        for i, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
            yield from differences(f"{name}[{i}]", mine, theirs, atol, rtol)
    elif isinstance(expected, str | bool) or expected is None:
        if got != expected or type(got) is not type(expected):
            yield f"{name}: {got!r} instead of {expected!r}"
    else:
        yield from _number_differences(name, got, expected, atol, rtol)


def _number_differences(
    name: str, got: Any, expected: Any, atol: float, rtol: float
) -> Iterator[str]:
    got, expected = torch.as_tensor(got).detach(), torch.as_tensor(expected)
    if _kind(got) != _kind(expected):
        yield f"{name}: dtype {got.dtype} instead of {expected.dtype}"
    elif got.shape != expected.shape:
        yield f"{name}: shape {tuple(got.shape)} instead of {tuple(expected.shape)}"
    elif not torch.equal(got.double().isfinite(), expected.double().isfinite()):
        yield f"{name}: not finite where it should be, or finite where nothing is to be averaged"
    else:
        mine, theirs = (x.double().nan_to_num(0.0) for x in (got, expected))
        excess = (mine - theirs).abs() - (atol + rtol * theirs.abs())
        if excess.numel() and excess.max() > 0:
            error = (mine - theirs).abs().max()
            yield f"{name}: off by up to {error:.3g} in {int((excess > 0).sum())} of {got.numel()}"


def _kind(x: Tensor) -> str:
    if x.dtype == torch.bool:
        return "bool"
    return "float" if x.is_floating_point() else "complex" if x.is_complex() else "integer"
