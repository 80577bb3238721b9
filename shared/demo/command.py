"""`tenfold demo FILE... [images=DIR]`: a local page that asks trained models.

Each checkpoint, a file of ours, `zoo:NAME` or an official file, does what it can: it captions, it
answers questions, it matches pictures with texts, it detects objects by words. Of two that can do
the same the first one does it. The name of a method, or of its tool, stands for the newest runs of
its modules below outputs/.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from shared.demo import USAGE
from shared.demo.desk import Desk
from shared.experiments import CONF
from shared.predict.command import one_line_errors
from shared.predict.inputs import PredictError
from shared.predict.model import Model, load

MOST_PORT = 65535


def main(names: Sequence[str], overrides: Sequence[str]) -> None:
    """Show the page of the checkpoints and methods of these names, and as overrides that are spelt
    right say, until Ctrl-C. Errors: see `one_line_errors`."""
    with one_line_errors("demo"):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config: Any = OmegaConf.to_container(compose("demo", list(overrides)), resolve=True)
        demo(names, config)


def demo(names: Sequence[str], config: dict[str, Any]) -> None:
    """Show the page of checkpoints of these names and those of conf/demo.yaml's `checkpoint`, until
    it is interrupted. PredictError and CheckpointError of what cannot be used."""
    port, images = config["port"], config["images"]
    if not (type(port) is int and 0 <= port <= MOST_PORT):
        raise PredictError(f"port={port}: a whole number from 0 to {MOST_PORT}")
    if find_spec("gradio") is None:
        raise PredictError(
            "the page needs gradio, which is not installed: pip install -e '.[demo]'"
        )
    given = [config["names"].get(name, name) for name in [*names, *_listed(config["checkpoint"])]]
    paths = [path for name in given for path in meant(name)]
    if not paths:
        raise PredictError(f"no checkpoint given; usage: {USAGE}")
    experiments = _listed(config["official"]) or [None] * len(paths)
    if len(experiments) != len(paths):
        counts = f"{len(paths)} checkpoints, but {len(experiments)} experiments"
        raise PredictError(f"{counts}: official=[blip/vqa, null] names one each, null for ours")
    models: dict[str, Model] = {}
    for path, experiment in zip(paths, experiments, strict=True):
        models[path] = model = load(path, config["device"], experiment, config["overrides"])
        if "detect" in model.abilities:
            model.open_texts(config["texts"])
    desk = Desk(models, None if images is None else Path(str(images)))
    for path in models.keys() - set(desk.names.values()):
        print(f"tenfold demo: {path} has nothing to do on the page", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="tenfold-demo-") as folder:
        # Both are read when gradio is imported: where uploads go, and that it reports nothing.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        from shared.demo.page import serve

        serve(desk, port)


def meant(name: str, outputs: Path = Path("outputs")) -> list[str]:
    """The checkpoint of that name or, if it is a method's, those of its newest runs: of each module
    that was trained the one written last. PredictError of a method without runs."""
    if not (CONF / "experiment" / name).is_dir() or Path(name).is_file():
        return [name]
    newest: dict[str, str] = {}
    files = outputs.glob(f"{name}/**/checkpoints/last.ckpt")
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            config = yaml.safe_load((path.parents[1] / "config.yaml").read_text())
            newest.setdefault(config["method"]["_target_"], str(path))
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            logging.warning("%s is passed over: no config.yaml beside it says what it is", path)
    if not newest:
        raise PredictError(f"no run of {name} below {outputs}/; give a checkpoint, or train one")
    return list(newest.values())


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
