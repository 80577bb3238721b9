"""ICCL: see README.md."""
