"""The command `vuproc`."""
