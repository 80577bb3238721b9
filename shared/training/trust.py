"""Which classes a config or a checkpoint may name: ours, by where they are defined."""

from importlib import import_module

TRUSTED_PACKAGES = ("shared", "methods")


def trusted_class(target: str, base: type) -> type:
    """The class that `target` names, if it is a subclass of `base` defined in this project.

    Configs and checkpoints name classes by dotted path; whatever such a path could reach through
    attributes (`shared.data.sources.os.system`) must not be called.

    Raises:
        ValueError: the target is not such a class.
    """
    module_name, _, class_name = target.rpartition(".")
    problem = f"{target!r} does not name a {base.__name__} under {' or '.join(TRUSTED_PACKAGES)}"
    if module_name.split(".")[0] not in TRUSTED_PACKAGES:
        raise ValueError(problem)
    try:
        found = getattr(import_module(module_name), class_name, None)
    except ImportError as error:
        raise ValueError(f"{problem}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(problem)
    if f"{found.__module__}.{found.__qualname__}" != target:
        raise ValueError(f"{problem} (it is defined in {found.__module__})")
    return found
