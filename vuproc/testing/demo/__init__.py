"""The demonstration behind the README's first command: one disk, two kinds of driver."""
