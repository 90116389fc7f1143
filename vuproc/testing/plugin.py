"""The pytest plugin of vuproc."""
