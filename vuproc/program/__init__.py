"""What lies between a program that has a `vuproc.Daemon` and the master process of that daemon."""
