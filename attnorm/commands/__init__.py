"""One module a command: arguments, and one call. ``attnorm NAME`` and ``scripts/`` lead here."""
