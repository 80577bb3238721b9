"""`make data METHOD=m`: make the data of the method's miniature and claims present and list them.

Data that a seed draws (a noisy set, say) is made for seed 0 here, and for others when they run.

ARGS are Hydra overrides of these configs, "+" before what they leave at its default. CasCode's
corpus of all pinned packages, beside the miniature's:

    make data METHOD=cascode ARGS='source.profile=full source.root=data/code-full'
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig

from benchmarks import claims
from benchmarks.claims import CONF, ClaimError
from shared.composing import compose_experiment
from shared.nn.building import call
from shared.overrides import OverrideError, validate


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("method")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides")
    given = parser.parse_args(arguments)
    method, overrides = given.method, given.overrides
    try:
        validate([f"experiment={method}/mini", *overrides])
        found = sources_of(method, overrides=overrides)
    except (ClaimError, OverrideError, HydraException) as error:
        print(f"data: {error}", file=sys.stderr)
        return 1
    if not found:
        print(f"{method}: its miniature needs no data")
    for source in found:
        try:
            made = call(source)
        except Exception as error:  # builders fail as networks, disks and archives do
            print(f"data: {error}", file=sys.stderr)
            return 1
        for name, entry in made.items():
            print(f"{name}: {source.root} (licence {entry['licence']})")
            for file, checksum in entry["files"].items():
                print(f"  {checksum}  {file}")
    return 0


def sources_of(method: str, conf: Path = CONF, overrides: Sequence[str] = ()) -> list[DictConfig]:
    """The `source` of METHOD/mini and of all that the method's claims run, each once."""
    configs = [compose_experiment(f"{method}/mini", overrides, conf)]
    reproduce = conf / "reproduce"
    for path in (reproduce / f"{method}.yaml", *sorted((reproduce / method).glob("*.yaml"))):
        if path.is_file():
            configs += claims.compose_arms(claims.load_claim(path), overrides, conf).values()
    return claims.distinct_sources(configs)


if __name__ == "__main__":
    sys.exit(main())
