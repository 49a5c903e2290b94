"""What ``run.py`` measures, one module for each suite."""
