"""Our side: the CIFAR-10 experiment's own config, module and data.

Variants: see `OurSide`; "loading" takes the batches from the data module.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from benchmarks.speed.serving import serve
from benchmarks.speed.stepping import OurSide


class OurCoMatch(OurSide):
    """CoMatch in mid-run: memory smoothing is on."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__(
            settings,
            [
                "experiment=comatch/cifar10_40",
                "data.num_workers=0",
                f"data.dataset.root={settings['data']}",
                f"data.batch_size={settings['batch_size']}",
                f"data.mu={settings['mu']}",
                f"data.num_labels={settings['num_labels']}",
            ],
        )
        self.data = self.instantiate("data")
        self.data.setup("fit")
        self.batch = next(iter(self.data.train_dataloader()))

    def module(self) -> Any:
        module = super().module()
        module.bank.written.fill_(len(module.bank) + 1)
        return module

    def batches(self, source: str) -> Iterator[dict[str, Tensor]]:
        if source == "loading":
            while True:
                yield from self.data.train_dataloader()
        yield from super().batches(source)


if __name__ == "__main__":
    serve(OurCoMatch)
