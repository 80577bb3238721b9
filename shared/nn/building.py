"""Building by name: only what this project itself defines, wherever the name comes from.

Configs and checkpoints name classes by dotted path. A path can reach nearly anything through
attributes (`shared.data.fetching.os.system`), and a class of ours may hand its arguments on to
something that calls them; so a name counts only where it is defined, only if it has the kind that
is wanted, and its arguments stay the plain values that they are.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import isclass, isfunction
from typing import Any, TypeVar

from omegaconf import OmegaConf

TRUSTED_PACKAGES = ("shared", "methods")
BUILDERS = (*TRUSTED_PACKAGES, "benchmarks")  # of data; no class of theirs stands in a checkpoint
Built = TypeVar("Built")


def build(config: Any, base: type[Built]) -> Built:
    """Build the object that `{"_target_": "shared....", **arguments}` describes; ValueError if that
    is no subclass of `base` defined in this project, or does not take these arguments."""
    target, arguments = _parts(config, base.__name__)
    return applied(trusted_class(target, base), arguments)


def call(config: Any, **further: Any) -> Any:
    """Call the function that the config describes; as `build` does with a class."""
    target, arguments = _parts(config, "function")
    return applied(trusted_function(target), {**arguments, **further})


def applied(function: Callable[..., Built], arguments: Mapping[str, Any]) -> Built:
    """The function's value; ValueError if it has no such argument, or needs another one."""
    try:
        return function(**arguments)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise ValueError(f"{function.__module__}.{error}") from error


def trusted_class(target: str, base: type[Built]) -> type[Built]:
    """The class that `target` names; ValueError if it is no subclass of `base` defined here."""
    return _defined_here(
        target, base.__name__, TRUSTED_PACKAGES, lambda it: isclass(it) and issubclass(it, base)
    )


def trusted_function(target: str) -> Callable[..., Any]:
    """The public function that `target` names; ValueError if it is not defined here."""
    return _defined_here(target, "function", BUILDERS, isfunction)


def _parts(config: Any, kind: str) -> tuple[str, dict[str, Any]]:
    if OmegaConf.is_config(config):
        config = OmegaConf.to_container(config, resolve=True)
    target = config.get("_target_") if isinstance(config, Mapping) else None
    if not isinstance(target, str):
        raise ValueError(f"a {kind} needs a `_target_`, got {str(config)[:200]}")
    return target, {str(key): value for key, value in config.items() if key != "_target_"}


def _defined_here(
    target: str, kind: str, packages: tuple[str, ...], fits: Callable[[Any], bool]
) -> Any:
    problem = f"{target!r} does not name a {kind} under {' or '.join(packages)}"
    module_name, _, name = target.rpartition(".")
    parts = target.split(".")
    # Importing a `__main__` would run it.
    public = all(part.isidentifier() and not part.startswith("_") for part in parts)
    if not (public and parts[0] in packages and module_name):
        raise ValueError(problem)
    try:
        found: Any = getattr(import_module(module_name), name, None)
    except ImportError as error:
        raise ValueError(f"{problem}: {error}") from error
    if not fits(found):
        raise ValueError(problem)
    if f"{found.__module__}.{found.__qualname__}" != target:
        raise ValueError(f"{problem} (it is defined in {found.__module__})")
    return found
