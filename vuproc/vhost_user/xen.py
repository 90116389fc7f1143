"""Memory of a Xen domain in the memory table: which regions of it are legal.

A region of this kind comes with an open /dev/xen/privcmd or /dev/xen/gntdev in place of a file, and
is mapped by their calls (vhost-user, "Xen memory region description").
"""

from __future__ import annotations

from collections.abc import Mapping

from vuproc.errors import MessageRefused
from vuproc.fd import FdKind
from vuproc.spec.vhost_user import (
    XEN_DOMAINS_END,
    XEN_GRANTED,
    XEN_PAGE,
    ProtocolFeature,
    XenFlag,
)
from vuproc.vhost_user.effects import Region, Xen, XenKind

_KINDS = {
    XenFlag.FOREIGN: XenKind.FOREIGN,
    XenFlag.GRANT: XenKind.GRANT,
    # rust-vmm has bit 3 for this, and the specification's text says "bit 8".
    XenFlag.GRANT | XenFlag.NO_ADVANCE: XenKind.ON_DEMAND,
    XenFlag.GRANT | XenFlag.NO_ADVANCE_8: XenKind.ON_DEMAND,
}


def xen_of(fields: Mapping[str, int], protocol_features: int) -> Xen | None:
    """What a region's fields say of Xen; None: it is an ordinary one. Raises MessageRefused."""
    if "xen_flags" not in fields:
        return None
    where = f"region at {fields['guest_addr']:#x}"
    if not protocol_features & ProtocolFeature.XEN_MMAP:
        raise MessageRefused(f"{where}: as Xen has it, and XEN_MMAP was not negotiated")
    flags, domain = fields["xen_flags"], fields["domid"]
    if not flags:
        return None
    kind = _KINDS.get(XenFlag(flags))
    if kind is None:
        raise MessageRefused(f"{where}: Xen flags {flags:#x} mean nothing together")
    if domain >= XEN_DOMAINS_END:
        raise MessageRefused(f"{where}: {domain:#x} is no number of a domain")
    return Xen(kind, domain)


def check_xen(region: Region, kind: XenKind) -> None:
    """MessageRefused if a region of a domain's memory, which does not wrap, is not legal."""
    where = f"region at {region.guest_addr:#x}"
    if region.fd.kind not in (FdKind.OTHER, FdKind.FILE):
        raise MessageRefused(f"{where}: its descriptor is none of Xen's devices")
    if region.mmap_offset:
        raise MessageRefused(f"{where}: an offset, which memory of Xen does not have")
    if kind is XenKind.FOREIGN:
        return
    if not region.guest_addr & XEN_GRANTED:
        raise MessageRefused(f"{where}: no address of a grant, whose bit 63 is set")
    if (region.guest_addr - XEN_GRANTED + region.size - 1) // XEN_PAGE >= 1 << 32:
        raise MessageRefused(f"{where}: its last grant has no number of 32 bits")
