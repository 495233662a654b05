"""What makes data sets, once, before any training: loaders need nothing of it."""
