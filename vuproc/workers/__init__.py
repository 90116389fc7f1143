"""What runs in a worker process, and the control channel that it shares with the master."""
