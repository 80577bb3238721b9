"""What docs/papers/pcl.md, section 3.4 demands of the concentrations beyond the golden case."""

import numpy as np
import torch

from methods.pcl.clustering import concentration


def test_concentrations_are_clipped_at_both_percentiles() -> None:
    sizes = [2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 11, 13]
    ids = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    squared = torch.rand(len(ids), generator=torch.Generator().manual_seed(0)) + 0.1
    squared[ids == 0] *= 400  # far above all others
    squared[ids == 9] /= 400
    distances = np.sqrt(squared.double().numpy())
    phi = np.array([distances[ids == k].mean() / np.log(n + 10) for k, n in enumerate(sizes)])
    clipped = np.clip(phi, *np.percentile(phi, [10, 90]))
    assert clipped.max() < phi.max()
    assert clipped.min() > phi.min()
    found = concentration(ids, squared, len(sizes), 0.2)
    np.testing.assert_allclose(found.numpy(), 0.2 * clipped / clipped.mean(), rtol=1e-5)
