"""The report's charts, as inline SVG; colours come from the page's style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from evaluation.rle import FloatArray

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 460, 210, 46, 34, 10


def lines(
    x: FloatArray, series: Sequence[tuple[str, str, FloatArray]], mark: float, x_label: str, y_label: str
) -> str:
    """Curves over one axis, y from 0 to 1, with a vertical mark.

    Args:
        x: (N,) ascending.
        series: Name, CSS class and (N,) values of each curve.
        mark: Where the vertical line stands.
        x_label: Under the axis.
        y_label: Next to the axis.
    """
    low, high = float(x[0]), float(x[-1])
    body = [_axes(low, high, x_label, y_label, 1.0)]
    at = _x(np.array([mark]), low, high)[0]
    body.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    for name, css, values in series:
        points = " ".join(
            f"{px:.1f},{py:.1f}" for px, py in zip(_x(x, low, high), _y(values, 1.0), strict=True)
        )
        body.append(f'<polyline class="{css}" points="{points}"><title>{escape(name)}</title></polyline>')
    return _svg(body, f"{y_label} over {x_label}")


def histogram(series: Sequence[tuple[str, str, FloatArray]], x_label: str, bins: int = 40) -> str:
    """Overlaid distributions, each scaled to its own sum.

    Args:
        series: Name, CSS class and values of each distribution.
        x_label: Under the axis.
        bins: Bars.
    """
    every = np.concatenate([values for _, _, values in series])
    edges = np.linspace(every.min(), every.max() + 1e-9, bins + 1)
    parts = [np.histogram(values, edges)[0] / max(len(values), 1) for _, _, values in series]
    top = max(float(part.max()) for part in parts)
    body = [_axes(edges[0], edges[-1], x_label, "part", top)]
    for (name, css, _), part in zip(series, parts, strict=True):
        left, y = _x(edges, edges[0], edges[-1]), _y(part, top)
        body += [
            f'<rect class="{css}" x="{left[i]:.1f}" width="{left[i + 1] - left[i]:.1f}" y="{y[i]:.1f}" '
            f'height="{HEIGHT - BOTTOM - y[i]:.1f}"><title>{escape(name)}</title></rect>'
            for i in range(bins)
            if part[i]
        ]
    return _svg(body, f"distributions of {x_label}")


def _x(values: FloatArray, low: float, high: float) -> FloatArray:
    scaled: FloatArray = LEFT + (values - low) / max(high - low, 1e-12) * (WIDTH - LEFT - 8)
    return scaled


def _y(values: FloatArray, top: float) -> FloatArray:
    scaled: FloatArray = HEIGHT - BOTTOM - values / max(top, 1e-12) * (HEIGHT - BOTTOM - TOP)
    return scaled


def _axes(low: float, high: float, x_label: str, y_label: str, top: float) -> str:
    ticks = np.linspace(low, high, 6)
    parts = [
        f'<text x="{px:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{value:.2f}</text>'
        for px, value in zip(_x(ticks, low, high), ticks, strict=True)
    ]
    for value in np.linspace(0, top, 5):
        y = _y(np.array([value]), top)[0]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 3:.1f}" text-anchor="end">{value:.2f}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(
        f'<text transform="translate(9 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    return "".join(parts)


def _svg(body: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(body)}</svg>'
    )
