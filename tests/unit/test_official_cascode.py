"""Files of the CodeBERT repository and of the hub, with random weights, in and out of our modules.

The keys are written down here from docs/papers/cascode.md, section 9, not taken from our tables.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bert_files import (
    BERT,
    CONSTANT,
    ENCODERS,
    ROBERTA,
    Sizes,
    config,
    encoder,
    folder_of,
    linear,
    random_state,
    save_run,
    text,
    tree,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from methods.cascode import official
from methods.cascode.model import CodeEncoder
from methods.cascode.module import CodeSearch, Fast, Shared, Slow
from shared.checkpoints.official import KeyReport
from shared.checkpoints.reading import CheckpointError
from tests.unit.test_predict import write_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden" / "cascode"


FORMS: dict[str, Callable[..., Any]] = {
    "fast": Fast,
    "slow": lambda **values: Slow(**{"fast": "none.ckpt"} | values),
    "shared": Shared,
}


def build(form: str = "fast", s: Sizes = ROBERTA, pooling: str = "mean", **changes: Any) -> Any:
    torch.manual_seed(1)
    return FORMS[form](**{"text": text(s), "pooling": pooling, "normalize": True} | changes)


def copy_of(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert torch.equal(found[key], value), key


def assert_accounted(report: KeyReport, state: Mapping[str, Tensor], dropped: set[str]) -> None:
    """Every key of the file is one of ours or dropped, for a reason; every one of ours is there."""
    assert report.complete
    assert set(report.dropped) == dropped
    assert all(report.dropped.values())
    assert {key for key, _ in report.mapped} == state.keys() - dropped
    assert not report.fresh
    assert not report.interpolated


def without(state: Mapping[str, Tensor], *parts: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not any(p in key for p in parts)}


@pytest.mark.parametrize(
    ("kind", "case"), [("bi-encoder", "roberta_encoder_pooling"), ("classifier", "cross_encoder")]
)
def test_the_keys_written_here_are_those_of_the_official_code(kind, case):
    """Which made the golden files."""
    found = load_file(GOLDEN / case / "weights.safetensors")
    sizes = json.loads((GOLDEN / case / "case.json").read_text())["config"]
    names = ("vocab_size", "max_position_embeddings", "type_vocab_size", "hidden_size",
             "intermediate_size", "num_hidden_layers")  # fmt: skip
    assert tree(kind, Sizes(*(sizes[name] for name in names))) == {
        key: tuple(value.shape) for key, value in found.items()
    }


# --- in and out ---


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_every_file_that_holds_an_encoder_becomes_a_fast_model(kind, pooling):
    prefix, s = ENCODERS[kind]
    state, module = random_state(kind, s), build("fast", s, pooling)
    unused = CONSTANT + (() if pooling == "pooler" else ("pooler",))
    dropped = {k for k in state if k.startswith(("lm_head.", "cls.", "classifier."))}
    dropped |= {k for k in state if any(part in k for part in unused)}
    if pooling == "pooler" and f"{prefix}pooler.dense.bias" not in state:
        with pytest.raises(CheckpointError, match=r"missing:\n  encoder\.pooler\.weight"):
            official.load(module, state)
        return
    assert_accounted(official.load(module, state), state, dropped)
    # Out again it is a bi-encoder of the repository, whatever it came from.
    kept = {key: value for key, value in state.items() if key not in dropped}
    expected = {f"encoder.{key.removeprefix(prefix)}": value for key, value in kept.items()}
    assert_equal(official.export(module), expected)


@pytest.mark.parametrize("form", ["slow", "shared"])
@pytest.mark.parametrize("source", ["weights", "folder", "old folder"])
def test_a_classifier_in_and_out(form, source, tmp_path):
    state, module = random_state("classifier"), build(form)
    if source == "weights":
        report = official.load(module, state)
    else:
        folder = folder_of(state, ROBERTA, tmp_path / "model", pickled=source == "old folder")
        report = official.load(module, folder)
    assert_accounted(report, state, {"roberta.embeddings.position_ids"})
    assert_equal(official.export(module), without(state, *CONSTANT))


@pytest.mark.parametrize("form", ["fast", "slow", "shared"])
@pytest.mark.parametrize("s", [ROBERTA, BERT], ids=["roberta", "bert"])
def test_our_own_state_survives_the_detour(form, s):
    module, other = build(form, s), build(form, s)
    for tensor in module.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape))
    report = official.load(other, official.export(module))
    assert not report.dropped
    assert_equal(other.state_dict(), module.state_dict())


# --- files that do not fit ---


def changed(kind: str, **changes: Tensor | None) -> dict[str, Any]:
    """A random file with keys replaced, added or, by None, left out; `__` is a dot."""
    given = {key.replace("__", "."): value for key, value in changes.items()}
    state = random_state(kind) | given
    return {key: value for key, value in state.items() if value is not None}


Z = torch.zeros
HEAD_MISSING = "".join(
    rf"\n  classifier\.{name}" for name in ("dense.weight", "dense.bias", "output.weight")
)


@pytest.mark.parametrize(
    ("form", "state", "message"),
    [
        ("slow", lambda: random_state("hub"), f"4 missing:{HEAD_MISSING}"),
        ("shared", lambda: random_state("bi-encoder"), f"4 missing:{HEAD_MISSING}"),
        (
            "slow",
            lambda: changed("classifier", classifier__out_proj__bias=None),
            r"1 missing:\n  classifier\.output\.bias",
        ),
        (
            "shared",  # one score, as of a regression
            lambda: changed("classifier", classifier__out_proj__weight=Z(1, 8)),
            r"1 resized:\n  classifier\.out_proj\.weight \(1, 8\) there, "
            r"classifier\.output\.weight \(2, 8\) here",
        ),
        (
            "shared",  # BERT's classifier is one layer on the pooler
            lambda: {
                key: Z(shape)
                for key, shape in (encoder("bert.", ROBERTA) | linear("classifier", 8, 2)).items()
            },
            r"2 unexpected:\n  classifier\.weight\n  classifier\.bias",
        ),
        (
            "fast",
            lambda: random_state("hub", replace(ROBERTA, width=12)),
            r"embeddings\.word_embeddings\.weight \(20, 12\) there, "
            r"encoder\.text\.embeddings\.word\.weight \(20, 8\) here",
        ),
        (
            "fast",
            lambda: random_state("hub", replace(ROBERTA, layers=3)),
            r"16 unexpected:\n  encoder\.layer\.2\.attention\.self\.query\.weight \(as encoder",
        ),
        (
            "fast",  # the repository's file has one prefix for all
            lambda: changed("bi-encoder", embeddings__LayerNorm__bias=Z(8)),
            r"1 unexpected:\n  embeddings\.LayerNorm\.bias",
        ),
        (
            "fast",
            lambda: changed("hub", encoder__layer__0__output__dense__bias=None),
            r"1 missing:\n  encoder\.text\.layers\.0\.output\.bias",
        ),
        (
            "fast",
            lambda: {"fc.weight": Z(2)},
            "no BERT or RoBERTa encoder: .*word_embeddings",
        ),
        ("fast", lambda: {"model": random_state("hub")}, "no BERT or RoBERTa encoder"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(form, state, message):
    module = build(form)
    before = copy_of(module)
    with pytest.raises(CheckpointError) as caught:
        official.load(module, state())
    assert re.search(message, str(caught.value)), caught.value
    assert_equal(module.state_dict(), before)


def test_no_weights_and_damaged_ones(tmp_path):
    module = build()
    with pytest.raises(CheckpointError, match=r"no folder of a model .*config\.json"):
        official.load(module, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model"):
        official.load(module, tmp_path)
    (tmp_path / "model.bin").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match="refused checkpoint"):
        official.load(module, tmp_path / "model.bin")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*none\.bin"):
        official.load(module, tmp_path / "none.bin")


def test_config_json(tmp_path):
    for s in (ROBERTA, BERT):
        (tmp_path / "config.json").write_text(json.dumps(config(s)))
        assert official.text_config(tmp_path) == text(s)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "FileNotFoundError"),
        ("no json", "JSONDecodeError"),
        ("[1]", "TypeError"),
        (json.dumps({"model_type": "t5"}), "model_type 't5' is not bert or roberta"),
        (json.dumps({"vocab_size": 3}), "KeyError.*model_type"),
        (json.dumps({"model_type": "bert", "vocab_size": 3}), "KeyError.*hidden_size"),
    ],
)
def test_an_unusable_config_json(content, message, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        official.text_config(tmp_path)


# --- the first stage of a search ---


@pytest.mark.parametrize("pooling", ["mean", "pooler"])
def test_the_searcher_of_a_folder(pooling, tmp_path):
    state = random_state("hub, with constants", BERT)
    folder = folder_of(state, BERT, tmp_path / "model")
    found = official.load_searcher(folder, pooling, normalize=False)
    assert isinstance(found, CodeEncoder)
    assert (found.pooling, found.normalize) == (pooling, False)
    module = build(s=BERT, pooling=pooling)
    official.load(module, state)
    assert_equal(found.state_dict(), module.encoder.state_dict())


@pytest.mark.parametrize("form", ["fast", "slow", "shared"])
def test_the_searcher_of_a_checkpoint(form, tmp_path):
    """Which knows its pooling."""
    module = build(form, pooling="cls", normalize=False)
    found = official.load_searcher(save_run(module, tmp_path / "last.ckpt"))
    assert (found.pooling, found.normalize) == ("cls", False)
    assert_equal(found.state_dict(), module.encoder.state_dict())


def test_a_slow_model_finds_its_candidates_with_the_first_stage(tmp_path):
    """Which is loaded when it is first needed, is not trained, and is not saved with it."""
    fast = build()
    slow = build("slow", fast=str(save_run(fast, tmp_path / "fast.ckpt")))
    assert_equal(slow.searcher.state_dict(), fast.encoder.state_dict())
    assert slow.searcher is slow.searcher
    assert slow.searcher is not slow.encoder
    assert not slow.searcher.training
    assert not any(parameter.requires_grad for parameter in slow.searcher.parameters())
    assert slow.state_dict().keys() == build("slow").state_dict().keys()


def test_what_cannot_search(tmp_path):
    write_checkpoint(run := tmp_path / "comatch.ckpt")
    with pytest.raises(CheckpointError, match=r"a checkpoint of Supervised, not of CasCode"):
        official.load_searcher(run)
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        official.load_searcher(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match="no such package is installed"):
        official.load_searcher("package:no-such-package")


# --- what training starts from ---


@pytest.mark.parametrize(
    ("kind", "form"), [("hub", "fast"), ("BERT", "slow"), ("bi-encoder", "shared")]
)
def test_training_starts_from_an_encoder(kind, form, tmp_path):
    """The head of a model that judges pairs stays as it was drawn."""
    s = ENCODERS[kind][1]
    state, module = random_state(kind, s), build(form, s)
    before = copy_of(module)
    torch.save(state, tmp_path / "model.bin")
    report = official.load_initial(module, tmp_path / "model.bin")
    assert report.complete
    assert set(report.fresh) == {key for key in before if key.startswith("classifier.")}
    reference = build("fast", s)
    official.load(reference, state)
    assert_equal(module.encoder.state_dict(), reference.encoder.state_dict())
    for key in report.fresh:
        assert torch.equal(module.state_dict()[key], before[key]), key


@pytest.mark.parametrize(
    ("form", "trained_form"), [("fast", "shared"), ("slow", "fast"), ("shared", "slow")]
)
def test_a_warm_start_takes_the_encoder_of_a_run(form, trained_form, tmp_path):
    trained, module = build(trained_form), build(form)
    for tensor in trained.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape))
    before = copy_of(module)
    report = official.warm_start(module, save_run(trained, tmp_path / "last.ckpt"), "tenfold")
    assert report.complete
    assert_equal(module.encoder.state_dict(), trained.encoder.state_dict())
    for key in before:
        if key.startswith("classifier."):
            assert torch.equal(module.state_dict()[key], before[key]), key


def test_a_warm_start_from_official_files(tmp_path):
    """One of a classifier brings its head, too."""
    state, module = random_state("hub"), build("shared")
    folder = folder_of(state, ROBERTA, tmp_path / "model")
    report = official.warm_start(module, folder, "official")
    assert set(report.fresh.values()) == {"the file has no classifier of pairs"}
    found = official.export(module)
    for key, value in without(state, "pooler").items():
        assert torch.equal(found[f"roberta.{key}"], value), key
    state = random_state("classifier")
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert not official.warm_start(module, tmp_path / "pytorch_model.bin", "official").fresh
    assert_equal(official.export(module), without(state, *CONSTANT))


def test_a_warm_start_that_does_not_fit(tmp_path):
    module = build("shared")
    other = save_run(build("fast", replace(ROBERTA, width=12)), tmp_path / "wide.ckpt")
    write_checkpoint(run := tmp_path / "comatch.ckpt")
    with pytest.raises(CheckpointError, match=r"\(20, 12\) there"):
        official.warm_start(module, other, "tenfold")
    with pytest.raises(CheckpointError, match="a checkpoint of Supervised, not of CasCode"):
        official.warm_start(module, run, "tenfold")
    with pytest.raises(ValueError, match='is "tenfold" or "official", got \'pretrained\''):
        official.warm_start(module, run, "pretrained")


class Vocabulary(list):
    pad_id = ROBERTA.pad


def started(module: CodeSearch, stage: str = "fit") -> CodeSearch:
    """After what Lightning does first."""
    data = SimpleNamespace(tokenizer=Vocabulary(range(ROBERTA.vocab)), lengths={})
    module._trainer = SimpleNamespace(datamodule=data)  # type: ignore[assignment]
    module.setup(stage)
    return module


def test_initial_weights_are_loaded_before_training(tmp_path):
    """And at no other time: a test is of the weights that are there."""
    state = random_state("hub")
    folder = folder_of(state, ROBERTA, tmp_path / "model")
    loaded = build()
    official.load(loaded, state)
    expected = loaded.encoder.state_dict()
    for form in ("fast", "shared"):
        assert_equal(started(build(form, initial=str(folder))).encoder.state_dict(), expected)
    untouched = started(build(initial=str(folder)), "test")
    assert_equal(untouched.state_dict(), build().state_dict())


@pytest.mark.parametrize("start", ["tenfold", "official", "load"])
def test_loaded_weights_are_not_replaced_by_initial_ones(start, tmp_path):
    """`initial` is of a new training; one that something was loaded into goes on from there."""
    initial = folder_of(random_state("hub", seed=1), ROBERTA, tmp_path / "model")
    module = build(initial=str(initial))
    path = tmp_path / "other.bin"
    if start == "tenfold":
        torch.manual_seed(3)
        official.warm_start(module, save_run(Fast(text=text(ROBERTA)), path), "tenfold")
    else:
        torch.save(random_state("bi-encoder"), path)
        if start == "official":
            official.warm_start(module, path, "official")
        else:
            official.load(module, path)
    before = copy_of(module)
    assert_equal(started(module).state_dict(), before)


def test_the_model_of_a_package_is_where_its_weights_are(tmp_path, monkeypatch):
    """Packages of sentence-transformers hold other configs, too."""
    state = random_state("hub")
    package = tmp_path / "some_model"
    (package / "model" / "1_Pooling").mkdir(parents=True)
    (package / "model" / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean": true}')
    folder_of(state, ROBERTA, package / "model" / "encoder")
    info = tmp_path / "some_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n")
    files = [f"some_model/model/{name}/config.json" for name in ("1_Pooling", "encoder")]
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    encoder = official.load_searcher("package:some-model")
    key = "embeddings.word_embeddings.weight"
    torch.testing.assert_close(encoder.text.embeddings.word.weight, state[key], rtol=0, atol=0)
    (package / "model" / "encoder" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no model"):
        official.load_searcher("package:some-model")
