"""Quality metrics, run on snapshots during training and from the command line."""
