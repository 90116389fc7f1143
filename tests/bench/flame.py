"""Where the time of a side goes: samples of its stacks by perf(1), as lines and as a picture.

A line has a stack, its frames from the outermost on with semicolons between them, and how many
samples met it: what tools for flame graphs read. In the picture a frame is as wide as its share of
the samples, and stands on its caller. Frames of programs without frame pointers are few; the
kernel's, and the innermost of all, are right.
"""

from __future__ import annotations

import re
import select
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.backends import Missing
from tests.bench.contenders import Contender

PER_SECOND = 1997
"""Samples a second of each CPU: no multiple of anything that is periodic."""
LEAST_S = 1.0
"""Seconds that a side is looked at."""
STOP_TIMEOUT_S = 30.0
SCRIPT_TIMEOUT_S = 120.0
WIDTH, ROW, HEAD = 12.0, 0.22, 0.6
"""Inches: of the picture, of a frame, of the title."""
NARROW = 0.02
"""Share of the picture below which a frame has no name in it."""
DEEPEST = 60
UNKNOWN = "[unknown]"

Stacks = Mapping[tuple[str, ...], int]


def profiler(folder: Path) -> Callable[[str, Contender, int], None]:
    """What takes one more sample of a side, and writes what it finds into `folder`. Raises Missing
    without perf.
    """
    if shutil.which("perf") is None:
        raise Missing("there is no perf here")
    folder.mkdir(parents=True, exist_ok=True)

    def profile(comparison: str, side: Contender, count: int) -> None:
        stem = re.sub(r"\W+", "-", f"{comparison} {side.name}").strip("-")
        stacks = _sampled(side, count, folder / f"{stem}.perf")
        lines = (f"{';'.join(stack)} {number}\n" for stack, number in sorted(stacks.items()))
        (folder / f"{stem}.folded").write_text("".join(lines), encoding="utf-8")
        draw(stacks, f"{side.name}, {comparison}", folder / f"{stem}.svg")

    return profile


def _sampled(side: Contender, count: int, path: Path) -> Stacks:
    pids = ",".join(map(str, side.workers()))
    command = ["perf", "record", "--event", "cpu-clock", "--freq", str(PER_SECOND), "-g"]
    recorder = subprocess.Popen(
        [*command, "--pid", pids, "--output", path, "--control", "fd:0,1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        _tell(recorder, b"ping\n")  # it answers once it counts
        end = time.monotonic() + LEAST_S
        side.connection.run(count)
        while time.monotonic() < end:
            side.connection.run(count)
        # Not by a signal, nor by the end of its input: perf 6.1 then leaves its file unfinished.
        _tell(recorder, b"stop\n")
        recorder.communicate(timeout=STOP_TIMEOUT_S)
        shown = subprocess.run(
            ["perf", "script", "--input", path, "--fields", "comm,ip,sym"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SCRIPT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Missing(f"perf did not end: {error}") from error
    finally:
        if recorder.poll() is None:
            recorder.kill()
            recorder.communicate()
        path.unlink(missing_ok=True)
    return folded(shown.stdout.splitlines())


def _tell(recorder: subprocess.Popen[bytes], order: bytes) -> None:
    """Give perf an order by its control channel, and wait for the answer. Raises Missing."""
    assert recorder.stdin is not None and recorder.stdout is not None
    try:
        recorder.stdin.write(order)
        recorder.stdin.flush()
        answers, _, _ = select.select([recorder.stdout], [], [], STOP_TIMEOUT_S)
        answered = bool(answers and recorder.stdout.readline())
    except BrokenPipeError:
        answered = False
    if not answered:
        raise Missing("perf may not look at other processes here, or has no control channel")


def folded(lines: Iterable[str]) -> Stacks:
    """The stacks in what `perf script --fields comm,ip,sym` prints, outermost frame first."""
    found: Counter[tuple[str, ...]] = Counter()
    frames: list[str] = []
    for line in [*lines, ""]:
        if line.startswith("\t"):
            name = line.strip().partition(" ")[2] or UNKNOWN
            frames.append(name.replace(";", ":"))
        elif not line.strip() and frames:
            found[tuple(reversed(frames))] += 1
            frames = []
    return found


@dataclass(slots=True)
class Frame:
    """One frame of the picture: where it begins, as a share of all samples, and its callees."""

    name: str
    samples: int = 0
    inner: dict[str, Frame] = field(default_factory=dict)


def tree(stacks: Stacks) -> Frame:
    """All stacks together; the root stands for all of them."""
    root = Frame("all")
    for stack, number in stacks.items():
        frame = root
        frame.samples += number
        for name in stack[:DEEPEST]:
            frame = frame.inner.setdefault(name, Frame(name))
            frame.samples += number
    return root


def boxes(root: Frame) -> Iterator[tuple[int, float, float, str]]:
    """The frames as depth, left edge and width (shares of all samples), and name."""
    level: Sequence[tuple[float, Frame]] = [(0.0, root)]
    depth = 0
    while level:
        below: list[tuple[float, Frame]] = []
        for left, frame in level:
            yield depth, left, frame.samples / root.samples, frame.name
            for inner in sorted(frame.inner.values(), key=lambda each: each.name):
                below.append((left, inner))
                left += inner.samples / root.samples
        level, depth = below, depth + 1


def draw(stacks: Stacks, title: str, path: Path) -> None:
    """Write an SVG. Raises Missing."""
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError:
        raise Missing("a flame graph needs matplotlib: pip install vuproc[bench]") from None
    root = tree(stacks)
    if not root.samples:
        raise Missing("perf took no sample")
    shown = list(boxes(root))
    rows = 1 + max(depth for depth, *_ in shown)
    figure = Figure(figsize=(WIDTH, HEAD + ROW * rows), layout="constrained")
    FigureCanvasSVG(figure)
    panel = figure.subplots()
    for depth, left, width, name in shown:
        shade = 0.45 + 0.5 * (sum(name.encode()) % 32) / 32
        color = (1.0, shade, 0.35)
        panel.add_patch(Rectangle((left, depth), width, 0.95, facecolor=color, linewidth=0))
        if width >= NARROW:
            text = f"{name} {width:.0%}"
            room = int(width * WIDTH * 14)
            panel.text(left, depth + 0.3, f" {text[:room]}", fontsize=6, clip_on=True)
    panel.set_xlim(0, 1)
    panel.set_ylim(0, rows)
    panel.axis("off")
    panel.set_title(f"{title}: {root.samples} samples", fontsize=9, loc="left")
    figure.savefig(path)
