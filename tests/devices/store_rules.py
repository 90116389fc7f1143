"""A program: what any store has to do for us, asked of the one at the URL. There is an object
there/before. It fails with the first rule that does not hold.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from vuproc.devices.object_store import Exchanged, ObjectAbsent, ObjectStore, ObjectUnavailable

DATA = bytes(range(256)) * 64
LARGE = bytes(12 << 20)
"""More than the library would put at once by itself."""


def raises(kind: type[ObjectUnavailable], action: Callable[[], object]) -> bool:
    try:
        action()
    except kind as error:
        return type(error) is kind
    return False


def main(url: str) -> None:
    store, name = ObjectStore(url), "rules/manifest.json"
    assert raises(ObjectAbsent, lambda: store.describe(name))
    assert raises(Exchanged, lambda: store.exchange("there/before", b"ours", None))
    first = store.exchange(name, b"first", None)
    assert raises(Exchanged, lambda: store.exchange(name, b"another first", None))
    assert store.whole(name, 100) == (b"first", first)
    assert store.exchange(name, b"second", first) != first
    assert raises(Exchanged, lambda: store.exchange(name, b"third", first))
    large = store.exchange("rules/large", LARGE, None)
    assert raises(Exchanged, lambda: store.exchange("rules/large", LARGE, None))
    assert store.whole("rules/large", len(LARGE)) == (LARGE, large)
    store.put("rules/large", LARGE[1:])
    assert raises(Exchanged, lambda: store.exchange("rules/large", LARGE, large))
    store.delete(["rules/large"])

    store.put("rules/b c", DATA)
    found = store.describe("rules/b c")
    assert (found.size, bool(found.tag)) == (len(DATA), True)
    assert store.part("rules/b c", 255, 3, found.tag) == b"\xff\0\1"
    store.put("rules/b c", DATA[::-1])
    assert raises(Exchanged, lambda: store.part("rules/b c", 255, 3, found.tag))
    store.put("rules/d", b"")
    listed = sorted(name for names in store.below("rules") for name in names)
    assert listed == ["rules/b c", "rules/d", "rules/manifest.json"]
    store.delete(["rules/b c", "rules/d", "rules/e"])
    store.delete(["rules/e"])


if __name__ == "__main__":
    main(sys.argv[1])
