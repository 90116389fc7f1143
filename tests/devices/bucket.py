"""What a test has of a store: its one bucket, past the gate, and the images in it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any

from tests.devices.store_gate import LOOPBACK, Gate

NAME = "images"
"""That of the bucket, in every store."""


class Bucket(ABC):
    """The bucket of the server at a port of this machine, asked by no code of vuproc's. Clients go
    by `gate`.
    """

    scheme: str

    def __init__(self, port: int) -> None:
        self.gate = Gate(port)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{NAME}"

    @property
    def environment(self) -> dict[str, str]:
        """What clients find it by."""
        # Whatever proxy this machine goes out by, it is not asked for what is here.
        return {"NO_PROXY": LOOPBACK, **self._credentials()}

    @abstractmethod
    def _credentials(self) -> dict[str, str]: ...

    @abstractmethod
    def get(self, name: str) -> bytes:
        """An object's content. Raises KeyError if there is none."""

    @abstractmethod
    def put(self, name: str, data: bytes) -> None:
        """Have an object, of somebody else's."""

    @abstractmethod
    def names(self) -> list[str]:
        """Of all objects, sorted."""

    @abstractmethod
    def delete_all(self) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Hang up on everybody. The server goes on."""

    def manifest(self, image: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get(f"{image}/manifest.json"))
        return found

    def image_or_none(self, image: str) -> bytes | None:
        """None if a piece was replaced and deleted while it was read."""
        try:
            return self.image(image)
        except KeyError:
            return None

    def image(self, image: str) -> bytes:
        """An image in pieces put together as its description says."""
        manifest = self.manifest(image)
        size, piece = manifest["size"], manifest["piece"]
        base = b"" if manifest["base"] is None else self.get(manifest["base"]["key"])
        parts = []
        for number, place in enumerate(manifest["pieces"]):
            length = min(piece, size - number * piece)
            if place == -1:
                parts.append(bytes(length))
            elif place == -2:
                parts.append(base[number * piece : number * piece + length])
            else:
                parts.append(self.get(f"{image}/{manifest['runs'][place]}/{number:016x}"))
                assert len(parts[-1]) == length
        return b"".join(parts)
