"""Parameter groups by the rules that the papers use."""

from collections.abc import Sequence

from torch import nn


def weight_decay_groups(
    module: nn.Module, weight_decay: float, no_decay: Sequence[str] = ()
) -> list[dict]:
    """Optimiser groups of the parameters that learn, by NAME as in the papers: those without one of
    the patterns `no_decay`, and those with one, if any; by default all decay, biases, LayerNorms
    and temperature too, as in BLIP. A pattern that fits no parameter is a ValueError."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    for pattern in no_decay:
        if not any(pattern in name for name, _ in named):
            raise ValueError(f"no_decay pattern {pattern!r} fits no parameter name")
    spared = [p for name, p in named if any(pattern in name for pattern in no_decay)]
    decayed = [p for name, p in named if not any(pattern in name for pattern in no_decay)]
    groups = [{"params": decayed, "weight_decay": weight_decay}]
    if spared:
        groups.append({"params": spared, "weight_decay": 0.0})
    return groups


def decay_matrices(module: nn.Module, weight_decay: float) -> list[dict]:
    """Two optimiser groups by timm's rule: biases and parameters of one dimension are spared.

    Embeddings, class token, positions and a 0-dimensional temperature are decayed, as in ALBEF and
    its descendants, whose wrappers hide the ViT's own list from timm. Shared tensors count once.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    spared = [p for name, p in named if p.ndim == 1 or name.endswith(".bias")]
    decayed = [p for name, p in named if not (p.ndim == 1 or name.endswith(".bias"))]
    groups = ((decayed, weight_decay), (spared, 0.0))
    return [{"params": params, "weight_decay": decay} for params, decay in groups]
