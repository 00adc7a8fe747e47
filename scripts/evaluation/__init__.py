"""What ``evaluate.py`` measures of each kind of run, and how its figures are kept."""
