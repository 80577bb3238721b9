"""A checkpoint of a stranger runs nothing, allocates no more than its own size, and never lies."""

import ast
import os
import pickle
import pkgutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose
from omegaconf import DictConfig
from PIL import Image
from safetensors.torch import save_file

import methods
import shared
from shared import cli
from shared.checkpoints.reading import CheckpointError, load_checkpoint, load_module
from shared.checkpoints.writing import AtomicCheckpointIO, write_portable
from shared.data.views.interface import Views
from shared.nn.building import trusted_class
from shared.predict import command
from shared.predict.inputs import PredictError, load_predictor
from tests.hostile.damages import DAMAGES, MOSTLY, every, put
from tests.hostile.tripwire import watched
from tests.unit.test_predict import COLOUR, write_checkpoint

ROOT = Path(shared.__file__).parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An honest checkpoint, a picture, and nothing else."""
    write_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    return tmp_path


def content(folder: Path) -> dict[str, Any]:
    return load_checkpoint(folder / "last.ckpt")


def save(folder: Path, changed: Any) -> None:
    torch.save(changed, folder / "last.ckpt")


def predicts(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status and stderr of `tenfold predict`, which starts nothing and writes inside only."""
    given = [f"checkpoint={folder}/last.ckpt", f"images={folder}/images", f"output={folder}/out"]
    given += [] if any("sheet" in argument for argument in arguments) else ["sheet_images=0"]
    status = 0
    capsys.readouterr()
    with watched(folder) as watch, pytest.MonkeyPatch.context() as patch:
        if not arguments:  # then nothing of the composing is new
            patch.setattr(command, "compose", lambda name, argv: plain_config(tuple(argv)))
        try:
            (cli.predict if arguments else command.main)([*given, *arguments])
        except SystemExit as end:
            status = int(end.code or 0)
    said = capsys.readouterr().err
    assert watch.processes == []
    assert watch.outside == []
    assert "Traceback" not in said
    assert status == 0 or said.startswith("tenfold predict: ")
    return status, said


def plain_config(assignments: tuple[str, ...]) -> DictConfig:
    """What Hydra composes of assignments without structure."""
    config = composed().copy()
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        config[key] = int(value) if value.isdecimal() else value
    return config


@cache
def composed() -> DictConfig:
    return compose("predict", ["checkpoint=c", "images=i"])


# --- names of classes ---


def test_views_that_build_what_they_are_given_are_refused(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    changed = content(folder)
    changed["datamodule_hyper_parameters"]["augmentation"] = {
        "_target_": "shared.data.image_module.ImageDataModule",
        "dataset": {},
        "augmentation": {"_target_": "torch.utils.collect_env.run", "command": "id > pwned"},
    }
    save(folder, changed)
    status, said = predicts(folder, capsys)
    assert status == 2
    assert "'shared.data.image_module.ImageDataModule' does not name a Views" in said
    assert not (folder / "pwned").exists()


BOMBS: tuple[Any, ...] = (
    {"_target_": "torch.utils.collect_env.run", "command": "id > pwned"},
    {"_target_": "os.system", "command": "id > pwned"},
    {"_target_": "shared.data.fetching.os.system", "command": "id > pwned"},
    {"_target_": "methods.cascode.search.__main__.main"},
    {"_target_": "shared.data.views.recipes.RecipeViews", "_partial_": True, "_args_": [[]]},
    ["id > pwned"],
    1 << 62,
    None,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested containers, as the keys that lead there."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


@pytest.mark.parametrize("bomb", every(3, range(len(BOMBS))))
def test_whatever_stands_anywhere_in_a_checkpoint(folder, monkeypatch, bomb):
    monkeypatch.chdir(folder)
    honest = content(folder)
    tried = [p for p in places(honest) if p[0] != "state_dict" or len(p) == 1 or "bias" in p[-1]]
    assert len(tried) > 30
    for path in tried:
        changed = deepcopy(honest)
        holder = changed
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = BOMBS[bomb]
        save(folder, changed)
        with watched(folder) as watch, suppress(CheckpointError, PredictError):
            load_predictor(folder / "last.ckpt", "cpu")
        assert watch.processes == watch.outside == [], path
        assert not (folder / "pwned").exists(), path


OPTIONAL = {"shared.demo.page": "gradio"}  # modules that import what need not be installed


def every_class() -> Iterator[type]:
    """Classes that are defined under `shared` and `methods`."""
    for package in (shared, methods):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            needs = OPTIONAL.get(found.name, "torch")
            if not found.name.endswith("__main__") and find_spec(needs):
                module = import_module(found.name)
                for value in vars(module).values():
                    if isinstance(value, type) and value.__module__ == found.name:
                        yield value


def test_only_views_are_views():
    """Whatever a checkpoint names as its transform, only classes of one closed set are built."""
    admitted = set()
    for kind in every_class():
        try:
            admitted.add(trusted_class(f"{kind.__module__}.{kind.__qualname__}", Views).__name__)
        except ValueError:
            continue
    # A class that is added here takes its arguments from strangers' files: see `Views`.
    kinds = ("ImageNet", "Picture", "Recipe", "SmallImage", "Tensor", "")
    assert admitted == {f"{kind}Views" for kind in kinds}


BUILDERS = {
    *("build", "build_views", "call", "trusted_class", "trusted_function"),
    *("instantiate", "get_class", "get_method", "get_object", "load_from_checkpoint"),
    *("import_module", "__import__", "load_module", "run_module", "run_path"),
    *("Unpickler", "_PlainUnpickler", "_ArraysOnly", "unsafe_load", "full_load"),
}
OF_A_MODULE = {("pickle", "load"), ("pickle", "loads"), ("torch", "load"), ("yaml", "load")}
WORDS = {*BUILDERS, "eval(", "exec(", *(name for _, name in OF_A_MODULE)}
KNOWN_METHODS = ("albef", "blip", "cascode", "comatch", "iccl", "mopro", "pb_ovd", "pcl", "simcal")
WHY_SAFE = {
    # the floor: names are checked where they are defined, and the kind must fit
    "shared/nn/building.py": "checks every name",
    "shared/cli.py": "our own configs, by a safe loader",
    "shared/experiments.py": "tables of conf/, by a safe loader",
    "shared/data/views/interface.py": "a closed set",
    "shared/evaluation/captions.py": "two modules of pycocoevalcap, named there",
    "shared/nn/encoder.py": "networks of ours; their arguments are numbers",
    "shared/checkpoints/reading.py": "weights_only; the module and each nested network checked",
    "shared/checkpoints/image_text.py": "load_module",
    "shared/data/readers/plain_pickle.py": "admits plain containers and arrays",
    "shared/data/readers/small_images.py": "admits arrays",
    # a checkpoint's views, checked by `build_views`
    "shared/predict/inputs.py": "views and module of a checkpoint",
    "shared/data/image_module.py": "views; the reader comes from the user's own config",
    "shared/data/image_text/pairs.py": "views",
    "methods/comatch/data.py": "the split's rule comes from the user's own config",
    "methods/alpro/data.py": "pictures of the user's own config",
    "methods/alpro/entities.py": "a package by a name in the code",
    # the user's own config, names checked all the same
    "shared/predict/official.py": "an experiment of ours; official.py beside a module of ours",
    "shared/run.py": "config of the run; official.py beside a module of ours",
    "shared/tasks/linear_classification.py": "a network of ours",
    "shared/nn/detection/detector.py": "a network of ours; its arguments are numbers",
    "shared/data/detection/module.py": "a sampling of the user's own config",
    "shared/data/readers/outlines.py": "a package by a name in the code",
    "shared/data/readers/videos.py": "packages by names in the code",
    "shared/evaluation/detection.py": "packages by names in the code",
    "shared/tasks/frozen_features.py": "a network of ours",
    # checkpoints that are loaded as such
    **dict.fromkeys((f"methods/{m}/official.py" for m in KNOWN_METHODS), "load_module"),
    "methods/blip/capfilt/networks.py": "a config of ours, its sizes from the file's tensors",
    "methods/cascode/inference.py": "load_module",
    "methods/mopro/cleaning.py": "load_module; the rest from the user's own config",
    "methods/cascode/extraction/trees.py": "names of parsers in a table of ours",
}


def sites() -> Iterator[tuple[str, int, str]]:
    """File, line and name of every call that may turn content into code or objects."""
    for package in ("shared", "methods"):
        for path in sorted((ROOT / package).rglob("*.py")):
            source = path.read_text()
            if not any(word in source for word in WORDS):
                continue
            for node in ast.walk(ast.parse(source)):
                if not isinstance(node, ast.Call):
                    continue
                name = node.func
                file = path.relative_to(ROOT).as_posix()
                if isinstance(name, ast.Name) and name.id in BUILDERS | {"eval", "exec"}:
                    yield file, node.lineno, name.id
                elif isinstance(name, ast.Attribute):
                    of = name.value.id if isinstance(name.value, ast.Name) else ""
                    if name.attr in BUILDERS - {"build", "call"} or (of, name.attr) in OF_A_MODULE:
                        yield file, node.lineno, f"{of}.{name.attr}"


def test_every_way_from_a_file_to_a_constructor_is_known():
    unknown = [site for site in sites() if site[0] not in WHY_SAFE]
    assert unknown == [], "say in WHY_SAFE why a stranger's file cannot misuse it"
    assert not [site for site in sites() if site[2].endswith("instantiate")]
    source = (ROOT / "shared/checkpoints/reading.py").read_text()
    assert source.count("torch.load(") == source.count("weights_only=True)") >= 1


# --- files ---


@pytest.mark.parametrize("damage", MOSTLY)
@pytest.mark.parametrize("name", ["last.ckpt", "model.safetensors", "portable.safetensors"])
def test_damaged_files(tmp_path, name, damage):
    write_checkpoint(tmp_path / "last.ckpt")
    if name.startswith("portable"):
        write_portable(load_checkpoint(tmp_path / "last.ckpt"), tmp_path / name)
    elif name != "last.ckpt":
        save_file({"a": torch.arange(300.0), "b": torch.zeros(2, 3)}, tmp_path / name)
    DAMAGES[damage](tmp_path / name)
    with watched(tmp_path) as watch, pytest.raises((CheckpointError, FileNotFoundError)) as caught:
        load_checkpoint(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert watch.processes == watch.outside == []


HEADERS: dict[str, str] = {
    "no JSON": "{",
    "deep": '{"copies": ' + "[" * 100_000,
    "a list": "[]",
    "without copies": "{}",
    "copies that are a list": '{"copies": [1]}',
    "a copy of nothing": '{"copies": {"b": "c"}}',
    "a copy of a copy": '{"copies": {"b": "a", "c": "b"}}',
    "two copies of one": '{"copies": {"b": "a", "c": "a"}}',
    "an unhashable origin": '{"copies": {"b": ["a"]}}',
    "deep lists": '{"copies": {}, "class_names": ' + "[" * 400 + "]" * 400 + "}",
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(tmp_path, name):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2)}, path, {"tenfold": HEADERS[name]})
    with watched(tmp_path) as watch, pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_checkpoint(path)
    assert watch.processes == watch.outside == []


def test_a_header_names_a_module_as_a_pickle_does(folder, monkeypatch):
    monkeypatch.chdir(folder)
    changed = content(folder)
    changed["_target_"] = "os.system"
    write_portable(changed, folder / "model.safetensors")
    with watched(folder) as watch, pytest.raises(CheckpointError, match="under methods"):
        load_module(folder / "model.safetensors")
    assert watch.processes == watch.outside == []


class Evil:
    """Pickles into a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def nested(value: list[Any], levels: int, times: int = 1) -> list[Any]:
    for _ in range(levels):
        value = [value] * times
    return value


ITSELF: list[Any] = []
ITSELF.append(ITSELF)
PICKLES: dict[str, Callable[[], Any]] = {
    "os.system": lambda: {"a": Evil(os.system, "id > pwned")},
    "eval": lambda: {"a": Evil(eval, "__import__('os').system('id > pwned')")},
    "a class of ours": lambda: {"a": Evil(Path, "/etc/passwd")},
    "a file of numpy": lambda: {"a": Evil(np.fromfile, "/etc/passwd")},
    "nested lists": lambda: {"state_dict": nested([], 40, 2)},
    "a list that holds itself": lambda: {"hyper_parameters": ITSELF},
    "deep lists": lambda: {"class_names": nested([], 400)},
    "no dictionary": lambda: [1, 2, 3],
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", PICKLES)
def test_pickles(tmp_path, monkeypatch, name, legacy):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.ckpt"
    torch.save(PICKLES[name](), path, _use_new_zipfile_serialization=not legacy)
    of_a_run = partial(AtomicCheckpointIO().load_checkpoint, weights_only=False)
    for read in (load_checkpoint, of_a_run):
        with watched(tmp_path) as watch, pytest.raises(CheckpointError, match=r"last\.ckpt"):
            read(path)
        assert watch.processes == watch.outside == []
    assert not (tmp_path / "pwned").exists()


def test_a_bare_pickle_is_refused(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(pickle.dumps({"a": Evil(os.system, "id > pwned")}))
    with pytest.raises(CheckpointError, match="nothing was executed"):
        load_checkpoint(tmp_path / "last.ckpt")


def test_a_compressed_archive_is_refused_before_it_unfolds(folder):
    save(folder, {"state_dict": {"a": torch.zeros(2_000_000)}})
    with zipfile.ZipFile(folder / "last.ckpt") as honest:
        entries = {entry.filename: honest.read(entry) for entry in honest.infolist()}
    with zipfile.ZipFile(folder / "last.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, data in entries.items():
            bomb.writestr(name, data)
    assert (folder / "last.ckpt").stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="is compressed"):
        load_checkpoint(folder / "last.ckpt")


# --- sizes and values ---

HYPER, BACKBONE = "hyper_parameters", "hyper_parameters.backbone"
VIEWS = "datamodule_hyper_parameters.augmentation"
EXPANDED = torch.zeros(1).expand(1 << 20, 1 << 20)
SIZES: dict[str, tuple[str, Any]] = {
    "a wide layer": (f"{BACKBONE}.channels", [10**9, 10**9]),
    "too wide to exist": (f"{BACKBONE}.channels", [1 << 62]),
    "many layers": (f"{BACKBONE}.channels", [1] * 50_000),
    "many classes": (f"{HYPER}.num_classes", 10**12),
    "no classes": (f"{HYPER}.num_classes", -1),
    "a large picture": (f"{VIEWS}.size", 10**6),
    "no picture": (f"{VIEWS}.size", 0),
    "a picture of half a pixel": (f"{VIEWS}.size", 31.5),
    "no colours": (VIEWS, COLOUR | {"mean": [], "std": []}),
    "division by zero": (f"{VIEWS}.std", [0.0, 0.0, 0.0]),
    "a mean that is none": (f"{VIEWS}.mean", [float("nan")] * 3),
    "an unknown argument": (f"{VIEWS}.path", "/etc/passwd"),
    "names that are a number": ("class_names", 7),
    "one name too few": ("class_names", ["a", "b"]),
    "a vocabulary that is a number": ("vocabulary", 7),
    "a state that is a list": ("state_dict", [1, 2]),
    "hyperparameters that are a text": (HYPER, "lr"),
}


@pytest.mark.parametrize("name", [*SIZES, "an expanded tensor"])
def test_sizes_and_kinds(folder, capsys, name):
    changed = content(folder)
    if name in SIZES:
        put(changed, *SIZES[name])
    else:
        changed["state_dict"][next(iter(changed["state_dict"]))] = EXPANDED
    save(folder, changed)
    status, said = predicts(folder, capsys)
    assert status == 2, said
    assert said.count("\n") == 1 or "nothing loaded" in said  # then every key is named


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["weight", "running_var"])
def test_weights_that_are_not_finite_predict_nothing(folder, capsys, value, part):
    changed = content(folder)
    key = next(key for key in changed["state_dict"] if part in key)
    changed["state_dict"][key].fill_(value)
    save(folder, changed)
    with pytest.raises(CheckpointError, match="not finite"):
        load_module(folder / "last.ckpt")
    status, said = predicts(folder, capsys)
    assert status == 2
    assert key in said


def test_weights_that_overflow_predict_nothing(folder, capsys):
    changed = content(folder)
    for key, value in changed["state_dict"].items():
        if value.is_floating_point() and "running" not in key:
            value.fill_(3e38)
    save(folder, changed)
    status, said = predicts(folder, capsys)
    assert status == 2
    assert "not finite" in said


def test_a_class_name_is_one_short_line(folder, capsys):
    changed = content(folder)
    changed["class_names"] = ["x" * 10_000_000, "a\n\x1b[31mb\u202e", "=cmd()"]
    AtomicCheckpointIO().save_checkpoint(changed, folder / "last.ckpt")
    assert predicts(folder, capsys)[0] == 0
    assert (folder / "out" / "predictions.csv").stat().st_size < 10_000
