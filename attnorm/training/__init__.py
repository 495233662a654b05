"""Training and checkpoints; knows nothing of architectures, loaders and tasks."""
