"""The only place that assembles: a config becomes a run, a checkpoint becomes a model."""
