"""Requests in the order of their fetches, for a driver that takes them back in no other (IN_ORDER).

Each head that is in flight stands in the line once. One that is completed before its turn waits
there; it is in flight for everybody else, the record included, until those before it are done.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t


cdef struct Line:
    uint16_t *heads                # a ring of `size`; NULL: there is no line
    uint32_t *lengths              # by head: the used length of one that waits
    uint8_t *done                  # by head: whether it is completed
    uint32_t size
    uint32_t first
    uint32_t count
    uint32_t waiting               # of them, completed ones


cdef inline void join(Line *line, uint16_t head) noexcept nogil:
    # SAFETY: a head is below the size, and there once: count < size before.
    cdef uint32_t at = line.first + line.count
    line.heads[at if at < line.size else at - line.size] = head
    line.done[head] = False
    line.count += 1


cdef inline void leave_last(Line *line) noexcept nogil:
    # The newest was taken back.
    line.count -= 1


cdef inline void await_turn(Line *line, uint16_t head, uint32_t length) noexcept nogil:
    line.lengths[head] = length
    line.done[head] = True
    line.waiting += 1


cdef inline bint next_is_done(const Line *line) noexcept nogil:
    return line.count and line.done[line.heads[line.first]]


cdef inline uint16_t leave_first(Line *line) noexcept nogil:
    cdef uint16_t head = line.heads[line.first]
    line.first += 1
    if line.first == line.size:
        line.first = 0
    line.count -= 1
    line.waiting -= 1
    return head
