"""MoPro: webly supervised learning with momentum prototypes (arXiv:2009.07995)."""
