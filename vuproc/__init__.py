"""Virtio devices outside the VMM: one process a virtqueue, devices written in Python."""
