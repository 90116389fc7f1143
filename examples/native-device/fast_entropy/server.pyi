from vuproc.shm.native import NativeDevice

class Server(NativeDevice):
    def __init__(self, seed: int) -> None: ...
