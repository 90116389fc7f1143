"""What an operator asks of a running device, and the socket that takes it."""
