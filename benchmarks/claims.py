"""A claim, written down before its runs: read from conf/reproduce/, checked, composed, hashed."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from shared.checkpoints.zoo import checksums
from shared.composing import compose_experiment
from shared.experiments import CONF, NOT_HASHED, decisive

LINES = ("arms", "prepare", "overrides")


class ClaimError(ValueError):
    """A claim, or what was asked of it, makes no sense; the message names file and key."""


@dataclass
class Pair:
    """Two arms that are compared seed by seed."""

    method: str = MISSING
    baseline: str = MISSING


@dataclass
class Primary(Pair):
    """The comparison that decides the verdict. A `control_baseline` other than its own baseline
    makes the control a comparison under other circumstances, in which the gain must not show.
    `per_query` names a JSON file that each run leaves beside its results.json, {metric: [its value
    for each test query]}: intervals then come from a paired bootstrap over seeds and queries, else
    from Student's t over seeds."""

    metric: str = MISSING
    control_baseline: str = ""
    per_query: str = ""


@dataclass
class Further(Primary):
    """Another claim about the same runs, by default about the same metric, with a verdict of its
    own by the same rule."""

    name: str = MISSING
    claim: str = MISSING
    control: str = MISSING
    expected_sign: int = MISSING
    smallest_difference: float = MISSING
    metric: str = ""


DETECTORS = ("beside", "pictures", "embeddings")  # of a showcase, what only detectors have


@dataclass
class Showcase:
    """Pictures by `tenfold predict` with the model that a user would take, `checkpoint`: an arm's
    of the first seed, `zoo:NAME` or a file: of `images`, a folder below data_root, compared with
    `texts`; `overlays` of each text's best show where it looks. Or the objects that a detector
    finds in the first `pictures` of these, below what the arm `beside` finds; with `embeddings`, a
    file of embedded names below data_root, those of the classes `texts`, by `tenfold-detect`."""

    checkpoint: str = MISSING
    images: str = MISSING
    texts: list[str] = field(default_factory=list)
    overlays: int = 0
    beside: str = ""
    pictures: int = 0
    embeddings: str = ""


@dataclass
class Claim:
    """One pre-registered claim.

    What `prepare` trains once per seed before the arms start, as a pre-training, an arm finds in
    ${output_dir}/../../NAME/seed${seed}. It stands in no table, unless it is an arm as well, of the
    same name and line.
    """

    title: str = MISSING
    claim: str = MISSING
    source: str = MISSING  # where the paper makes the claim
    primary: Primary = MISSING
    expected_sign: int = MISSING  # 1 the method's metric is higher, -1 lower, 0 no difference
    smallest_difference: float = MISSING  # that matters, in units of the metric, > 0
    control: str = MISSING  # the arm that must not meet the criterion (the method sabotaged)
    seeds: list[int] = MISSING  # each is shared by all arms, which pairs them
    tuning_seeds: list[int] = MISSING  # on which settings were chosen; refused as `seeds`
    secondary: list[Pair] = field(default_factory=list)  # more comparisons, not decisive
    further: list[Further] = field(default_factory=list)
    optional: list[str] = field(default_factory=list)  # arms that run if named or with --arms all
    curve: str = ""  # the metric drawn over training steps; by default the primary one in `val/`
    showcase: Showcase | None = None
    also: list[str] = field(default_factory=list)  # metrics shown beside the primary one
    chance: float | None = None  # the primary metric of an arm that has learned nothing
    arms: dict[str, Any] = MISSING  # name -> line of `shared.experiments`, perhaps on another arm
    prepare: dict[str, Any] = field(default_factory=dict)  # name -> line
    overrides: dict[str, Any] = field(default_factory=dict)  # key -> value that every arm shares
    name: str = ""  # METHOD or METHOD/NAME, the claim's file below conf/reproduce/

    def experiment(self, arm: str) -> str:
        """What `tenfold experiment=` calls an arm, or something prepared."""
        return f"reproduce/{self.name}/{arm}"

    def rules(self) -> list["Rule"]:
        """How the claim and each further one are decided, in their order."""

        def decisive(by: Primary | Further, control: str) -> list[Pair]:
            against = by.control_baseline or by.baseline
            return [Pair(by.method, by.baseline), Pair(control, against)]

        of_further = (Rule(f, f, decisive(f, f.control)) for f in self.further)
        compared = [*decisive(self.primary, self.control), *self.secondary]
        return [Rule(self, self.primary, compared), *of_further]

    def by_query(self) -> dict[tuple[str, str], set[str]]:
        """(`per_query` file, metric) -> the arms whose runs must have it."""
        files: dict[tuple[str, str], set[str]] = {}
        for _, by, pairs in self.rules():
            if by.per_query:
                arms = {arm for pair in pairs for arm in (pair.method, pair.baseline)}
                files.setdefault((by.per_query, by.metric), set()).update(arms)
        return files


class Rule(NamedTuple):
    """What decides a claim: `stated` has sign and smallest difference, `primary` the metric; the
    first of the `pairs` is the method and its baseline, the second the control and its own."""

    stated: Claim | Further
    primary: Primary | Further
    pairs: list[Pair]


def claim_path(method: str, name: str | None, conf: Path = CONF) -> Path:
    """Where a claim is written; ClaimError if the method has none."""
    root = conf / "reproduce"
    path = root / f"{method}.yaml"
    if not path.is_file():
        known = [p.stem for p in root.glob("*.yaml")]
        raise ClaimError(f"no claim of method '{method}' at {path}{nearest(method, known)}")
    return path if name in (None, method) else root / method / f"{name}.yaml"


def load_claim(path: Path) -> Claim:
    """Read and check a claim below a folder `reproduce`; ClaimError if it makes no sense."""
    written = read(path, "claim")
    # Interpolations in lines speak of the experiment's config, not of the claim.
    lines = {key: written.pop(key) for key in LINES if key in written}
    claim: Claim = typed(Claim, {**written, **{key: {} for key in lines}}, path)
    for key, value in lines.items():
        if not isinstance(value, dict):
            raise ClaimError(f"{path}: {key} must be a mapping")
        setattr(claim, key, value)
    for name, line in [*claim.arms.items(), *claim.prepare.items()]:
        if not (isinstance(line, str) or (isinstance(line, dict) and "experiment" in line)):
            raise ClaimError(f"{path}: arm '{name}' must be an experiment, or a mapping with one")
    below = next((folder for folder in path.parents if folder.name == "reproduce"), path.parent)
    claim.name = str(path.relative_to(below).with_suffix(""))
    claim.curve = claim.curve or claim.primary.metric.replace("test/", "val/", 1)
    for further in claim.further:
        further.metric = further.metric or claim.primary.metric
        further.control_baseline = further.control_baseline or further.baseline
    _check(claim, path)
    return claim


def read(path: Path, what: str) -> dict[str, Any]:
    """The mapping that a yaml holds; ClaimError if it does not, or names the nearest file."""
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise ClaimError(f"no {what} at {path}{nearest(path.stem, known) if known else ''}")
    try:
        written = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ClaimError(f"{path} is no yaml of a {what}: {error}") from error
    if not isinstance(written, dict):
        raise ClaimError(f"{path} is no yaml of a {what}: it is no mapping")
    return written


def typed(form: type, written: Mapping[str, Any], path: Path) -> Any:
    """The dataclass of what was written; ClaimError names what is unknown, missing or mistyped."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(form), written)
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise ClaimError(f"{path}: missing {', '.join(missing)}")
        return OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        meant = nearest(str(error.key), [f.name for f in fields(error.object_type or form)])
        raise ClaimError(f"{path}: unknown key '{error.full_key or error.key}'{meant}") from error
    except OmegaConfBaseException as error:
        raise ClaimError(f"{path}: {str(error).splitlines()[0]} (key {error.full_key})") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` or the list of what is known."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


def _check(claim: Claim, path: Path) -> None:
    """Rules that types cannot say."""
    rules = claim.rules()
    compared = [pair for rule in rules for pair in rule.pairs]
    named = [arm for pair in compared for arm in (pair.method, pair.baseline)] + claim.optional
    for arm in named:
        if arm not in claim.arms:
            raise ClaimError(f"{path}: no arm '{arm}'{nearest(arm, claim.arms)}")
    triples = [[pairs[0].method, pairs[0].baseline, pairs[1].method] for *_, pairs in rules]
    if same := [triple for triple in triples if len(set(triple)) < 3]:
        raise ClaimError(f"{path}: method, baseline and control must be three arms, not {same[0]}")
    if optional := sorted(set(triples[0]) & set(claim.optional)):
        raise ClaimError(f"{path}: the verdict needs {optional}, which cannot be optional")
    both = sorted(set(claim.prepare) & set(claim.arms))
    if differing := [name for name in both if claim.prepare[name] != claim.arms[name]]:
        said = "cannot be arms and be prepared for them by another line; give both the same"
        raise ClaimError(f"{path}: {differing} {said}, or two names")
    for stated, by, _ in rules:
        if by.per_query != Path(by.per_query).name:
            said = "must be the name of a file in a run's folder"
            raise ClaimError(f"{path}: per_query '{by.per_query}' {said}")
        if stated.expected_sign not in (-1, 0, 1):
            raise ClaimError(f"{path}: expected_sign is 1, 0 or -1, not {stated.expected_sign}")
        if not stated.smallest_difference > 0:
            raise ClaimError(f"{path}: smallest_difference must be above 0")
    if not claim.seeds or len(set(claim.seeds)) < len(claim.seeds):
        raise ClaimError(f"{path}: seeds must be given, each once")
    refuse_tuning_seeds(claim, claim.seeds)


def refuse_tuning_seeds(claim: Claim, seeds: Sequence[int]) -> None:
    """Raise ClaimError at a seed on which settings were chosen: a result on it would flatter."""
    if both := sorted(set(seeds) & set(claim.tuning_seeds)):
        tuned = f"seed {', '.join(map(str, both))}: the settings were tuned on it"
        known = f"tuning seeds are {claim.tuning_seeds}, registered seeds {claim.seeds}"
        raise ClaimError(f"{tuned}, it is never reported; {known}")


def compose_arms(
    claim: Claim, overrides: Sequence[str] = (), conf: Path = CONF
) -> dict[str, DictConfig]:
    """Compose the config of every arm and of everything prepared, by name; ClaimError at an
    override of what the engine sets itself, HydraException at what does not compose."""
    for override in overrides:
        key = override.lstrip("+~").split("=")[0]
        if key in ("seed", "experiment", "arm", "output_dir", "claim"):
            raise ClaimError(f"'{override}': the claim sets {key}; use --seeds, --arms or --claim")
    return {
        name: compose_experiment(claim.experiment(name), settings(claim, name, overrides), conf)
        for name in dict.fromkeys((*claim.arms, *claim.prepare))
    }


def settings(claim: Claim, name: str, overrides: Sequence[str]) -> list[str]:
    """The caller's overrides that an arm takes: all, unless it is only prepared. That may be
    another method's experiment: it takes what changes nothing that is computed."""
    return [o for o in overrides if name in claim.arms or not changes_claim(o)]


def needed(claim: Claim, configs: Mapping[str, DictConfig], arms: Sequence[str]) -> list[str]:
    """What is prepared for some arms, in its order: all but what only others start from."""
    written = {name: OmegaConf.to_yaml(config) for name, config in configs.items()}
    found: list[str] = []
    for name in reversed(claim.prepare):  # one may start from those before it
        from_it = {other for other, text in written.items() if f"/../../{name}/" in text}
        if name in arms or not from_it or from_it & {*arms, *found}:
            found.insert(0, name)
    return found


def distinct_sources(configs: Iterable[DictConfig]) -> list[DictConfig]:
    """What makes the data of these configs present, each once, in their order."""
    sources: list[DictConfig] = []
    for config in configs:
        if config.source is not None and config.source not in sources:
            sources.append(config.source)
    return sources


def changes_claim(override: str) -> bool:
    """Whether an override changes what is computed, not only where or how fast."""
    return override.lstrip("+~").split("=")[0].split(".")[0] not in ("seed", *NOT_HASHED)


def claim_hash(claim: Claim, configs: Mapping[str, DictConfig]) -> str:
    """sha256 over the claim's content, the resolved configs that `compose_arms` gives, and the
    models of the zoo that these name."""
    # Seed and paths are set and then left out: what interpolates them must not differ either.
    plain = {
        name: comparable(config, seed=0, data_root="", output_dir="")
        for name, config in configs.items()
    }
    content = {
        "claim": as_written(claim),
        "arms": {name: plain[name] for name in claim.arms},
        "prepare": {name: plain[name] for name in claim.prepare},
    }
    named = sorted(set(re.findall(r'"zoo:([^"]+)"', json.dumps(content))))
    if named:
        content["zoo"] = {name: checksums().get(name) for name in named}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def as_written(claim: Claim) -> dict[str, Any]:
    """The claim as plain values, without its name."""
    content = asdict(claim)
    del content["name"], content["also"]  # which decide nothing
    if claim.chance is None:  # so that claims which do not state it keep their hash
        del content["chance"]
    if not claim.primary.control_baseline:
        del content["primary"]["control_baseline"]
    if claim.showcase and not claim.showcase.pictures:  # likewise
        content["showcase"] = {k: v for k, v in content["showcase"].items() if k not in DETECTORS}
    elif claim.showcase and not claim.showcase.embeddings:
        del content["showcase"]["embeddings"]
    return content


def comparable(config: DictConfig, **values: Any) -> dict[str, Any]:
    """What decides the outcome of a run, as plain values, after setting `values`."""
    config = config.copy()
    with open_dict(config):
        config.update(values)
        plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    # `precision` stays: it is "auto" in the claim, and what was chosen is beside the results.
    return {key: value for key, value in decisive(plain).items() if key != "seed"}
