"""What a learning rate range test found. Plain data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.documents.plots import BAR, INK, LINE, Picture, svg, text

WIDTH, HEIGHT, LEFT, TOP = 460, 240, 60, 44


@dataclass(frozen=True)
class Rates:
    base_model: str
    method: str
    suggested: float
    by_rule: float
    """What `auto` takes."""
    rule: str
    tried: Sequence[Mapping[str, float]]
    """rate and loss (smoothed, per supervised item) of each step, from low to high."""

    @property
    def reason(self) -> str:
        lowest = min(self.tried, key=lambda t: t["loss"])
        return (
            f"a tenth of {lowest['rate']:.1e}, where the loss was lowest ({lowest['loss']:.3f}) in "
            f"{len(self.tried)} steps at rates from {self.tried[0]['rate']:.0e} to "
            f"{self.tried[-1]['rate']:.0e}"
        )

    @property
    def told(self) -> str:
        return (
            f"{self.base_model}, {self.method}: begin with learning_rate {self.suggested:g}: "
            f"{self.reason}\nby rule (auto) it is {self.by_rule:g}: {self.rule}"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"reason": self.reason}

    def plot(self) -> Picture:
        """The loss against the rate, and where the suggested one lies."""
        losses = [t["loss"] for t in self.tried]
        low, high = min(losses), max(losses[0], min(losses) * 1.5)
        first, last = (math.log10(self.tried[i]["rate"]) for i in (0, -1))

        def x(rate: float) -> float:
            return LEFT + WIDTH * (math.log10(rate) - first) / max(1e-9, last - first)

        def y(loss: float) -> float:
            return TOP + HEIGHT * (1 - (min(loss, high) - low) / max(1e-9, high - low))

        out = [
            f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none"'
            f' stroke="{LINE}"/>'
        ]
        for power in range(math.ceil(first), math.floor(last) + 1):
            out.append(text(x(10.0**power), TOP + HEIGHT + 18, f"1e{power}", "middle"))
        for loss in (low, high):
            out.append(text(LEFT - 8, y(loss) + 4, f"{loss:.2f}", "end"))
        line = " ".join(f"{x(t['rate']):.1f},{y(t['loss']):.1f}" for t in self.tried)
        out.append(f'<polyline points="{line}" fill="none" stroke="{BAR}" stroke-width="1.5"/>')
        at = x(self.suggested)
        out.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{TOP + HEIGHT}" stroke="{INK}"'
            ' stroke-dasharray="4 3"/>'
        )
        out.append(text(at + 6, TOP + 14, f"{self.suggested:g}", "start"))
        title = f"{self.base_model}, {self.method}: loss by learning rate"
        return Picture(svg(LEFT + WIDTH + 40, TOP + HEIGHT + 40, title, out))
