"""`make data METHOD=m`: make the data of the method's miniature and claims present and list them.

Data that a seed draws (a noisy set, say) is made for seed 0 here, and for others when they run.
"""

import argparse
import sys
from pathlib import Path

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig

from benchmarks.claims import (
    CONF,
    ClaimError,
    compose_arms,
    compose_experiment,
    distinct_sources,
    load_claim,
)
from shared.overrides import OverrideError, validate


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("method")
    method = parser.parse_args(arguments).method
    try:
        validate([f"experiment={method}/mini"])
        found = sources_of(method)
    except (ClaimError, OverrideError, HydraException) as error:
        print(f"data: {error}", file=sys.stderr)
        return 1
    if not found:
        print(f"{method}: its miniature needs no data")
    for source in found:
        for name, entry in instantiate(source).items():
            print(f"{name}: {source.root} (licence {entry['licence']})")
            for file, checksum in entry["files"].items():
                print(f"  {checksum}  {file}")
    return 0


def sources_of(method: str, conf: Path = CONF) -> list[DictConfig]:
    """The `source` of METHOD/mini and of all that the method's claims run, each once."""
    configs = [compose_experiment(f"{method}/mini", (), conf)]
    reproduce = conf / "reproduce"
    for path in (reproduce / f"{method}.yaml", *sorted((reproduce / method).glob("*.yaml"))):
        if path.is_file():
            configs += compose_arms(load_claim(path), (), conf).values()
    return distinct_sources(configs)


if __name__ == "__main__":
    sys.exit(main())
