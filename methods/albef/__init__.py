"""ALBEF: align before fuse, vision-language learning with momentum distillation (2107.07651)."""
