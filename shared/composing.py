"""Composes experiments; shows Hydra the lines of `shared.experiments` as configs of its group
`experiment`: whoever composes imports this module first.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict

from shared.experiments import CONF, FIGURES, PAPER, Line, arms, rows


def _as_config(line: Line, conf: Path) -> DictConfig:
    """The content that the line would have as a file of conf/experiment/."""
    config = OmegaConf.create({})
    below = line.get("experiment")
    defaults: list[Any] = [f"/experiment/{below}"] if below else []
    for key, value in line.items():
        if key in FIGURES or key == "experiment":
            continue
        if (conf / key.partition("@")[0]).is_dir():
            defaults.append({f"override /{key}": value})
        else:
            OmegaConf.update(config, key, value, force_add=True)
    if "metric" in line:
        config.paper = {key: line.get(key) for key in PAPER}
    config.defaults = [*defaults, "_self_"]
    return config


class Tables(ConfigSource):
    """The lines of the tables below a conf folder."""

    @staticmethod
    def scheme() -> str:
        return "tables"

    def _lines(self, group: str) -> dict[str, Line]:
        match group.split("/"):
            case ["experiment", "reproduce", _, *_]:
                return arms(group.removeprefix("experiment/reproduce/"), Path(self.path))
            case ["experiment", method]:
                return rows(method, Path(self.path))
        return {}

    def _groups(self, group: str) -> Iterator[str]:
        if group == "experiment":
            yield from ("reproduce", *(p.stem for p in Path(self.path, "rows").glob("*.yaml")))
        elif group.startswith("experiment/reproduce"):
            folder = Path(self.path, group.removeprefix("experiment/"))
            yield from (path.stem for path in folder.glob("*.yaml"))

    def load_config(self, config_path: str) -> ConfigResult:
        group, _, name = config_path.removesuffix(".yaml").rpartition("/")
        config = _as_config(self._lines(group)[name], Path(self.path))
        return ConfigResult(self.provider, self.full_path(), config, {"package": "_global_"})

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        group = config_path.rstrip("/")
        return group in ("", "experiment", "experiment/reproduce") or bool(self._lines(group))

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.removesuffix(".yaml").rpartition("/")
        return name in self._lines(group)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        group = config_path.rstrip("/")
        configs = () if results_filter is ObjectType.GROUP else self._lines(group)
        groups = () if results_filter is ObjectType.CONFIG else self._groups(group)
        return sorted({*configs, *groups})


class TablesBesideFiles(SearchPathPlugin):
    """Lets Hydra look into the tables of the folder that its configs come from."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for element in list(search_path.get_path()):
            if element.provider == "main" and "pkg://" not in element.path:
                folder = element.path.removeprefix("file://")
                search_path.append("tables", f"{Tables.scheme()}://{folder}")


for plugin in (Tables, TablesBesideFiles):
    Plugins.instance().register(plugin)


def compose_experiment(
    experiment: str, overrides: Sequence[str] = (), conf: Path = CONF
) -> DictConfig:
    """The config that `tenfold experiment=...` would run, all but `name` still interpolated."""
    given = [f"experiment={experiment}", *overrides]
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        config = compose("config", given, return_hydra_config=True)
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
