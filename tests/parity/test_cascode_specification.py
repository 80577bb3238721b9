"""Points of docs/papers/cascode.md on which the golden cases do not insist."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from methods.cascode.cleaning import query_tokens, summary, without_comments
from methods.cascode.duplicates import near_duplicates
from methods.cascode.module import Fast
from methods.cascode.tokenizer import CodeTokenizer

TEXT = {
    "vocab_size": 20, "hidden_size": 12, "num_layers": 2, "num_heads": 2, "intermediate_size": 24,
    "max_positions": 12,
}  # fmt: skip


def optimised(**options: Any) -> tuple[Fast, torch.optim.Optimizer]:
    module = Fast(text=TEXT, **options)
    module._trainer = SimpleNamespace(estimated_stepping_batches=10)  # type: ignore[assignment]
    (optimizer,), _ = module.configure_optimizers()
    return module, optimizer


def test_adamw_as_the_recipe_says_on_all_parameters_alike():
    """Section 5.1: the library's decay of 0.01 and RoBERTa's second beta are not the recipe's."""
    module, optimizer = optimised()
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert group["params"] == list(module.parameters())
    assert group["initial_lr"] == 2e-5
    assert group["betas"] == (0.9, 0.999)
    assert group["eps"] == 1e-8
    assert group["weight_decay"] == 0
    (group,) = optimised(betas=[0.8, 0.98], weight_decay=0.1)[1].param_groups
    assert (group["betas"], group["weight_decay"]) == ((0.8, 0.98), 0.1)


class Steps:
    """Of a trainer that must not be asked before it has restored a checkpoint."""

    asked = 0

    @property
    def estimated_stepping_batches(self) -> int:
        self.asked += 1
        return 4


def test_the_rate_falls_to_zero_and_the_loaders_are_left_alone():
    """Lightning builds the loaders to count steps; built before a checkpoint is restored, they
    would not get the positions in it, and a resumed run would begin its epoch anew."""
    module, trainer = Fast(text=TEXT, lr=0.5), Steps()
    module._trainer = trainer  # type: ignore[assignment]
    (optimizer,), (entry,) = module.configure_optimizers()
    assert trainer.asked == 0
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        entry["scheduler"].step()
    assert rates == pytest.approx([0.5, 0.375, 0.25, 0.125])
    assert optimizer.param_groups[0]["lr"] == 0
    assert entry["interval"] == "step"


def test_frozen_parameters_are_not_optimised():
    module, optimizer = optimised(frozen_layers=1)
    (group,) = optimizer.param_groups
    expected = {id(p) for p in module.encoder.text.layers[1].parameters()}
    assert {id(p) for p in group["params"]} == expected
    assert all(isinstance(p, torch.nn.Parameter) for p in group["params"])


@pytest.fixture
def tokenizer(tmp_path: Path) -> CodeTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    return CodeTokenizer(tmp_path / "vocab.txt")


def test_a_query_has_a_limit_of_its_own_before_the_pair_is_cut(tokenizer):
    """Section 5.2: also where there would be room for all of it."""
    ids, types = tokenizer.pair([5, 6, 7, 8], [9, 10], 12, 2)
    start, separator = tokenizer.start_id, tokenizer.separator_id
    assert ids == [start, 5, 6, separator, 9, 10, separator]
    assert types == [0] * 4 + [1] * 3


def test_an_at_sign_ends_a_summary_only_where_no_empty_line_does():
    """CodeSearchNet's order of the two rules."""
    assert summary("Mail to a@b of all.\n\n@param x") == "Mail to a@b of all."
    assert summary("Mail of all.\n@param x") == "Mail of all.\n"
    assert query_tokens("Mail to me@home now.\n\nMore.") == ["Mail", "to", "me@home", "now", "."]


def test_a_string_that_is_a_statement_goes_wherever_it_stands():
    """Section 6.3: behind a line, too, not only at the beginning of a block."""
    source = 'def f(x):\n    y = x\n    """Not code."""\n    return "code"\n'
    assert without_comments(source, "python") == 'def f(x):\n    y = x\n    return "code"'


def test_sets_and_multisets_of_similar_functions_have_thresholds_of_their_own():
    """0.8 and 0.7 of dpu-utils: here 1 as sets, 10 / 13 = 0.77 as multisets."""
    tokens = [f"t{n}" for n in range(10)]
    assert near_duplicates([tokens, [*tokens, "t0", "t1", "t2"]]) == [[0, 1]]
    assert near_duplicates([tokens, [*tokens, *tokens[:5]]]) == []  # 10 / 15
    assert near_duplicates([tokens, [*tokens[:8], "other", "more"]]) == []  # 8 / 12 as sets
