"""The guest side and the front-end side, for tests of devices."""
