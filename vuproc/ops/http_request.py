"""As much of HTTP/1.1 as a scrape takes: one request without a body, one answer, and the end."""

from __future__ import annotations

from enum import Enum

HEAD_BYTES = 8192
"""Bytes of the longest head of a request that is read."""
_END = b"\r\n\r\n"
_METHODS = (b"GET", b"HEAD")
PATHS = (b"/metrics",)


class Wants(Enum):
    """What a client is to get."""

    PAGE = "200 OK"
    HEAD = "head alone"
    BAD = "400 Bad Request"
    NOT_THERE = "404 Not Found"
    NO_METHOD = "405 Method Not Allowed"
    TOO_LONG = "431 Request Header Fields Too Large"


def parse(head: bytes) -> Wants | None:
    """What the bytes ask for that have come so far; None if there must be more."""
    if len(head) > HEAD_BYTES:
        return Wants.TOO_LONG
    if _END not in head:
        return None
    words = head.partition(b"\r\n")[0].split(b" ")
    if len(words) != 3 or words[2] not in (b"HTTP/1.0", b"HTTP/1.1"):
        return Wants.BAD
    if words[0] not in _METHODS:
        return Wants.NO_METHOD
    if words[1].partition(b"?")[0] not in PATHS:
        return Wants.NOT_THERE
    return Wants.PAGE if words[0] == b"GET" else Wants.HEAD


def answer(wants: Wants, content_type: str, body: bytes) -> bytes:
    """The whole answer. `body` is the page; a refusal has a text of its own."""
    status = Wants.PAGE.value if wants is Wants.HEAD else wants.value
    if wants not in (Wants.PAGE, Wants.HEAD):
        content_type, body = "text/plain; charset=utf-8", f"{status}\n".encode()
    allow = "Allow: GET, HEAD\r\n" if wants is Wants.NO_METHOD else ""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        f"{allow}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if wants is Wants.HEAD else body)
