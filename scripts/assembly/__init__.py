"""From a configuration, or from a run, to the objects that do the work."""
