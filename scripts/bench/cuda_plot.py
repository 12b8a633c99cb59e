"""Times against rows as an SVG: both axes logarithmic."""

import math

_COLOURS = ["#c1272d", "#0000a7", "#008176", "#eecc16", "#b3b3b3", "#7b3294", "#555555"]
_WIDTH, _HEIGHT, _MARGIN = 720, 420, 60


def svg(title, rows, series):
    """`series` maps a name to one time in microseconds for each of `rows` (None: not measured)."""
    times = [t for values in series.values() for t in values if t]
    x_range = math.log2(rows[0]), math.log2(max(rows[-1], rows[0] * 2))
    y_range = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)) + 1e-9)

    def x(m):
        return _MARGIN + (math.log2(m) - x_range[0]) / (x_range[1] - x_range[0]) * (_WIDTH - 2 * _MARGIN)

    def y(t):
        return _HEIGHT - _MARGIN - (math.log10(t) - y_range[0]) / (y_range[1] - y_range[0]) * (_HEIGHT - 2 * _MARGIN)

    def text(at_x, at_y, content, anchor="middle", colour="black"):
        return f'<text x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}" fill="{colour}">{content}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>',
        text(_WIDTH / 2, 20, title),
        text(_WIDTH / 2, _HEIGHT - 15, "rows"),
        text(8, 40, "microseconds", "start"),
    ]
    for m in rows:
        parts.append(text(x(m), _HEIGHT - _MARGIN + 18, m))
    for power in range(y_range[0], y_range[1] + 1):
        at = y(10**power)
        parts.append(f'<path d="M{_MARGIN} {at:.1f}H{_WIDTH - _MARGIN}" stroke="#ddd"/>')
        parts.append(text(_MARGIN - 6, at + 4, f"{10**power:g}", "end"))
    for i, (name, values) in enumerate(series.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        points = " ".join(f"{x(m):.1f},{y(t):.1f}" for m, t in zip(rows, values) if t)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(text(_MARGIN + 10, 60 + 16 * i, name, "start", colour))
    return "\n".join(parts + ["</svg>", ""])
