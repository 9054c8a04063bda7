"""A line plot as SVG text: no dependency, readable in a diff."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import median

COLOURS = ("#1f77b4", "#d95f02", "#1b9e77", "#7b5ea7")
WIDTH, HEIGHT = 640, 360
LEFT, TOP, RIGHT, BOTTOM = 56, 36, 120, 48

Series = Mapping[str, Sequence[tuple[float, Sequence[float]]]]
"""Name, then points: x and the values at x, of which the median is drawn and the range behind
it."""


def line_plot(
    title: str,
    x_name: str,
    series: Series,
    x_ticks: Sequence[float],
    *,
    percent: bool = False,
    log_x: bool = True,
) -> str:
    values = [v for points in series.values() for _, ys in points for v in ys]
    low, high = (0.0, 1.0) if percent else (math.floor(min(values)), math.ceil(max(values)))
    scale = math.log if log_x else float
    first, last = scale(min(x_ticks)), scale(max(x_ticks))

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (scale(value) - first) / (last - first)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    out = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
            ' font-family="sans-serif" font-size="12" role="img">'
        ),
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" fill="#222222" font-size="13">{escape(title)}</text>',
    ]
    for i in range(5):
        value = low + (high - low) * i / 4
        label = f"{value:.0%}" if percent else f"{value:g}"
        out.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"'
            ' stroke="#dddddd"/>'
        )
        out.append(
            f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end"'
            f' fill="#444444">{label}</text>'
        )
    for tick in x_ticks:
        out.append(
            f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle"'
            f' fill="#444444">{tick:,g}</text>'
        )
    out.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle"'
        f' fill="#444444">{escape(x_name)}</text>'
    )
    for (name, points), colour in zip(series.items(), COLOURS, strict=False):
        places = [(x(at), y(median(ys))) for at, ys in points]
        for at, ys in points:
            if max(ys) > min(ys):
                out.append(
                    f'<line x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{y(min(ys)):.1f}"'
                    f' y2="{y(max(ys)):.1f}" stroke="{colour}"/>'
                )
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{line}"/>')
        if len(places) <= 12:
            out += [
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in places
            ]
        out.append(
            f'<text x="{places[-1][0] + 10:.1f}" y="{places[-1][1] + 4:.1f}"'
            f' fill="{colour}">{escape(name)}</text>'
        )
    return "\n".join([*out, "</svg>", ""])
