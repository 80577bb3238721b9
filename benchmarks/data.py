"""`make data METHOD=m`: make the data of a method's miniature present and say where it lies."""

import argparse
import os
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

CONF = Path(__file__).resolve().parent.parent / "conf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method")
    arguments = parser.parse_args()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("config", overrides=[f"experiment={arguments.method}/mini", "name=data"])
    for name, entry in instantiate(cfg.source).items():
        print(f"{name}: {cfg.source.root} (licence {entry['licence']})")
        for file, checksum in entry["files"].items():
            print(f"  {checksum}  {file}")


if __name__ == "__main__":
    main()
