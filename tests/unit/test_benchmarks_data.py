"""`make data`: each source once, of the miniature and of every claim."""

import pytest
from claims_toy import CLAIM, write_claim, write_conf, write_experiment

from benchmarks import data
from benchmarks.data import main, sources_of

SOURCE = "tests.unit.test_benchmarks_data.make"


def conf_with(tmp_path, **sources):
    conf = write_conf(tmp_path, CLAIM | {"prepare": {"start": "toy/pretraining"}})
    for arm, source in sources.items():
        write_experiment(conf, arm, {"source": source})
    return conf


def test_sources_of_miniature_claims_and_preparation_each_once(tmp_path):
    first, second, third = ({"_target_": SOURCE, "root": "${data_root}/" + n} for n in "abc")
    conf = conf_with(tmp_path, mini=first, ours=first, base=second, pretraining=third)
    (conf / "reproduce" / "toy").mkdir()
    other = write_claim(conf, CLAIM | {"prepare": {}})
    other.rename(conf / "reproduce" / "toy" / "other.yaml")
    write_claim(conf, CLAIM | {"prepare": {"start": "toy/pretraining"}})
    assert [source.root for source in sources_of("toy", conf)] == ["data/a", "data/b", "data/c"]


def test_a_method_without_claims_has_the_data_of_its_miniature(tmp_path):
    conf = conf_with(tmp_path, mini={"_target_": SOURCE, "root": "x"})
    (conf / "reproduce" / "toy.yaml").unlink()
    assert [source.root for source in sources_of("toy", conf)] == ["x"]


def test_what_is_printed(monkeypatch, capsys, tmp_path):
    found = sources_of("toy", conf_with(tmp_path, mini={"_target_": SOURCE, "root": "place"}))
    monkeypatch.setattr(data, "sources_of", lambda *_, **__: found)
    monkeypatch.setattr(
        data, "call", lambda _: {"set": {"licence": "MIT", "files": {"a.gz": "0" * 64}}}
    )
    assert main(["comatch"]) == 0
    assert capsys.readouterr().out == f"set: place (licence MIT)\n  {'0' * 64}  a.gz\n"
    monkeypatch.setattr(data, "sources_of", lambda *_, **__: [])
    assert main(["comatch"]) == 0
    assert "needs no data" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["comatsch", "none"])
def test_an_unknown_method_exits_with_one_line(method, capsys):
    assert main([method]) == 1
    error = capsys.readouterr().err
    assert error.startswith("data: ")
    assert "Traceback" not in error
