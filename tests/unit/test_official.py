"""The import engine accounts for every key, and export is its inverse."""

import pytest
import torch
from torch import nn

from benchmarks.chaos import first_difference
from shared.checkpoints.official import (
    SCALAR,
    TRANSPOSED,
    Conversion,
    KeyTable,
    Rule,
    convert_official,
    export_official,
    import_official,
)
from shared.checkpoints.reading import CheckpointError

TABLE = KeyTable(
    rules=[
        Rule("model/fc1.{part}", "head.first.{part}"),
        Rule("model/{rest}", "backbone.{rest}"),
        Rule("ema/fc1.{part}", "ema_head.first.{part}"),
        Rule("queue/feats", "queue.features", TRANSPOSED),
        Rule("queue/ptr", "queue.pointer", SCALAR),
    ],
    dropped={"optimizer/{rest}": "another trainer", "epoch": "another trainer"},
    fresh={"count": "not saved there"},
)


class Ours(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.conv = nn.Linear(3, 2)
        self.head, self.ema_head, self.queue = nn.Module(), nn.Module(), nn.Module()
        self.head.first, self.ema_head.first = nn.Linear(2, 2), nn.Linear(2, 2)
        self.queue.register_buffer("features", torch.zeros(5, 4))
        self.queue.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("count", torch.zeros(()))


def official():
    linear = {"weight": torch.randn(2, 2), "bias": torch.randn(2)}
    return {
        "model": {"conv.weight": torch.randn(2, 3), "conv.bias": torch.randn(2)}
        | {f"fc1.{k}": v for k, v in linear.items()},
        "ema": {f"fc1.{k}": v + 1 for k, v in linear.items()},
        "queue": {"feats": torch.randn(4, 5), "ptr": torch.tensor([3])},
        "optimizer": {"state": {0: {"momentum": torch.zeros(1)}}, "param_groups": [{"lr": 1}]},
        "epoch": 7,
    }


def test_every_key_is_mapped_dropped_or_left_with_a_reason_and_export_is_the_inverse():
    module, source = Ours(), official()
    report = import_official(source, TABLE, module)
    assert report.complete
    assert len(report.mapped) == 8
    assert ("model/fc1.weight", "head.first.weight") in report.mapped
    dropped = {"optimizer/state/0/momentum", "optimizer/param_groups", "epoch"}
    assert set(report.dropped) == dropped
    assert report.fresh == {"count": "not saved there"}
    assert torch.equal(module.head.first.weight, source["model"]["fc1.weight"])
    assert torch.equal(module.queue.features, source["queue"]["feats"].t())
    assert module.queue.pointer == 3
    assert "8 keys mapped\n3 dropped: another trainer\n1 left as initialised" in str(report)

    exported = export_official(module, TABLE)
    kept = {name: source[name] for name in ("model", "ema", "queue")}
    assert first_difference(exported, kept, "exported") is None
    other = Ours()
    import_official(exported, TABLE, other)
    assert first_difference(dict(module.state_dict()), dict(other.state_dict()), "state") is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s["model"].pop("conv.bias"), "1 missing:\n  backbone.conv.bias"),
        (lambda s: s.update(surprise=torch.zeros(1)), "1 unexpected:\n  surprise"),
        (lambda s: s["model"].update({"bn.weight": torch.zeros(1)}),
         "1 unexpected:\n  model/bn.weight (as backbone.bn.weight)"),
        (lambda s: s["model"].update({"conv.weight": torch.zeros(2, 9)}),
         "1 resized:\n  model/conv.weight (2, 9) there, backbone.conv.weight (2, 3) here"),
        (lambda s: s["queue"].update(ptr=torch.zeros(3)), "1 resized:\n  queue/ptr cannot become"),
        (lambda s: s["model"].update({"conv.bias": "text"}), "1 resized:\n  model/conv.bias"),
    ],
)  # fmt: skip
def test_nothing_partial_is_loaded_and_the_fault_is_named(change, told):
    module, source = Ours(), official()
    change(source)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        import_official(source, TABLE, module)
    assert told in str(caught.value)
    assert all(torch.equal(v, before[n]) for n, v in module.state_dict().items())


def test_two_keys_for_one_of_ours_are_refused():
    table = KeyTable([Rule("a.{x}", "w.{x}"), Rule("b.{x}", "w.{x}")])
    source = {"a.k": torch.zeros(1), "b.k": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"two official keys become w\.k"):
        convert_official(source, table, {"w.k": torch.zeros(1)})


def test_repeated_pattern_fills_several_of_ours_and_import_only_rules_are_not_exported():
    length = Conversion(lambda history, _: torch.tensor(len(history)), None)
    stack = Conversion(lambda history, _: torch.stack(history), lambda w, _: list(w.unbind()))
    table = KeyTable(
        [
            Rule("q.{rest}", "encoder.{rest}"),
            Rule("q.{rest}", "momentum.{rest}"),
            Rule("past", "window", stack),
            Rule("past", "count", length),
        ]
    )
    module = nn.Module()
    module.encoder, module.momentum = nn.Linear(2, 1), nn.Linear(2, 1)
    module.register_buffer("window", torch.zeros(3, 2))
    module.register_buffer("count", torch.zeros((), dtype=torch.int64))
    source = {"q.weight": torch.ones(1, 2), "q.bias": torch.ones(1)}
    source["past"] = [torch.full((2,), float(i)) for i in range(3)]
    assert import_official(source, table, module).complete
    assert torch.equal(module.momentum.weight, module.encoder.weight)
    assert module.count == 3
    exported = export_official(module, table)
    assert exported.keys() == source.keys()
    assert torch.equal(torch.stack(exported["past"]), torch.stack(source["past"]))


def test_what_a_conversion_fits_to_another_size_is_reported():
    doubled = Conversion(
        lambda value, ours: value.repeat(len(ours) // len(value)), lambda w, _: w, interpolates=True
    )
    table = KeyTable([Rule("w", "w", doubled)])
    for size, expected in [(2, ["w (2,) -> (4,)"]), (4, [])]:
        state, report = convert_official({"w": torch.ones(size)}, table, {"w": torch.zeros(4)})
        assert report.complete
        assert report.interpolated == expected
        assert torch.equal(state["w"], torch.ones(4))
        assert ("interpolated: w (2,) -> (4,)" in str(report)) == bool(expected)
    _, report = convert_official({"w": torch.ones(3)}, table, {"w": torch.zeros(4)})
    assert report.resized == ["w (3,) there, w (4,) here"]


def test_export_refuses_keys_without_a_name():
    module = Ours()
    module.extra = nn.Linear(1, 1)
    with pytest.raises(CheckpointError, match=r"extra\.weight, extra\.bias"):
        export_official(module, TABLE)
