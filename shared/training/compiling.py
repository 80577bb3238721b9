"""Compile what a network repeats."""

from torch import nn


def compile_blocks(module: nn.Module, backend: str) -> int:
    """Compile in place, at their first call, the blocks of which a module's networks consist;
    returns their number.

    Blocks instead of networks: those of one shape are compiled once, and a network's parts are
    called by many names besides `forward`. State dicts keep their keys.
    """
    rows = [part for part in module.modules() if isinstance(part, nn.ModuleList | nn.Sequential)]
    alike = [row for row in rows if len(row) > 1 and len({type(block) for block in row}) == 1]
    blocks = [block for row in alike for block in row]
    for block in blocks:
        block.compile(backend=backend)
    return len(blocks)
