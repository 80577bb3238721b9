"""The pinned packages of the corpus, and the partition that each belongs to."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from shared.data.packages import Package, wheel

PARTITIONS = ("train", "valid", "test")
CAPS = {"train": 1500, "valid": 300, "test": 300}  # functions of one package
PROFILES = ("small", "full")
FILE = Path(__file__).with_name("packages.yaml")


@dataclass(frozen=True)
class Listing:
    """packages.yaml.

    Attributes:
        packages: in the order of their names.
        small: names of those in the small profile.
        partitions: of each package, in either profile: a model trained on the small one has seen no
            package that the full one tests on.
        pinned: date of the list.
    """

    packages: tuple[Package, ...]
    small: frozenset[str]
    partitions: dict[str, str]
    pinned: str

    def of(self, profile: str) -> list[Package]:
        return [p for p in self.packages if profile == "full" or p.name in self.small]


def load(path: Path = FILE) -> Listing:
    """Read the list of packages."""
    content = yaml.safe_load(path.read_text())
    packages = {p.name: p for p in (wheel(e["archive"], e["sha256"]) for e in content["packages"])}
    entries = dict(zip(packages, content["packages"], strict=True))
    pairs = {name: entry["pairs"] for name, entry in entries.items()}
    return Listing(
        packages=tuple(packages[name] for name in sorted(packages)),
        small=frozenset(name for name, entry in entries.items() if entry.get("small")),
        partitions=partitions(pairs, content["families"], content["targets"]),
        pinned=str(content["pinned"]),
    )


def partitions(
    pairs: Mapping[str, int], families: Sequence[Sequence[str]], targets: Mapping[str, int]
) -> dict[str, str]:
    """Split by family: packages of one organisation quote each other and share idioms.

    Families in the order of a hash fill the test, then the validation partition until each has
    enough functions after the cap per package; the rest is for training.

    Args:
        pairs: of each package, before the cap.
        families: names of packages that belong together, the head first; all others are alone.
        targets: functions of "test" and "valid".
    """
    family = {name: tuple(members) for members in families for name in members}
    groups: dict[str, list[str]] = {}
    for name in sorted(pairs):
        groups.setdefault(family.get(name, (name,))[0], []).append(name)
    heads = sorted(groups, key=lambda head: hashlib.md5(f"code-corpus-v1:{head}".encode()).digest())
    assigned: dict[str, str] = {}
    waiting = iter(heads)
    for partition in ("test", "valid"):
        size = 0
        while size < targets[partition] and (head := next(waiting, None)) is not None:
            assigned |= dict.fromkeys(groups[head], partition)
            size += sum(min(pairs[name], CAPS[partition]) for name in groups[head])
    return {name: assigned.get(name, "train") for name in sorted(pairs)}
