"""The words of `vuproc --help` for the verbs that look at a running device."""

from __future__ import annotations

_CODES = """\
exit codes:
  0  ok
  1  no device runs there, or it has refused
  2  wrong usage, or something is wrong in the device file"""

STATS = """\
Show the numbers of a running device: for each queue its state, the requests in flight, what it
has completed, and how long requests took (upper bounds of powers of two). Once, they are those
since the device is served, whoever has died meanwhile; with --interval they are rates between one
look and the next."""

STATS_EPILOG = f"""\
examples:
  vuproc stats disk.yaml
  vuproc stats --json disk.yaml
  vuproc stats --interval 1 --count 10 disk.yaml

{_CODES}"""

TOP = """\
Show the rates of a running device and its last events, again and again, until Ctrl-C. It needs
rich: pip install 'vuproc[top]'."""

TOP_EPILOG = f"""\
example:
  vuproc top disk.yaml

{_CODES}"""

EVENTS = """\
Print the last events of a running device, oldest first, an object of JSON a line: front-ends that
come and go, workers that died and were replaced, rings that broke, reloads. They are kept over the
death of masters. With --follow, further ones are printed as they come; whoever takes them too
slowly loses the oldest, and is told how many by a line with the event events_lost."""

EVENTS_EPILOG = f"""\
examples:
  vuproc events disk.yaml
  vuproc events --follow disk.yaml | jq -c 'select(.event == "worker_died")'
  vuproc events --after 120 disk.yaml

{_CODES}"""

TRACE = """\
Print the last requests of a queue, oldest first: when each began, how long it took, its head, its
bytes, what it was if its type is known here, and what became of it. The device notes them if its
options say so: `trace: 64` below `device:`, which a reload applies."""

TRACE_EPILOG = f"""\
examples:
  vuproc trace disk.yaml
  vuproc trace --queue 1 --json disk.yaml

{_CODES}"""

AUTOPSY = """\
Say what the workers of a running device were doing when they died: the last deaths, the requests
that were in the device's code, and with `trace` in the device's options those that were in flight
and the last ones before."""

AUTOPSY_EPILOG = f"""\
example:
  vuproc autopsy disk.yaml

{_CODES}"""
