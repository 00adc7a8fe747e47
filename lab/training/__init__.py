"""The one trainer and what it stands on: stages, optimizer, averaging, checkpoints, signals."""
