"""The few shapes of SVG that the plot is made of, on a card that is light or dark as the reader's system is.

Rule: knows nothing of what is drawn.  Colours are classes of STYLE and nothing else, so that both schemes are complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final
from xml.sax.saxutils import escape

Point = tuple[float, float]

# Colour by class: light, dark.  `first` and `second` are ours under two releases; lines and dots have them as strokes.
_COLOURS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "card": ("#ffffff", "#0d1117"),
        "ink": ("#1f2328", "#f0f6fc"),
        "muted": ("#59636e", "#9198a1"),
        "grid": ("#d8dee4", "#30363d"),
        "go": ("#6e7781", "#8b949e"),
        "first": ("#0969da", "#58a6ff"),
        "second": ("#8250df", "#bc8cff"),
        "third": ("#1a7f37", "#3fb950"),
        "rust": ("#bc4c00", "#f0883e"),
        "bad": ("#cf222e", "#ff7b72"),
    }
)
_FONT: Final = "-apple-system,BlinkMacSystemFont,'Segoe UI','Noto Sans',Helvetica,Arial,sans-serif"


class Drawing:
    """Shapes, in the order in which they are drawn; y grows downwards."""

    def __init__(self) -> None:
        self._shapes: list[str] = []

    def text(
        self, x: float, y: float, text: str, kind: str = "ink", *, anchor: str = "start", bold: bool = False
    ) -> None:
        """Write a line of text with its base line at `y`."""
        weight = ' font-weight="600"' if bold else ""
        self._shapes.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'
        )

    def bar(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        """Fill a rectangle."""
        self._shapes.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" rx="1.5" class="{kind}"/>'
        )

    def line(self, points: Sequence[Point], kind: str, *, width: float = 1.0, dashes: str = "") -> None:
        """Draw from point to point."""
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        self._shapes.append(f'<polyline points="{joined}" class="{kind}-line" stroke-width="{width:g}"{dash}/>')

    def dot(self, x: float, y: float, kind: str, radius: float = 3.0) -> None:
        """Draw a dot."""
        self._shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{kind}"/>')

    def whole(self, width: float, height: float, title: str) -> str:
        """Return the file."""
        opening = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'width="{width:.0f}" height="{height:.0f}" role="img" font-family="{_FONT}" font-size="12">'
        )
        card = (
            f'<rect x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="8" class="card grid-line"/>'
        )
        parts = [opening, f"<title>{escape(title)}</title>", f"<style>{_style()}</style>", card]
        return "\n".join([*parts, *self._shapes, "</svg>"]) + "\n"


def _style() -> str:
    light = _rules((name, colours[0]) for name, colours in _COLOURS.items())
    dark = _rules((name, colours[1]) for name, colours in _COLOURS.items())
    return f"polyline{{fill:none;stroke-linejoin:round}}{light}@media(prefers-color-scheme:dark){{{dark}}}"


def _rules(colours: Iterable[tuple[str, str]]) -> str:
    return "".join(f".{name}{{fill:{colour}}}.{name}-line{{stroke:{colour}}}" for name, colour in colours)
