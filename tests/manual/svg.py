"""A few shapes of SVG on a card of its own: to be read on a light page as on a dark one."""

from __future__ import annotations

from html import escape

INK, QUIET, CARD, EDGE = "#1b1f24", "#57606a", "#ffffff", "#8c959f"
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, 'DejaVu Sans Mono', monospace"
ROUND = 8


class Svg:
    """One picture, in pixels from its upper left corner. `text` has the whole."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._size = width, height
        self._title = title
        self._parts: list[str] = []
        self.box(0.5, 0.5, width - 1, height - 1, CARD, EDGE)

    def box(self, x: float, y: float, width: float, height: float, fill: str, edge: str) -> None:
        """A box with round corners."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{ROUND / 2:g}" '
            f'fill="{fill}" stroke="{edge}"/>'
        )

    def line(self, points: list[tuple[float, float]], ink: str = EDGE, *, dashed: bool = False,
             arrow: bool = False, width: float = 1.5) -> None:  # fmt: skip
        """A line through points; with an arrow, in ink, at its end."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        more = ' stroke-dasharray="5 4"' if dashed else ""
        more += ' marker-end="url(#arrow)"' if arrow else ""
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{ink}" stroke-width="{width:g}"{more}/>'
        )

    def text(self, x: float, y: float, said: str, ink: str = INK, *, size: int = 13,
             middle: bool = False, mono: bool = False, bold: bool = False) -> None:  # fmt: skip
        """Lines of text; `y` is the first one's foot, `middle`: `x` is their middle."""
        anchor = ' text-anchor="middle"' if middle else ""
        weight = ' font-weight="600"' if bold else ""
        for number, line in enumerate(said.split("\n")):
            self._parts.append(
                f'<text x="{x:g}" y="{y + number * size * 1.25:g}" font-size="{size}" '
                f'font-family="{MONO if mono else FONT}" fill="{ink}"{anchor}{weight}>'
                f"{escape(line, quote=False)}</text>"
            )

    def __str__(self) -> str:
        width, height = self._size
        marker = (
            '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="{INK}"/></marker>'
            "</defs>"
        )
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img">'
        )
        title = f"<title>{escape(self._title, quote=False)}</title>"
        return "\n".join([head, title, marker, *self._parts, "</svg>", ""])
