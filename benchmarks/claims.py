"""A claim, written down before its runs: read from conf/reproduce/, checked, composed, hashed."""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

import shared.composing  # noqa: F401  (finds rows and arms)
from shared.experiments import CONF

# What says where, when or how fast a run happens, not what it computes (`precision` stays: it is
# "auto" in the claim, and the choice made for this machine is written beside the results).
NOT_HASHED = (
    *("seed", "output_dir", "data_root", "logger", "threads", "claim"),
    "checkpoint_every",
)


class ClaimError(ValueError):
    """A claim, or what was asked of it, makes no sense; the message names file and key."""


@dataclass
class Pair:
    """Two arms that are compared seed by seed."""

    method: str = MISSING
    baseline: str = MISSING


@dataclass
class Primary(Pair):
    """The comparison that decides the verdict, and the metric that is compared.

    `per_query` names a JSON file that each run leaves beside its results.json, {metric: [its value
    for each test query]}. With it all intervals of the metric come from a paired bootstrap over
    seeds and queries, without it from Student's t over seeds.
    """

    metric: str = MISSING
    per_query: str = ""


@dataclass
class Further(Pair):
    """Another claim about the same runs, with a verdict of its own by the same rule.

    `metric` defaults to the primary one. `control` is compared with `control_baseline`, by default
    this claim's own baseline; another one makes the control a comparison under other circumstances,
    in which the gain must not show. `per_query`: see `Primary`; it is not taken over from there.
    """

    name: str = MISSING
    claim: str = MISSING
    control: str = MISSING
    expected_sign: int = MISSING
    smallest_difference: float = MISSING
    metric: str = ""
    control_baseline: str = ""
    per_query: str = ""


@dataclass
class Showcase:
    """Pictures of what an arm's first seed has learned, drawn by `tenfold predict` after the runs.

    Attributes:
        arm: whose checkpoint predicts.
        images: folder below data_root.
        texts: what an image-text model compares the images with.
        overlays: of each text's best images, show where the model looks in this many.
    """

    arm: str = MISSING
    images: str = MISSING
    texts: list[str] = field(default_factory=list)
    overlays: int = 0


@dataclass
class Claim:
    """One pre-registered claim.

    Attributes:
        title, claim, source: the claim in words and where the paper makes it.
        primary: metric, method and baseline of the comparison that decides.
        expected_sign: 1 the method's metric is higher, -1 lower, 0 no difference that matters.
        smallest_difference: the smallest difference that matters, in units of the metric, > 0.
        control: the arm that must not meet the criterion (the method sabotaged).
        seeds: reported seeds; each is shared by all arms, which pairs them.
        tuning_seeds: seeds on which settings were chosen; refused as reported seeds.
        secondary: more comparisons, shown but not decisive.
        further: more claims about these arms, each with a verdict of its own.
        optional: arms that run only when named or with `--arms all`.
        curve: the metric drawn against the training step; by default the primary one in `val/`.
        showcase: pictures to draw at the end.
        arms: name -> line as `shared.experiments` describes it; it may stand on another arm.
        prepare: name -> line of what is trained once per seed before the arms start, as a
            pre-training; an arm finds it in ${output_dir}/../../NAME/seed${seed}. It stands in no
            table, unless it is an arm as well, of the same name and line.
        overrides: key -> value that every arm shares.
        name: METHOD or METHOD/NAME, its file below conf/reproduce/.
    """

    title: str = MISSING
    claim: str = MISSING
    source: str = MISSING
    primary: Primary = MISSING
    expected_sign: int = MISSING
    smallest_difference: float = MISSING
    control: str = MISSING
    seeds: list[int] = MISSING
    tuning_seeds: list[int] = MISSING
    secondary: list[Pair] = field(default_factory=list)
    further: list[Further] = field(default_factory=list)
    optional: list[str] = field(default_factory=list)
    curve: str = ""
    showcase: Showcase | None = None
    arms: dict[str, Any] = MISSING
    prepare: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def experiment(self, arm: str) -> str:
        """What `tenfold experiment=` calls an arm, or something prepared."""
        return f"reproduce/{self.name}/{arm}"

    def role(self, arm: str) -> str:
        """Role of an arm: method, baseline, control or extra."""
        roles = {
            self.primary.method: "method",
            self.primary.baseline: "baseline",
            self.control: "control",
        }
        return roles.get(arm, "extra")

    def pairs(self) -> list[Pair]:
        """The comparisons in the order of the report: primary, control, secondary."""
        return [
            Pair(self.primary.method, self.primary.baseline),
            Pair(self.control, self.primary.baseline),
            *self.secondary,
        ]

    def by_query(self) -> dict[tuple[str, str], set[str]]:
        """(`per_query` file, metric) -> the arms whose runs must have it."""
        files: dict[tuple[str, str], set[str]] = {}
        rules: list[tuple[Primary | Further, list[Pair]]] = [(self.primary, self.pairs())]
        rules += [
            (f, [Pair(f.method, f.baseline), Pair(f.control, f.control_baseline)])
            for f in self.further
        ]
        for rule, pairs in rules:
            if rule.per_query:
                arms = {arm for pair in pairs for arm in (pair.method, pair.baseline)}
                files.setdefault((rule.per_query, rule.metric), set()).update(arms)
        return files


def load_claim(path: Path) -> Claim:
    """Read and check a claim below a folder `reproduce`.

    Raises:
        ClaimError: missing file, unknown key (with the nearest name), wrong type, or a rule broken.
    """
    if not path.is_file():
        raise ClaimError(f"no claim at {path}{_nearest_file(path)}")
    try:
        written = yaml.safe_load(path.read_text()) or {}
        lines = {
            key: written.pop(key) for key in ("arms", "prepare", "overrides") if key in written
        }
        merged = OmegaConf.merge(OmegaConf.structured(Claim), written)
    except (yaml.YAMLError, AttributeError) as error:
        raise ClaimError(f"{path} is no yaml of a claim: {error}") from error
    except ConfigKeyError as error:
        known = [f.name for f in fields(error.object_type or Claim)]
        raise ClaimError(
            f"{path}: unknown key '{error.full_key or error.key}'{nearest(str(error.key), known)}"
        ) from error
    except OmegaConfBaseException as error:
        raise ClaimError(f"{path}: {str(error).splitlines()[0]} (key {error.full_key})") from error
    # Interpolations in lines speak of the experiment's config, not of the claim.
    merged.update({key: {} for key in ("arms", "prepare", "overrides")})
    if missing := [*OmegaConf.missing_keys(merged), *({"arms"} - lines.keys())]:
        raise ClaimError(f"{path}: missing {', '.join(sorted(missing))}")
    claim = OmegaConf.to_object(merged)
    assert isinstance(claim, Claim)
    for key, value in lines.items():
        if not isinstance(value, dict):
            raise ClaimError(f"{path}: {key} must be a mapping")
        setattr(claim, key, value)
    for name, line in [*claim.arms.items(), *claim.prepare.items()]:
        if not isinstance(line, dict | str) or (
            isinstance(line, dict) and "experiment" not in line
        ):
            raise ClaimError(f"{path}: arm '{name}' must be an experiment, or a mapping with one")
    below = [folder for folder in path.parents if folder.name == "reproduce"]
    claim.name = str(path.relative_to(below[0]).with_suffix("")) if below else path.stem
    claim.curve = claim.curve or claim.primary.metric.replace("test/", "val/", 1)
    for further in claim.further:
        further.metric = further.metric or claim.primary.metric
        further.control_baseline = further.control_baseline or further.baseline
    _check(claim, path)
    return claim


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` or the list of what is known."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


def _nearest_file(path: Path) -> str:
    known = sorted(p.stem for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    return nearest(path.stem, known) if known else ""


def _check(claim: Claim, path: Path) -> None:
    """Rules that types cannot say."""
    named = [claim.primary.method, claim.primary.baseline, claim.control, *claim.optional]
    named += [arm for pair in claim.secondary for arm in (pair.method, pair.baseline)]
    named += [
        arm for f in claim.further for arm in (f.method, f.baseline, f.control, f.control_baseline)
    ]
    named += [claim.showcase.arm] if claim.showcase else []
    for arm in named:
        if arm not in claim.arms:
            raise ClaimError(f"{path}: no arm '{arm}'{nearest(arm, claim.arms)}")
    decisive = [claim.primary.method, claim.primary.baseline, claim.control]
    triples = [decisive, *([f.method, f.baseline, f.control] for f in claim.further)]
    for triple in triples:
        if len(set(triple)) < 3:
            raise ClaimError(
                f"{path}: method, baseline and control must be three arms, not {triple}"
            )
    if optional := sorted(set(decisive) & set(claim.optional)):
        raise ClaimError(f"{path}: the verdict needs {optional}, which cannot be optional")
    both = sorted(set(claim.prepare) & set(claim.arms))
    if differing := [name for name in both if claim.prepare[name] != claim.arms[name]]:
        raise ClaimError(
            f"{path}: {differing} cannot be arms and be prepared for them by another line; "
            "give both the same, or two names"
        )
    for file in (claim.primary.per_query, *(further.per_query for further in claim.further)):
        if file != Path(file).name:
            raise ClaimError(
                f"{path}: per_query '{file}' must be the name of a file in a run's own folder"
            )
    rules: list[Claim | Further] = [claim, *claim.further]
    for rule in rules:
        if rule.expected_sign not in (-1, 0, 1):
            raise ClaimError(f"{path}: expected_sign is 1, 0 or -1, not {rule.expected_sign}")
        if not rule.smallest_difference > 0:
            raise ClaimError(f"{path}: smallest_difference must be above 0")
    if not claim.seeds or len(set(claim.seeds)) < len(claim.seeds):
        raise ClaimError(f"{path}: seeds must be given, each once")
    refuse_tuning_seeds(claim, claim.seeds)


def refuse_tuning_seeds(claim: Claim, seeds: Sequence[int]) -> None:
    """Settings were chosen on the tuning seeds, so that a result on them would flatter.

    Raises:
        ClaimError: a seed is a tuning seed.
    """
    if both := sorted(set(seeds) & set(claim.tuning_seeds)):
        raise ClaimError(
            f"seed {', '.join(map(str, both))}: the settings were tuned on it, it is never "
            f"reported; tuning seeds are {claim.tuning_seeds}, registered seeds {claim.seeds}"
        )


def compose_arms(
    claim: Claim, overrides: Sequence[str] = (), conf: Path = CONF
) -> dict[str, DictConfig]:
    """Compose the config of every arm and of everything prepared, by name.

    Raises:
        ClaimError: an override of what the engine sets itself.
        hydra.errors.HydraException: an experiment or override that does not compose.
    """
    for override in overrides:
        key = override.lstrip("+~").split("=")[0]
        if key in ("seed", "experiment", "arm", "output_dir", "claim"):
            raise ClaimError(f"'{override}': the claim sets {key}; use --seeds, --arms or --claim")
    return {
        name: compose_experiment(claim.experiment(name), settings(claim, name, overrides), conf)
        for name in dict.fromkeys((*claim.arms, *claim.prepare))
    }


def settings(claim: Claim, name: str, overrides: Sequence[str]) -> list[str]:
    """Those of the caller's overrides that an arm takes: all, unless it is only prepared.

    What is prepared may be another method's experiment: it takes what changes nothing that is
    computed.
    """
    return [o for o in overrides if name in claim.arms or not changes_claim(o)]


def compose_experiment(
    experiment: str, overrides: Sequence[str] = (), conf: Path = CONF
) -> DictConfig:
    """The config that `tenfold experiment=...` would run, all but `name` still interpolated."""
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        config = compose(
            "config", [f"experiment={experiment}", *overrides], return_hydra_config=True
        )
    before = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(config)  # `name` may ask which experiment was chosen
        name = config.name
    finally:
        HydraConfig.instance().cfg = before
    with open_dict(config):
        config.pop("hydra")
        config.name = name
    return config


def distinct_sources(configs: Iterable[DictConfig]) -> list[DictConfig]:
    """What makes the data of these configs present, each once, in their order."""
    sources: list[DictConfig] = []
    for config in configs:
        if config.source is not None and config.source not in sources:
            sources.append(config.source)
    return sources


def changes_claim(override: str) -> bool:
    """Whether an override changes what is computed, not only where or how fast."""
    return override.lstrip("+~").split("=")[0].split(".")[0] not in NOT_HASHED


def claim_hash(claim: Claim, configs: Mapping[str, DictConfig]) -> str:
    """sha256 over the claim's content and the resolved configs of all that it runs, without seed
    and paths; `configs` as `compose_arms` gives them."""

    def plain(names: Iterable[str]) -> dict[str, Any]:
        # Seed and paths are set and then left out: what interpolates them must not differ either.
        return {
            name: comparable(configs[name], seed=0, data_root="", output_dir="") for name in names
        }

    content = {"claim": as_written(claim), "arms": plain(claim.arms)}
    content["prepare"] = plain(claim.prepare)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def as_written(claim: Claim) -> dict[str, Any]:
    """The claim as plain values, without its name."""
    content = asdict(claim)
    del content["name"]
    return content


def comparable(config: DictConfig, **values: Any) -> dict[str, Any]:
    """What decides the outcome of a run, as plain values, after setting `values`."""
    config = config.copy()
    with open_dict(config):
        config.update(values)
        plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key not in NOT_HASHED}
