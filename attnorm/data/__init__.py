"""From image files to normalized batches on the device: DALI, torch and synthetic loaders."""
