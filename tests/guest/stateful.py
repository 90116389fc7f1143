"""A device that QEMU takes for a file system: it is the one whose own state QEMU migrates."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from vuproc import Device, Options, Request


class WordOptions(Options, kw_only=True):
    word: Annotated[str, Meta(description="What the device knows at first.")] = ""


class Word(Device):
    """virtio-fs as far as a machine without a driver can tell, with a word of its own."""

    device_id = 26
    queues = 2
    options_type = WordOptions
    options: WordOptions

    def setup(self, queue: int) -> None:
        self.word = self.options.word.encode()

    def handle(self, request: Request) -> None:
        raise ValueError("nobody asks")

    def save_state(self) -> bytes:
        return self.word

    def load_state(self, data: bytes, version: int) -> None:
        if data == b"unwelcome":
            raise ValueError("not this one")
        self.word = data
        self.log.info("the word is %s", data.decode())
