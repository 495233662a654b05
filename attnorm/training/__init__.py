"""Training, evaluation and checkpoints; knows nothing of architectures and loaders."""
