"""Files of the CodeBERT repository and encoders of the hub <-> our modules (docs/papers/cascode.md,
section 9).

Three kinds of files exist: an encoder as the hub has it (`embeddings...`, perhaps below `roberta.`
or `bert.`), the bi-encoder that the repository fine-tunes (the same below `encoder.`), and its pair
classifier (`roberta....`, `classifier....`); the joint model of the golden case has the encoder
below `encoder.` and the same `classifier....`.

A module here is one of `methods.cascode.module`: it has an `encoder`, and a `classifier` if it
judges pairs.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from torch import nn

from methods.cascode.encoders import NO_JUDGE, encoder_rules, read, rules_below, trained_encoder
from shared.checkpoints.official import KeyReport, KeyTable, Rule, export_official, import_official

HEAD = [
    Rule("classifier.dense.{rest}", "classifier.dense.{rest}"),
    Rule("classifier.out_proj.{rest}", "classifier.output.{rest}"),
]


def load(module: nn.Module, path: str | PathLike[str]) -> KeyReport:
    """Load weights into a module that needs no others.

    Args:
        path: a file of the repository (`model.bin`, `pytorch_model.bin`), a folder in Hugging
            Face's layout, or "package:NAME"; `Fast` takes any encoder, the others a classifier.

    Raises:
        CheckpointError: not readable without executing code, or any key missing, unexpected or of
            another shape; the module is then unchanged.
    """
    return load_weights(module, read(path))


def load_weights(
    module: Any, source: Mapping[str, Any], fresh: Mapping[str, str] | None = None
) -> KeyReport:
    """`load` from the content of a file, or from what `export` gives.

    Args:
        fresh: keys of the module that the file may lack, with the reason.
    """
    rules, dropped = encoder_rules(source, module.encoder)
    if hasattr(module, "classifier"):
        rules += HEAD
    else:
        dropped |= NO_JUDGE
    return _imported(source, KeyTable(rules, dropped, fresh or {}), module)


def load_initial(module: nn.Module, path: str | PathLike[str]) -> KeyReport:
    """Load the encoder that training starts from; a head that the file lacks stays as it is."""
    fresh = {"classifier.{rest}": "the file has no classifier of pairs"}
    return load_weights(module, read(path), fresh)


def warm_start(module: nn.Module, path: str | PathLike[str], kind: str) -> KeyReport:
    """As `load_initial`; with `kind` "tenfold" the encoder of a checkpoint of ours."""
    if kind == "official":
        return load_initial(module, path)
    if kind != "tenfold":
        raise ValueError(f'warm_start.kind is "tenfold" or "official", got {kind!r}')
    state = trained_encoder(path).state_dict()
    fresh = {"classifier.{rest}": "only the encoder is taken"}
    table = KeyTable([Rule("{key}", "{key}")], {}, fresh)
    return _imported({f"encoder.{key}": value for key, value in state.items()}, table, module)


def export(module: Any) -> dict[str, Any]:
    """The module's state under the repository's names: a bi-encoder or a classifier."""
    judges = hasattr(module, "classifier")
    rules = rules_below("roberta." if judges else "encoder.", module.encoder)
    return export_official(module, KeyTable(rules + HEAD if judges else rules))


def _imported(source: Mapping[str, Any], table: KeyTable, module: Any) -> KeyReport:
    """Import; training now starts from what was loaded, no longer from `initial`."""
    report = import_official(source, table, module)
    module.initial = None
    return report
