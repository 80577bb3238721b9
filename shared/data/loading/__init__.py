"""Loading: which samples make up a batch, and loaders that resume."""
