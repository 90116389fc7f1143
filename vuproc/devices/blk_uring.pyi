from vuproc.devices.blk_native import NativeBlk

class UringBlk(NativeBlk):
    """Serves an open image through the ring's io_uring; by blocking calls where there is none."""
