"""Training: networks, losses, optimizer, schedule, data set, checkpoints and the training loop."""
