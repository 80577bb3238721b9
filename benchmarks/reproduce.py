"""Runs a paper's claim and says whether it holds.

    python -m benchmarks.reproduce comatch [--claim NAME] [--seeds 1,2,3] [--arms a,b] [overrides]

The claim (arms, primary metric, seeds, expected sign, smallest difference that matters, negative
control) is written before the run in conf/reproduce/METHOD.yaml, other claims of the method in
conf/reproduce/METHOD/NAME.yaml. Its hash names the folder outputs/reproduce/METHOD/NAME-HASH/ and
travels with every results.json. Finished runs are reused; `hydra/launcher=slurm` and what else is
of Hydra's own says where the missing ones run. What the claim prepares (a pre-training, say, or an
arm that others start from) runs before the arms, once per seed. The verdict's rule is
`statistics.verdict`. Exit status: 0 once all runs finished, whatever the verdict; 1 if a run
failed; 2 if what was asked makes no sense.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from rich.console import Console

from benchmarks import claims, figures, report, summary
from benchmarks.claims import CONF, Claim, ClaimError, Showcase, nearest
from benchmarks.launch import LOCAL, Launcher, Run, launch, multirun_command, quoted
from benchmarks.outputs import check, word
from shared.data.images import read_image
from shared.data.readers.files import one_line
from shared.files import open_regular, read_json, write_json
from shared.nn.building import call
from shared.overrides import OverrideError, validate
from shared.predict.detections import SIDE
from shared.predict.outputs import Cell, sheet, thumbnail, write
from shared.provenance import git_state
from shared.training.run_folder import parse_config

OUTPUTS = Path("outputs")


def reproduce(
    method: str,
    claim_name: str | None = None,
    seeds: Sequence[int] | None = None,
    arms: Sequence[str] | None = None,
    jobs: int = 2,
    overrides: Sequence[str] = (),
    *,
    launcher: Launcher = launch,
    conf: Path = CONF,
    outputs: Path = OUTPUTS,
    console: Console | None = None,
) -> int:
    """Runs what is missing of a claim, by default the method's own with all seeds and all but the
    optional arms, which ["all"] includes; prints and writes its summary. Returns 1 if a run failed;
    ClaimError if the claim, a seed or an arm makes no sense."""
    console = console or Console(width=None if sys.stdout.isatty() else 110)
    path = claims.claim_path(method, claim_name, conf)
    claim = claims.load_claim(path)
    seeds = list(dict.fromkeys(seeds or claim.seeds))
    claims.refuse_tuning_seeds(claim, seeds)
    if arms is None:
        arms = [arm for arm in claim.arms if arm not in claim.optional]
    wanted_arms = list(claim.arms) if list(arms) == ["all"] else arms
    if unknown := [arm for arm in wanted_arms if arm not in claim.arms]:
        raise ClaimError(f"no arm '{unknown[0]}'{nearest(unknown[0], claim.arms)}")
    launching = [override for override in overrides if override.lstrip("+~").startswith("hydra")]
    overrides = [override for override in overrides if override not in launching]
    if not any(override.startswith("hydra/launcher=") for override in launching):
        launching.insert(0, LOCAL)
    here = LOCAL in launching
    configs = claims.compose_arms(claim, overrides, conf)
    identity = {"name": path.stem, "hash": claims.claim_hash(claim, configs)}
    base = outputs / "reproduce" / method / f"{identity['name']}-{identity['hash'][:8]}"
    console.print(f"[bold]{claim.title}[/bold]\n{claim.claim}\n", highlight=False)
    _warn_of_other_hashes(base, console)
    changed = [override for override in overrides if claims.changes_claim(override)]
    if changed:
        console.print(f"changed on the command line: {' '.join(changed)}", markup=False)

    def runs_of(names: Iterable[str]) -> list[Run]:
        numbers = sorted({*seeds, *claim.seeds})
        return [
            Run(n, seed, claim.experiment(n), base / n / f"seed{seed}", *_length(configs[n]))
            for seed in numbers
            for n in names
        ]

    preparing = claims.needed(claim, configs, wanted_arms)
    runs, prepared = runs_of(claim.arms), runs_of(claim.prepare)
    asked = [run for run in runs if run.arm in wanted_arms and run.seed in seeds]
    missing = [run for run in asked if run.results() is None]
    if reused := len(asked) - len(missing):
        console.print(f"reused {reused} of {len(asked)} runs in {base}", markup=False)
        _warn_of_other_commits(asked, console)
    errors: dict[Run, str] = {}
    if missing:

        def measured() -> str:
            """The precision that the machine of the first run chooses."""
            if here:
                return _measured(configs[claim.primary.method])
            first = Run(missing[0].arm, missing[0].seed, missing[0].experiment, base / "precision")
            given = [*overrides, "measure_only=true"]
            command = multirun_command([first], base, identity, jobs, given, launching)
            command.append(f"output_dir={quoted(str(first.folder))}")
            launcher(command, [first], log := base / "precision.log", 1, console)
            with suppress(OSError, ValueError), open_regular(first.folder / "config.yaml") as file:
                config = parse_config(file.read().decode())
                check(config, {"precision": word})
                return config["precision"]
            raise ClaimError(f"no precision was measured: {first.error(log, lines=1)}")

        for source in claims.distinct_sources(configs[n] for n in (*preparing, *wanted_arms)):
            call(source)
        precision = _register(base, claim, identity, changed, configs, measured)
        common = [f"precision={precision}"]
        threads = "threads" in claim.overrides or any(o.startswith("threads=") for o in overrides)
        if here and jobs > 1 and not threads:
            common.append("threads=1")

        def start(runs: Sequence[Run], given: Sequence[str], name: str) -> None:
            """Launches those runs that are not finished; adds the errors of those that fail."""
            if not (runs := [run for run in runs if run.results() is None]):
                return
            log = base / f"{name}.log"
            where = f"{jobs} at a time" if here else " ".join(launching)
            said = f"running {len(runs)} runs, {where}, {precision}; log in"
            console.print(said, end=" ")
            console.print(f"{log}", markup=False, highlight=False, soft_wrap=True)
            command = multirun_command(runs, base, identity, jobs, [*given, *common], launching)
            launcher(command, runs, log, jobs if here else 1, console)
            errors.update((run, run.error(log)) for run in runs if run.results() is None)

        of_missing = {run.seed for run in missing}
        for name in preparing:
            wanted = [run for run in prepared if run.arm == name and run.seed in of_missing]
            start(wanted, claims.settings(claim, name, overrides), f"prepare-{name}")
        failed = {run.seed for run in errors}
        start([run for run in missing if run.seed not in failed], overrides, "multirun")
        for run in missing:
            if run.seed in failed:
                errors.setdefault(run, "not started, because what it is prepared from failed")

    outcome = summary.collect(runs, claim, errors)
    outcome.failures.update({(r.arm, r.seed): errors[r] for r in prepared if r in errors})
    content = summary.summarise(claim, outcome, prepared)
    content |= {"method": method, **identity, "overrides": changed}
    curves = _curves(claim, [run for run in runs if (run.arm, run.seed) in outcome.results])
    summary.write(base, content)
    pictures = [base / "learning_curves.png"]
    figures.draw(pictures[0], content, curves.get(claim.curve, {}))
    if len(curves) > 1:
        pictures.append(base / "all_metrics.png")
        figures.draw_metrics(pictures[1], content, curves)
    if claim.showcase:
        data_root = Path(configs[claim.primary.method].data_root)
        names = [name for name in (claim.showcase.beside, claim.showcase.checkpoint) if name]
        shown = {
            name: str(base / name / f"seed{min(seeds)}" / "checkpoints" / "last.ckpt")
            if name in claim.arms
            else name
            for name in names
        }
        pictures += showcase(claim.showcase, shown, base, data_root, console)
    page = report.build(outputs, conf)
    _print(console, content, outcome, pictures, page)
    return 1 if outcome.failures else 0


def showcase(
    wanted: Showcase, shown: Mapping[str, str], base: Path, data_root: Path, console: Console
) -> list[Path]:
    """Pictures by `tenfold predict` or `tenfold-detect` with the checkpoints `shown`, by name, the
    claim's own last; a failure is said, and no more."""
    folder = base / "showcase"
    with tempfile.TemporaryDirectory() as temporary:
        for name, checkpoint in shown.items():
            output = Path(temporary) / name if wanted.beside else folder
            command = [sys.executable, "-m", *looking(wanted, checkpoint, data_root, output)]
            root = CONF.parent
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
            if done.returncode:
                console.print(f"no showcase: {done.stderr.strip()[-500:]}", markup=False)
                return []
        if wanted.beside:
            rows = {name: Path(temporary) / name for name in shown}
            named = "pictures/{}.png" if wanted.embeddings else "picture_{}.png"
            joined = side_by_side(rows, wanted.pictures, named)
            return [write(folder / "contact_sheet.png", joined)]
    return [folder / "contact_sheet.png", *sorted(folder.glob("overlay_*.png"))]


def looking(wanted: Showcase, checkpoint: str, data_root: Path, output: Path) -> list[str]:
    """The module and arguments that look at the pictures with one checkpoint."""
    images, count = data_root / wanted.images, f"{wanted.pictures}"
    if wanted.embeddings:
        embeddings = data_root / wanted.embeddings
        given = [f"{images}", "--classes", ",".join(wanted.texts), "--texts", f"{embeddings}"]
        given += ["--detector", checkpoint, "--out", f"{output}", "--sheet-images", count]
        return ["methods.pb_ovd.detect", *given]
    given = [f"checkpoint={checkpoint}", f"images={images}", f"output={output}"]
    if wanted.pictures:
        return ["shared.cli", "predict", *given, f"sheet_images={count}"]
    asked = [f"texts=[{','.join(wanted.texts)}]", f"overlays={wanted.overlays}"]
    return ["shared.cli", "predict", *given, *asked]


def side_by_side(folders: Mapping[str, Path], count: int, named: str) -> Image.Image:
    """What models found in the same pictures, the first `count` of each folder as they are `named`:
    one column a picture, one row a model."""
    sections = []
    for name, folder in folders.items():
        paths = [folder / named.format(number) for number in range(1, count + 1)]
        cells = [
            Cell(thumbnail(read_image(path), SIDE), f"{number}")
            for number, path in enumerate(paths, 1)
            if path.is_file()
        ]
        sections.append((name, cells))
    return sheet(sections, count, SIDE)


def _curves(claim: Claim, finished: Sequence[Run]) -> dict[str, figures.Curves]:
    """Validation metric -> the curves of every arm, sorted by name."""
    found: dict[str, dict[str, list]] = {}
    for run in finished:
        for metric, curve in figures.read_curves(run.folder / "metrics.csv").items():
            of_arms = found.setdefault(metric, {arm: [] for arm in claim.arms})
            of_arms[run.arm].append(curve)
    return dict(sorted(found.items()))


def _length(config: DictConfig) -> tuple[int | None, str]:
    """Steps or epochs of training, for the progress display."""
    for unit in ("step", "epoch"):
        if (count := config.trainer.get(f"max_{unit}s")) and count > 0:
            return count, unit
    return None, "step"


def _register(
    base: Path,
    claim: Claim,
    identity: Mapping[str, str],
    overrides: Sequence[str],
    configs: Mapping[str, DictConfig],
    measured: Callable[[], str],
) -> str:
    """Writes claim.json before the first run; returns the precision that all runs here share."""
    path, precision = base / "claim.json", configs[claim.primary.method].precision
    if os.path.lexists(path):
        return _registered_precision(path)
    base.mkdir(parents=True, exist_ok=True)
    if precision == "auto":
        precision = measured()
    content = {**identity, "precision": precision, "overrides": list(overrides)}
    write_json(path, {**content, "claim": claims.as_written(claim)}, indent=2)
    return precision


def _measured(config: DictConfig) -> str:
    # Here, because it imports torch, which the rest of this program does without.
    from shared.run import resolve_precision

    with open_dict(config):
        config.output_dir = "nowhere"  # a run there would have its own precision
    return resolve_precision(config)


def _registered_precision(path: Path) -> str:
    """The precision that an earlier command registered; ClaimError if the file is damaged."""
    try:
        content = read_json(path)
        check(content, {"precision": word})
    except (OSError, ValueError) as error:
        raise ClaimError(f"{path} is damaged, delete it ({one_line(error)})") from None
    return content["precision"]


def _warn_of_other_hashes(base: Path, console: Console) -> None:
    name = base.name.rsplit("-", 1)[0]
    others = {p.parent.name for p in base.parent.glob(f"{name}-????????/claim.json")} - {base.name}
    if others:
        said = f"note: {base.parent} also holds results of the claim as it was written otherwise:"
        console.print(f"{said} {', '.join(sorted(others))}; they do not count here", markup=False)


def _warn_of_other_commits(runs: Sequence[Run], console: Console) -> None:
    commits = {str(found.get("git_commit")) for run in runs if (found := run.results())}
    if others := sorted(commits - {str(git_state()["git_commit"]), "None"}):
        said = f"reused results were made by other code (commit {', '.join(others)})"
        again = "delete their folders to run them again"
        console.print(f"warning: {said}; {again}", markup=False)


def _print(
    console: Console,
    content: Mapping[str, Any],
    outcome: summary.Outcome,
    pictures: Sequence[Path],
    page: Path,
) -> None:
    metric = content["claim"]["primary"]["metric"]
    console.print()
    console.print(summary.rich_table(metric, *summary.arm_rows(content)))
    for line in [*summary.preparation_lines(content), *summary.data_lines(content)]:
        console.print(line, markup=False, highlight=False)
    console.print(summary.rich_table("paired by seed", *summary.comparison_rows(content)))
    if content["further"]:
        console.print(summary.rich_table("further claims", *summary.further_rows(content)))
    for error in dict.fromkeys(outcome.failures.values()):  # one message may stop many runs
        runs = [f"{arm} seed {s}" for (arm, s), text in outcome.failures.items() if text == error]
        console.print(f"failed: {', '.join(runs)}", style="bold red")
        console.print(error, markup=False, highlight=False)
    lines = [
        f"claim holds: {content['verdict']}",
        content["reason"],
        *(f"{f['name']}: {f['verdict']}. {f['reason']}" for f in content["further"]),
        *(f"picture: {picture}" for picture in pictures),
        *(f"page:    {shown}" for shown in content["pages"]),
        f"report:  {page}",
        f"every metric of every arm: {pictures[0].parent / 'summary.md'}",
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduce", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("method")
    parser.add_argument("--claim", dest="claim_name", help="another claim of the method")
    parser.add_argument("--seeds", type=_numbers, help="1,2,3; default: the registered seeds")
    parser.add_argument("--arms", type=lambda text: text.split(","), help="a,b or all")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side (2)")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for all arms")
    options = parser.parse_intermixed_args(arguments)
    try:
        claim = claims.load_claim(claims.claim_path(options.method, options.claim_name))
        validate([f"experiment={claim.experiment(claim.primary.method)}", *options.overrides])
        return reproduce(**vars(options))
    except (ClaimError, OverrideError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.replace(",", " ").split()]


if __name__ == "__main__":
    sys.exit(main())
