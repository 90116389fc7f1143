"""Which image of a Ceph cluster it is, and as whom and by which configuration it is opened."""

from __future__ import annotations

import re

import msgspec

FORM = "POOL/[NAMESPACE/]IMAGE[@SNAPSHOT]"
_PART = r"[^/@\x00-\x1f]+"
_SPEC = re.compile(rf"({_PART})/(?:({_PART})/)?({_PART})(?:@({_PART}))?")


class RbdName(msgspec.Struct, frozen=True):
    """An image, as rbd(8) names it (image-spec and snap-spec). `user`: client.USER of the cluster's
    users; `conf`: a ceph.conf. "" is what Ceph takes by itself.
    """

    pool: str
    image: str
    namespace: str = ""
    snapshot: str = ""
    user: str = ""
    conf: str = ""

    @classmethod
    def of(cls, text: str, *, user: str = "", conf: str = "") -> RbdName:
        """Raises ValueError, which says what is wrong."""
        found = _SPEC.fullmatch(text)
        if found is None:
            raise ValueError(f"it is {FORM}")
        pool, namespace, image, snapshot = found.groups(default="")
        return cls(pool, image, namespace, snapshot, user.removeprefix("client."), conf)

    def __str__(self) -> str:
        inside = f"{self.namespace}/{self.image}" if self.namespace else self.image
        snapshot = f"@{self.snapshot}" if self.snapshot else ""
        return f"rbd {self.pool}/{inside}{snapshot}"
