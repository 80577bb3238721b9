"""CoMatch: semi-supervised learning with contrastive graph regularization (arXiv:2011.11183)."""
