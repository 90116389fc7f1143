"""What a message has behind its header: one of some structures, and what follows it."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from vuproc.spec.layout import Buffer, Layout, LayoutError


class Payload(Struct, frozen=True):
    """What follows a message header: one of `heads`, then perhaps items or raw bytes.

    `heads`: the structures it may begin with, told apart by their size (none: no payload at all).
    `item` and `count`: structures that follow, and the head's field which says how many; decoded
    into `items`. `other_item`: they are these if that is just what the length says. `raw`: the
    head's field which says how many plain bytes follow; decoded into `data`. `padded`: bytes past
    the end are legal and ignored. `optional`: may be absent.
    """

    name: str
    heads: tuple[Layout, ...] = ()
    item: Layout | None = None
    other_item: Layout | None = None
    count: str = ""
    raw: str = ""
    padded: bool = False
    optional: bool = False

    def decode(self, data: Buffer) -> dict[str, Any]:
        """Split a payload into its fields; LayoutError if its length is not what it must be.

        An empty optional payload gives no fields.
        """
        if not data and (self.optional or not self.heads):
            return {}
        head = self._head_of(len(data))
        values = head.unpack(data)
        end = head.size
        if self.item is not None:
            count, item = values[self.count], self.item
            if self.other_item is not None and len(data) - end == count * self.other_item.size:
                item = self.other_item
            size = item.size
            # Bounded by the bytes that are there before anything is made of the sender's count.
            if count > (len(data) - end) // size:
                raise LayoutError(f"{self.name}: {count} items do not fit in {len(data)} bytes")
            values["items"] = [item.unpack(data, end + i * size) for i in range(count)]
            end += count * size
        if self.raw:
            count = values[self.raw]
            if count > len(data) - end:
                raise LayoutError(f"{self.name}: {count} bytes do not fit in {len(data)}")
            values["data"] = bytes(data[end : end + count])
            end += count
        if end != len(data) and not self.padded:
            raise LayoutError(f"{self.name} takes {end} bytes, not {len(data)}")
        return values

    def encode(self, **values: Any) -> bytes:
        """Build a payload from what `decode` gives; counts are filled in unless given.

        The head is the first whose fields include every name given. Raises LayoutError on an
        unknown field or a value that does not fit.
        """
        if not self.heads or (self.optional and not values):
            if values:
                raise LayoutError(f"{self.name} has no fields")
            return b""
        items = values.pop("items", ()) if self.item else ()
        data = values.pop("data", b"") if self.raw else b""
        if self.item is not None:
            values.setdefault(self.count, len(items))
        if self.raw:
            values.setdefault(self.raw, len(data))
        head = next((h for h in self.heads if set(values) <= set(h.fields)), self.heads[0])
        packed = [self._item_of(item).pack(**item) for item in items]
        return b"".join((head.pack(**values), *packed, bytes(data)))

    def _item_of(self, values: dict[str, Any]) -> Layout:
        assert self.item is not None
        if self.other_item is None or set(values) <= set(self.item.fields):
            return self.item
        return self.other_item

    def _head_of(self, length: int) -> Layout:
        if not self.heads:
            raise LayoutError(f"{self.name}: no payload is allowed, {length} bytes are there")
        if len(self.heads) == 1:
            return self.heads[0]
        for head in self.heads:
            if head.size == length:
                return head
        sizes = " or ".join(str(head.size) for head in self.heads)
        raise LayoutError(f"{self.name} takes {sizes} bytes, not {length}")
