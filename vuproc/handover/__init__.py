"""What outlives a master: descriptors, state and messages, for the one that goes on."""
