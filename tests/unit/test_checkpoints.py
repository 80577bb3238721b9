"""Checkpoints: whole or refused, never executed; rebuilt from our own classes only."""

import errno
import hashlib
import shutil
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

import methods
from shared.checkpoints import reading, zoo
from shared.checkpoints.reading import CheckpointError, load_checkpoint, load_module
from shared.checkpoints.writing import AtomicCheckpointIO, write_portable
from tests.processes import run

TINY = """
import os
import pytorch_lightning as pl
from torch import nn
from shared.nn.building import build

class Net(nn.Linear):
    pass

class Tiny(pl.LightningModule):
    def __init__(self, net, scale=1.0):
        super().__init__()
        self.save_hyperparameters()
        self.net = build(net, nn.Module)

Alias = nn.Linear
"""
NET = {"_target_": "methods.tinymethod.module.Net", "in_features": 3, "out_features": 2}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A method package `methods.tinymethod` that exists for one test."""
    package = tmp_path / "packages" / "tinymethod"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "module.py").write_text(TINY)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(package.parent)])
    yield __import__("methods.tinymethod.module", fromlist=["Tiny"])
    for name in [n for n in sys.modules if n.startswith("methods.tinymethod")]:
        del sys.modules[name]
    vars(methods).pop("tinymethod", None)


def written(tmp_path, module, **changes):
    path = tmp_path / "last.ckpt"
    content = {
        "_target_": "methods.tinymethod.module.Tiny",
        "hyper_parameters": dict(module.hparams),
        "state_dict": module.state_dict(),
        **changes,
    }
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


def test_module_is_rebuilt_with_its_weights(tmp_path, tiny):
    module = tiny.Tiny(NET, scale=2.0)
    rebuilt = load_module(written(tmp_path, module))
    assert type(rebuilt) is tiny.Tiny
    assert rebuilt.hparams["scale"] == 2.0
    assert not rebuilt.training
    x = torch.randn(4, 3)
    assert torch.equal(rebuilt.net(x), module.net(x))


@pytest.mark.parametrize(
    "target",
    [
        *(f"methods.tinymethod.{name}" for name in ("module.os.system", "module.Alias", "Tiny")),
        "methods.tinymethod.module.Net",  # ours, but no LightningModule
        "methods.tinymethod.module.Tiny.__init__",
        *("methods.nowhere.Tiny", "methods..Tiny", "methods", "os.system", "", None),
        *("pytorch_lightning.LightningModule", "shared.training.method.Method"),
        ["methods.tinymethod.module.Tiny"],
    ],
)
def test_foreign_targets_are_refused(tmp_path, tiny, target):
    path = written(tmp_path, tiny.Tiny(NET), _target_=target)
    with pytest.raises(CheckpointError, match="refused"):
        load_module(path)


@pytest.mark.parametrize("target", ["os.system", "torch.nn.Linear", "subprocess.run", 7])
@pytest.mark.parametrize("place", ["top", "nested"])
def test_foreign_nested_targets_are_refused_before_anything_is_built(
    tmp_path, tiny, monkeypatch, target, place
):
    evil = {"_target_": target, "command": "touch /tmp/never"}
    net = evil if place == "top" else {**NET, "bias": [{"deep": evil}]}
    path = written(tmp_path, tiny.Tiny(NET), hyper_parameters={"net": net})
    monkeypatch.setattr(tiny.Tiny, "__init__", lambda *_, **__: pytest.fail("was instantiated"))
    with pytest.raises(CheckpointError, match="refused"):
        load_module(path)


def test_what_does_not_fit_is_named(tmp_path, tiny):
    path = written(tmp_path, tiny.Tiny(NET), hyper_parameters={"net": NET, "scail": 1})
    with pytest.raises(CheckpointError, match="scail"):
        load_module(path)
    torch.save({"model": {}}, path)
    with pytest.raises(CheckpointError, match=r"lacks _target_.*official\.py"):
        load_module(path)
    state = {"net.weight": torch.zeros(5, 3), "extra": torch.zeros(1)}
    path = written(tmp_path, tiny.Tiny(NET), hyper_parameters={"net": NET}, state_dict=state)
    with pytest.raises(CheckpointError) as caught:
        load_module(path)
    message = str(caught.value)
    assert "1 missing:\n    net.bias" in message
    assert "1 unexpected:\n    extra" in message
    assert "net.weight (5, 3) in the file, (2, 3) in the module" in message


def test_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"w": torch.full((1000,), 1.5)}}, path)
    content = bytearray(path.read_bytes())
    content[content.find(np.float32(1.5).tobytes() * 8) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum"):
        load_checkpoint(path)


def test_safetensors_load_and_what_is_no_checkpoint_is_refused(tmp_path):
    save_file({"w": torch.arange(3)}, tmp_path / "w.safetensors")
    assert torch.equal(load_checkpoint(tmp_path / "w.safetensors")["w"], torch.arange(3))
    (tmp_path / "text.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="refused"):
        load_checkpoint(tmp_path / "text.safetensors")
    torch.save(torch.zeros(2), tmp_path / "tensor.pt")
    with pytest.raises(CheckpointError, match="not a dictionary"):
        load_checkpoint(tmp_path / "tensor.pt")
    with pytest.raises(FileNotFoundError, match=r"nothing\.ckpt"):
        load_checkpoint(tmp_path / "nothing.ckpt")


def portable(tmp_path, module, path, **changes):
    """A file of `write_portable`, of the checkpoint that `written` writes."""
    data = {"augmentation": {"size": 3}, "image_mode": "RGB", "files": "/home/me"}
    changes |= {"datamodule_hyper_parameters": data, "optimizer_states": [{"a": 1}]}
    write_portable(load_checkpoint(written(tmp_path, module, **changes)), path)
    return path


def test_a_portable_checkpoint_is_small_and_rebuilds_the_module(tmp_path, tiny):
    module = tiny.Tiny(NET | {"in_features": 500})
    module.copy = nn.ModuleList([nn.Linear(500, 2), nn.Linear(500, 2)])
    for copy in module.copy:
        copy.load_state_dict(module.net.state_dict())
    path = portable(tmp_path, module, tmp_path / "small.safetensors", vocabulary=["[PAD]", "é"])
    # Of three equal weights two are written: no more than one is a copy of the same.
    assert path.stat().st_size < 2 * 2 * 1000 + 2000
    found = load_checkpoint(path)
    assert found["vocabulary"] == ["[PAD]", "é"]
    shown = {"augmentation": {"size": 3}, "image_mode": "RGB"}
    assert found["datamodule_hyper_parameters"] == shown
    assert not found.keys() & {"optimizer_states", "copies"}
    assert found["state_dict"].keys() == module.state_dict().keys()
    for key, value in module.state_dict().items():
        assert torch.equal(found["state_dict"][key], value.half())
    again = tmp_path / "again.safetensors"
    write_portable(load_checkpoint(tmp_path / "last.ckpt"), again)
    assert again.read_bytes() == path.read_bytes()


def test_a_portable_module_computes_in_single_precision(tmp_path, tiny):
    module = tiny.Tiny(NET)
    rebuilt = load_module(portable(tmp_path, module, tmp_path / "small.safetensors"))
    assert rebuilt.net.weight.dtype == torch.float32
    assert torch.equal(rebuilt.net.weight, module.net.weight.half().float())


def test_the_zoo_is_verified(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(zoo, "ZOO", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no zoo:tiny in the zoo \(it is empty\)"):
        load_checkpoint("zoo:tiny")
    path = portable(tmp_path, tiny.Tiny(NET), tmp_path / "tiny.safetensors")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / zoo.SUMS).write_text(f"{digest}  tiny.safetensors\n")
    assert type(load_module("zoo:tiny")) is tiny.Tiny
    assert type(load_module(Path("zoo:tiny"))) is tiny.Tiny
    with pytest.raises(FileNotFoundError, match=r"no zoo:../tiny in the zoo \(zoo:tiny\)"):
        load_checkpoint("zoo:../tiny")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"zoo:tiny: it is not as .*git checkout"):
        load_checkpoint("zoo:tiny")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="git checkout"):
        load_checkpoint("zoo:tiny")


def test_containers_become_plain_and_objects_are_refused(tmp_path):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    config = OmegaConf.create({"a": [1, {"b": 2.5}], "c": "${a}"})
    state = {"config": config, "path": Path("x"), "weight": nn.Parameter(torch.ones(1)), "t": (1,)}
    io.save_checkpoint(state, path)
    back = io.load_checkpoint(path)
    assert back["config"] == {"a": [1, {"b": 2.5}], "c": [1, {"b": 2.5}]}
    assert (back["path"], back["t"]) == ("x", (1,))
    with pytest.raises(TypeError, match=r"checkpoint\.callbacks\.Mine\.score is a numpy.float64"):
        io.save_checkpoint({"callbacks": {"Mine": {"score": np.float64(1)}}}, path)
    assert io.load_checkpoint(path)["t"] == (1,)  # and the previous one is untouched
    io.remove_checkpoint(path)
    io.remove_checkpoint(path)
    assert not path.exists()


def test_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"step": 1}, path)

    def full(content, file):
        file.write(b"half a check")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reading.torch, "save", full)
    with pytest.raises(CheckpointError, match=r"No space left.*previous one is untouched"):
        io.save_checkpoint({"step": 2}, path)
    assert io.load_checkpoint(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    with pytest.raises(CheckpointError, match="there is none yet"):
        io.save_checkpoint({"step": 2}, tmp_path / "other.ckpt")


@pytest.mark.slow  # the injected fault above covers the logic
def test_full_disk_of_a_real_file_system(tmp_path):
    """The same through the kernel: 2 MB of tmpfs in a private mount namespace."""
    script = f"""
        import torch
        from shared.checkpoints.writing import *
        io, path = AtomicCheckpointIO(), "{tmp_path}/disk/last.ckpt"
        io.save_checkpoint({{"w": torch.ones(200_000)}}, path)
        try:
            io.save_checkpoint({{"w": torch.zeros(400_000)}}, path)
        except CheckpointError as error:
            assert "No space left" in str(error), error
        else:
            raise SystemExit("a full disk was not noticed")
        assert io.load_checkpoint(path)["w"].sum() == 200_000
        import os
        assert os.listdir("{tmp_path}/disk") == ["last.ckpt"]
        io.save_checkpoint({{"w": torch.zeros(100_000)}}, path)
    """
    (tmp_path / "disk").mkdir()
    (tmp_path / "check.py").write_text(textwrap.dedent(script))
    mount = f"mount -t tmpfs -o size=2m tmpfs {tmp_path}/disk"
    if shutil.which("unshare") is None or run(["unshare", "-rm", "sh", "-c", mount]).returncode:
        pytest.skip("no private tmpfs here; the injected fault above covers the logic")
    command = f"{mount} && {sys.executable} {tmp_path}/check.py"
    done = run(["unshare", "-rm", "sh", "-c", command])
    assert done.returncode == 0, done.stdout + done.stderr


def test_interrupt_while_saving_leaves_no_rubbish(tmp_path, monkeypatch):
    monkeypatch.setattr(reading.os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []
