"""Never stale: before it answers, an index is compared with its folder and brought up to date."""

from collections.abc import Callable
from dataclasses import dataclass, fields

from methods.cascode.search.index import Index
from methods.cascode.search.indexing import Options, build_index
from methods.cascode.search.models import Encoder, Settings
from methods.cascode.search.store import SearchError
from methods.cascode.search.walking import Scope, walk

SECONDS = 1.0  # of work before a query


@dataclass(frozen=True)
class Fresh:
    """An index, the files in it or beside it that have changed since, and what to say of them."""

    index: Index
    changed: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def changed_files(index: Index) -> frozenset[str]:
    """Paths of files that came, went, or have other stamps than when they were read."""
    now = {
        found.path: found.stamp
        for found in walk(index.root, index.home, scope_of(index))
        if found.reason is None
    }
    before = {path: stamp for path, (stamp, _) in index.stamps.items()}
    different = {path for path, stamp in now.items() if before.get(path) != stamp}
    return frozenset(different | {file.path for file in index.files if file.path not in now})


def refresh(index: Index, model: Callable[[], Encoder], seconds: float = SECONDS) -> Fresh:
    """Bring an index up to date as far as that takes no longer; an index of another machine stays
    as it is, as nobody knows what it was made of."""
    if not (index.own and (changed := changed_files(index))):
        return Fresh(index)
    made = index.description
    options = Options(index.root, index.home, made["text"], made["limit"], scope_of(index), seconds)
    settings = Settings(**{field.name: made["model"][field.name] for field in fields(Settings)})
    try:
        report = build_index(options, model(), settings, lambda *_: None)
        left, why = frozenset(report.behind), ""
        index = Index(index.home)
    except SearchError as error:
        left, why = changed, f" ({error})"
    if not left:
        return Fresh(index)
    number = f"{len(left)} changed file" + "s" * (len(left) > 1)
    note = f"{number} not searched yet{why}: run `tenfold-search index {index.root}`"
    return Fresh(index, left, (note,))


def scope_of(index: Index) -> Scope:
    """What of its root is indexed."""
    return Scope(**{key: tuple(value) for key, value in index.description["scope"].items()})
