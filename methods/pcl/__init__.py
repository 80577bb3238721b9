"""PCL: prototypical contrastive learning of unsupervised representations (arXiv:2005.04966)."""
