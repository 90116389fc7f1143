"""The device file: read, checked, typed, compared and described."""
