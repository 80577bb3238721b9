"""`make data`: each source once, of the miniature and of every claim."""

import shutil

from claims_toy import CLAIM, write_claim, write_conf, write_experiment
from omegaconf import OmegaConf

from benchmarks import data
from benchmarks.data import main, sources_of

SOURCE = "tests.unit.test_benchmarks_data.make"


def test_sources_of_miniature_claims_and_preparation_each_once(tmp_path):
    conf = write_conf(tmp_path)
    for arm, n in {"mini": "a", "ours": "a", "base": "b", "pretraining": "c"}.items():
        write_experiment(conf, arm, {"source": {"_target_": SOURCE, "root": "${data_root}/" + n}})
    (conf / "reproduce" / "toy").mkdir()
    other = write_claim(conf, CLAIM | {"prepare": {}})
    other.rename(conf / "reproduce" / "toy" / "other.yaml")
    write_claim(conf, CLAIM | {"prepare": {"start": "toy/pretraining"}})
    assert [source.root for source in sources_of("toy", conf)] == ["data/a", "data/b", "data/c"]
    shutil.rmtree(conf / "reproduce")  # a method without claims has the data of its miniature
    assert [source.root for source in sources_of("toy", conf)] == ["data/a"]


def test_what_is_printed(monkeypatch, capsys):
    found = [OmegaConf.create({"root": "place"})]
    monkeypatch.setattr(data, "sources_of", lambda *_, **__: found)
    made = {"set": {"licence": "MIT", "files": {"a.gz": "0" * 64}}}
    monkeypatch.setattr(data, "call", lambda _: made)
    monkeypatch.setattr(data, "validate", lambda _: None)
    assert main(["comatch"]) == 0
    assert capsys.readouterr().out == f"set: place (licence MIT)\n  {'0' * 64}  a.gz\n"
    found.clear()
    assert main(["comatch"]) == 0
    assert "needs no data" in capsys.readouterr().out


def test_an_unknown_method_exits_with_one_line(capsys):
    assert main(["comatsch"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("data: ")
    assert "Traceback" not in error
