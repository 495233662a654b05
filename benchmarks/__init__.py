"""How fast it is, as tables: ``python -m benchmarks SUBJECT``."""
