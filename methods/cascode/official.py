"""Files of the CodeBERT repository and encoders of the hub <-> our modules (docs/papers/cascode.md,
section 9).

There is no official CasCode. Three kinds of files exist: an encoder as the hub has it
(`embeddings...`, perhaps below `roberta.` or `bert.`), the bi-encoder that the repository
fine-tunes (the same below `encoder.`), and its pair classifier (`roberta....`, `classifier....`);
the joint model of the golden case has the encoder below `encoder.` and the same `classifier....`.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from methods.cascode.encoders import NO_JUDGE, encoder_rules, read, rules_below
from methods.cascode.module import CodeSearch, Fast, PairJudge
from shared.checkpoints.official import (
    KeyReport,
    KeyTable,
    Rule,
    export_official,
    import_official,
)
from shared.checkpoints.reading import CheckpointError, load_module

HEAD = [
    Rule("classifier.dense.{rest}", "classifier.dense.{rest}"),
    Rule("classifier.out_proj.{rest}", "classifier.output.{rest}"),
]


def load(module: CodeSearch, path: str | PathLike[str]) -> KeyReport:
    """Load weights into a module that needs no others.

    Args:
        path: a file of the repository (`model.bin`, `pytorch_model.bin`), a folder in Hugging
            Face's layout, or "package:NAME"; `Fast` takes any encoder, the others a classifier.

    Raises:
        CheckpointError: not readable without executing code, or any key missing, unexpected or of
            another shape; the module is then unchanged.
    """
    return load_weights(module, read(path))


def load_weights(module: CodeSearch, source: Mapping[str, Any]) -> KeyReport:
    """`load` from the content of a file; also takes what `export` gives."""
    return _replaced(module, import_official(source, table(source, module), module))


def load_initial(module: CodeSearch, path: str | PathLike[str]) -> KeyReport:
    """Load the encoder that training starts from; a head that the file lacks stays as it is."""
    source = read(path)
    fresh = {"classifier.{rest}": "the file has no classifier of pairs"}
    return _replaced(module, import_official(source, table(source, module, fresh), module))


def warm_start(module: CodeSearch, path: str | PathLike[str], kind: str) -> KeyReport:
    """As `load_initial`; with `kind` "tenfold" the encoder of a checkpoint of ours.

    Raises:
        ValueError: another kind than "tenfold" or "official".
    """
    if kind == "official":
        return load_initial(module, path)
    if kind != "tenfold":
        raise ValueError(f'warm_start.kind is "tenfold" or "official", got {kind!r}')
    trained = load_module(path)
    if not isinstance(trained, CodeSearch):
        raise CheckpointError(f"{path}: a checkpoint of {type(trained).__name__}, not of CasCode")
    fresh = {"classifier.{rest}": "only the encoder is taken"}
    source = {f"encoder.{key}": value for key, value in trained.encoder.state_dict().items()}
    report = import_official(source, KeyTable([Rule("{key}", "{key}")], {}, fresh), module)
    return _replaced(module, report)


def export(module: CodeSearch) -> dict[str, Any]:
    """The module's state under the repository's names: a bi-encoder or a classifier."""
    prefix = "encoder." if isinstance(module, Fast) else "roberta."
    rules = rules_below(prefix, module.encoder)
    rules += HEAD if isinstance(module, PairJudge) else []
    return export_official(module, KeyTable(rules))


def table(
    source: Mapping[str, Any], module: CodeSearch, fresh: Mapping[str, str] | None = None
) -> KeyTable:
    """How the keys of a file become those of the module; what it has no use for is dropped."""
    rules, dropped = encoder_rules(source, module.encoder)
    if isinstance(module, PairJudge):
        rules += HEAD
    else:
        dropped |= NO_JUDGE
    return KeyTable(rules, dropped, fresh or {})


def _replaced(module: CodeSearch, report: KeyReport) -> KeyReport:
    """The report; training now starts from what was loaded, no longer from `initial`."""
    module.initial = None
    return report
