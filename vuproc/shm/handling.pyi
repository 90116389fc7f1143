def hurry() -> None:
    """The loop has something to do besides a turn that goes on: it may last SLICE_NS in all.

    May be called by any thread.
    """
