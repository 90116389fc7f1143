"""The processes that serve virtqueues, and the master's view of them."""
