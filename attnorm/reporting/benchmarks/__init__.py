"""Ratio tables: layers, models, loaders, training loops."""
