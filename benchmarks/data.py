"""`make data METHOD=m`: make the data of a method's miniature present and say where it lies."""

import argparse
import sys

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from shared.overrides import CONF, OverrideError, validate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method")
    arguments = parser.parse_args()
    try:
        validate([f"experiment={arguments.method}/mini"])
    except OverrideError as error:
        sys.exit(f"data: {error}")
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("config", overrides=[f"experiment={arguments.method}/mini", "name=data"])
    for name, entry in instantiate(cfg.source).items():
        print(f"{name}: {cfg.source.root} (licence {entry['licence']})")
        for file, checksum in entry["files"].items():
            print(f"  {checksum}  {file}")


if __name__ == "__main__":
    main()
