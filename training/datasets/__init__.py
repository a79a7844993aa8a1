"""Data sets: what they are made of, how they are made and read; training.dataset is the way in."""
