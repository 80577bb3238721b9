"""What a training run needs around the method: optimiser, schedule, gathers, checkpoints, logs."""
