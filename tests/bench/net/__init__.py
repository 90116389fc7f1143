"""Frames and streams of network devices, beside what others make of the same."""
