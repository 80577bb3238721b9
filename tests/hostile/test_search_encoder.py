"""Folders of models that a stranger filled, read without torch."""

import json
import math
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from methods.cascode.search.encoder import LONGEST_HEADER, PickledError, TextEncoder
from methods.cascode.search.models import Settings, load
from methods.cascode.search.store import SearchError
from shared.data.errors import CheckpointError, DataCorruptError, DataNotFoundError
from tests.hostile import tripwire
from tests.hostile.damages import DAMAGES, MOSTLY, REFUSED

WIDTH, INNER, PLACES = 8, 12, 10
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sort", "a", "list"]
QUERY = ".0.attention.self.query.weight"
TABLE = "embeddings.word_embeddings.weight"
Header = dict[str, Any]


def tensors() -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {TABLE: (len(WORDS), WIDTH)}
    shapes["embeddings.position_embeddings.weight"] = (PLACES, WIDTH)
    shapes["embeddings.token_type_embeddings.weight"] = (2, WIDTH)
    at = "encoder.layer.0"
    dense = {f"{at}.attention.self.{x}": (WIDTH, WIDTH) for x in ("query", "key", "value")}
    dense |= {f"{at}.attention.output.dense": (WIDTH, WIDTH)}
    dense |= {f"{at}.intermediate.dense": (INNER, WIDTH), f"{at}.output.dense": (WIDTH, INNER)}
    for name in ("embeddings", f"{at}.attention.output", f"{at}.output"):
        shapes |= {f"{name}.LayerNorm.weight": (WIDTH,), f"{name}.LayerNorm.bias": (WIDTH,)}
    for name, shape in dense.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    generator = np.random.default_rng(0)
    return {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}


CONFIG = {
    "model_type": "bert", "vocab_size": len(WORDS), "max_position_embeddings": PLACES,
    "type_vocab_size": 2, "hidden_size": WIDTH, "intermediate_size": INNER, "hidden_act": "gelu",
    "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0,
    "hidden_dropout_prob": 0.1, "layer_norm_eps": 1e-12,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    write(path, tensors())
    return path


def write(
    folder: Path, arrays: dict[str, np.ndarray], change: Callable[[Header], Any] = id
) -> None:
    """Write weights, the header as `change` leaves it."""
    header: Header = {}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": "F32", "shape": [*array.shape], "data_offsets": [start, end]}
    change(header)
    text = json.dumps(header).encode()
    content = b"".join(array.tobytes() for array in arrays.values())
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content)


def outcome(folder: Path, text: str = "sort a list") -> Exception | None:
    """The error that reading the model, or encoding a text, ends in; there are no warnings."""
    with tripwire.watched(folder, 20) as watch, warnings.catch_warnings(action="error"):
        try:
            TextEncoder(folder).encode_queries([text])
            error = None
        except (CheckpointError, DataCorruptError, DataNotFoundError) as raised:
            error = raised
    assert watch.processes == []
    assert error is None or str(folder) in str(error)
    return error


def refusal(folder: Path, text: str = "sort a list") -> str:
    error = outcome(folder, text)
    assert isinstance(error, CheckpointError)
    return str(error)


def test_the_whole_folder_is_read(folder):
    assert TextEncoder(folder).encode_codes(["sort", "a list"]).shape == (2, WIDTH)


@pytest.mark.parametrize("damage", MOSTLY)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt"])
def test_damaged_files(name, damage, folder):
    DAMAGES[damage](folder / name)
    assert outcome(folder) is not None or damage not in REFUSED


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vocab_size", 10**8, r"word_embeddings.weight is unusable .*\[8, 8\], by config\.json"),
        ("vocab_size", 10**12, "no encoder has"),
        ("hidden_size", 16, "word_embeddings.weight is unusable"),
        ("intermediate_size", 13, "intermediate.dense.weight is unusable"),
        ("max_position_embeddings", 512, "position_embeddings.weight is unusable"),
        ("num_hidden_layers", 2, r"encoder\.layer\.1\.attention\.self\.query\.weight is missing"),
        ("num_hidden_layers", 10**6, r"encoder\.layer\.1\.attention\.self\.query\.weight is miss"),
        ("num_attention_heads", 3, "no encoder has"),
        ("model_type", "t5", "model_type 't5' is not bert or roberta"),
        ("hidden_act", "gelu_new", "hidden_act 'gelu_new' is not gelu"),
        ("hidden_act", ["gelu"], r"hidden_act \['gelu'\] is not gelu"),
    ],
)
def test_a_config_that_the_weights_contradict(key, value, message, folder):
    (folder / "config.json").write_text(json.dumps(CONFIG | {key: value}))
    assert re.search(message, told := refusal(folder)), told


def set_to(name: str, entry: str, value: Any) -> Callable[[Header], Any]:
    return lambda header: header[name].__setitem__(entry, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.pop(TABLE), f"{TABLE} is missing"),
        (lambda header: header.update(more=header[TABLE]), "unexpected ['more']"),
        (set_to(TABLE, "shape", [WIDTH, WIDTH + 1]), f"{TABLE} is unusable"),
        (set_to(TABLE, "shape", [10**30, WIDTH]), f"{TABLE} is unusable"),
        (set_to(TABLE, "shape", None), f"{TABLE} is unusable"),
        (set_to(TABLE, "dtype", "I64"), f"{TABLE} is unusable"),
        (set_to(TABLE, "dtype", ["F32"]), f"{TABLE} is unusable"),
        (set_to(TABLE, "dtype", "F16"), f"{TABLE} is unusable"),
        (set_to(TABLE, "data_offsets", [0, 10**18]), f"{TABLE} is unusable"),
        (set_to(TABLE, "data_offsets", [-256, 0]), f"{TABLE} is unusable"),
        (set_to(TABLE, "data_offsets", [0.0, 256.0]), f"{TABLE} is unusable"),
        (set_to(TABLE, "data_offsets", [256]), f"{TABLE} is unusable"),
        (set_to(TABLE, "data_offsets", [10**40, 10**40 + 256]), f"{TABLE} is unusable"),
        (lambda header: header.update({TABLE: None}), f"{TABLE} is missing"),
        (lambda header: header.update({TABLE: "text"}), f"{TABLE} is unusable"),
    ],
)
def test_a_header_that_lies(change, message, folder):
    write(folder, tensors(), change)
    assert message in refusal(folder)


@pytest.mark.parametrize("length", [0, 1 << 63, LONGEST_HEADER + 1, 3000])
def test_a_header_that_is_none(length, folder):
    path = folder / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    assert "truncated, damaged or no weights" in refusal(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite(value, folder):
    """Those of words are found when a text has the word."""
    arrays = tensors()
    key = next(key for key in arrays if key.endswith(QUERY))
    arrays[key][1, 1] = value
    write(folder, arrays)
    assert f"{key} is unusable (ValueError: values that are not finite)" in refusal(folder)
    arrays = tensors()
    arrays[TABLE][WORDS.index("list"), 1] = value
    write(folder, arrays)
    assert "no finite vectors" in refusal(folder)
    assert outcome(folder, "sort") is None


def test_weights_that_overflow(folder):
    arrays = tensors()
    arrays["embeddings.LayerNorm.weight"][:] = 3e38
    write(folder, arrays)
    assert "no finite vectors" in refusal(folder)


def test_a_vocabulary_of_more_words_than_embeddings(folder):
    (folder / "vocab.txt").write_text("\n".join([*WORDS, "more"]) + "\n")
    assert outcome(folder, "sort") is None
    assert "no word 8, which its tokenizer has" in refusal(folder, "more")


class Trap:
    def __reduce__(self):
        return (print, ("trapped",))


def test_pickles_are_not_read(folder, capsys):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(PickledError, match="by torch alone"):
        TextEncoder(folder)
    with pytest.raises(SearchError, match="no usable model: refused checkpoint"):
        load(Settings(str(folder)), light=True)
    assert capsys.readouterr().out == ""


def test_safe_weights_come_before_pickles(folder):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    TextEncoder(folder)
