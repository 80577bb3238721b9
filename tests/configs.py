"""Configs of experiments, composed once: Hydra takes a fifth of a second, setting keys no time."""

from functools import cache

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from shared.experiments import CONF


def composed(experiment: str, *overrides: str) -> DictConfig:
    """The config that Hydra composes: what chooses no group is set in a copy, as Hydra does it."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    groups = [o for o in parsed if (CONF / o.key_or_group).is_dir()]
    chosen = tuple(o.input_line or "" for o in groups)
    config = _composed(f"experiment={experiment}", f"name={experiment}", *chosen).copy()
    for override in parsed:
        if override not in groups:
            key, value = override.key_or_group, override.value()
            OmegaConf.update(config, key, value, merge=True, force_add=override.is_add())
    return config


@cache
def _composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))
