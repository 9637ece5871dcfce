"""Tables and the plot of what link.py measured. Pure: the same figures give the same bytes."""
import math
import re
import statistics

FIXED = (4, 8, 16)
FIXED_MODES = tuple(f"draft {n}" for n in FIXED)
MODES = ["split", *FIXED_MODES, "draft", "auto"]
GOVERNED = ("draft", "auto")


def name_of(kind, delay, rate, stall):
    link = f"{delay:g} ms, {f'{rate:g} Mbit/s' if rate else 'unlimited'}{', stalls' if stall else ''}"
    return link if kind == "grid" else f"{kind}, {link}"


def speeds(cell, mode):
    return [r["tokens"] * 1e3 / r["decode_ms"] for r in cell["modes"][mode]]


def speed(cell, mode):
    return statistics.median(speeds(cell, mode))


def best_mode(cell):
    return max((m for m in MODES if m != "auto"), key=lambda m: speed(cell, m))


def auto_ratio(cell):
    """Of auto to the best other mode, run by run: median, least, most; both answered the same question."""
    best = best_mode(cell)
    ratios = sorted(a / b for a, b in zip(speeds(cell, "auto"), speeds(cell, best)))
    return statistics.median(ratios), ratios[0], ratios[-1]


def mean_draft(cell, mode):
    runs = cell["modes"][mode]
    return sum(r["drafted"] for r in runs) / max(1, sum(r["passes"] for r in runs))


def acceptance(cell, mode):
    right, wrong = (sum(r[k] for r in cell["modes"][mode]) for k in ("accepted", "wrong_passes"))
    return right / max(1, right + wrong)


def bound(cell, n):
    """Tokens a second of (1-a^(n+1))/(1-a) tokens in T_verify + n * t_draft, as `causeway plan` timed these, and half of the
    last run of an answer is not needed."""
    passes = (cell["plan"]["measured"] or {}).get("passes", {})
    if str(n + 1) not in passes:
        return None
    a, t_draft = acceptance(cell, f"draft {n}"), cell["plan"]["measured"]["fallback_us"]
    tokens = (1 - a ** (n + 1)) / (1 - a) if a < 1 else n + 1
    length = cell["plan"]["told"]["answer"]
    tokens = length / max(1, length / tokens + (1 - 1 / tokens) / 2)
    return tokens * 1e6 / (passes[str(n + 1)] + n * t_draft)


def table(head, rows):
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *["| " + " | ".join(r) + " |" for r in rows]])


def order(name):
    """The grid by rate and delay, thinner links later; then stalls; then the rest."""
    number = r"(\d+\.?\d*(?:e[+-]?\d+)?)"
    found = re.fullmatch(number + rf" ms, (unlimited|{number} Mbit/s)(, stalls)?", name)
    if not found:
        return 2, 0, 0, name
    delay, _, rate, stalls = found.groups()
    return int(bool(stalls)), -float(rate) if rate else -math.inf, float(delay), name


def speed_row(name, c):
    mid, low, high = auto_ratio(c)
    return [name, *[f"{speed(c, m):.3g}" if speed(c, m) < 100 else f"{speed(c, m):.0f}" for m in MODES], f"{mean_draft(c, 'auto'):.1f}",
            f"{mid:.2f} ({low:.2f}-{high:.2f})", f"{max(speed(c, m) for m in MODES) / speed(c, 'split'):.1f}", f"{c['accept']:.3f}",
            f"{c['late_us']:.0f} us{'' if c['same'] else ' TEXTS DIFFER'}"]


def plan_row(name, c):
    row = [name]
    for p in (c["plan"]["told"], c["plan"]["measured"]):
        row += [f"{p[m] / speed(c, m):.2f}" if p else "-" for m in ("split", *FIXED_MODES)]
        row.append(f"{p['draft'] / max(speed(c, m) for m in MODES if m != 'split'):.2f} ({p['n']})" if p else "-")
    split = c["modes"]["split"]
    bytes_of_token = sum(r["wire_bytes"] for r in split) / sum(r["tokens"] for r in split)
    row.append(f"{c['plan']['told']['bytes']['split'] / bytes_of_token:.2f}")
    return row + [f"{speed(c, m) / b:.2f}" if (b := bound(c, n)) else "-" for n, m in zip(FIXED, FIXED_MODES)]


def tables(data):
    cells = [(name, data["cells"][name]) for name in sorted(data["cells"], key=order)]
    return "\n\n".join([
        table(["link", *MODES, "guesses a pass of auto", "auto / best", "best / split", "a", "proxy late"], [speed_row(*x) for x in cells]),
        table(["plan / measured", *[f"told: {m}" for m in ("split", *FIXED_MODES, "best (n)")],
               *[f"through: {m}" for m in ("split", *FIXED_MODES, "best (n)")], "bytes a token of split", *[f"{m} / bound" for m in FIXED_MODES]],
              [plan_row(*x) for x in cells])])


COLOURS = {"split": "#999999", "draft 4": "#9ecae1", "draft 8": "#4292c6", "draft 16": "#08519c", "draft": "#31a354", "auto": "#d94801"}
WIDTH, HEIGHT, LEFT, TOP, GAP = 300, 240, 62, 46, 26


def panel(cells, title, suffix, x0, delays, low, high):
    """One panel: tokens a second (log) against the round trip (steps), a line for each mode."""
    def x(i):
        return x0 + LEFT + i * (WIDTH - LEFT) / (len(delays) - 1)

    def y(v):
        return TOP + HEIGHT * (math.log(high) - math.log(v)) / (math.log(high) - math.log(low))
    out = [f'<text x="{x0 + LEFT}" y="{TOP - 10}" class="t">{title}</text>']
    step = low
    while step <= high * 1.0001:
        for v in (step, 2 * step, 5 * step):
            if v <= high * 1.0001:
                out.append(f'<line x1="{x0 + LEFT}" x2="{x0 + WIDTH}" y1="{y(v):.1f}" y2="{y(v):.1f}" class="g"/>'
                           f'<text x="{x0 + LEFT - 6}" y="{y(v) + 4:.1f}" class="r">{v:g}</text>')
        step *= 10
    for i, d in enumerate(delays):
        out.append(f'<text x="{x(i):.1f}" y="{TOP + HEIGHT + 18}" class="m">{d:g} ms</text>')
    for mode in MODES:
        points = [(x(i), y(speed(cells[f"{d:g} ms, {suffix}"], mode))) for i, d in enumerate(delays) if f"{d:g} ms, {suffix}" in cells]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        wide = ' stroke-width="2.5" stroke-dasharray="6 3"' if mode == "auto" else ' stroke-width="1.5"'
        out.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[mode]}"{wide}/>')
        out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5" fill="{COLOURS[mode]}"/>' for a, b in points]
    return out


def svg(data):
    cells = {k: c for k, c in data["cells"].items() if not k.startswith(("tasks", "stories"))}
    delays = sorted({float(k.split(" ms")[0]) for k in cells})
    panels = [("no limit", "unlimited"), ("100 Mbit/s", "100 Mbit/s"), ("10 Mbit/s", "10 Mbit/s"), ("1 % stalls of 200 ms", "unlimited, stalls")]
    panels = [p for p in panels if any(k.endswith(", " + p[1]) for k in cells)]
    values = [speed(c, m) for c in cells.values() for m in MODES]
    low, high = 10 ** math.floor(math.log10(min(values))), max(values) * 1.05
    width = len(panels) * (WIDTH + GAP) + 10
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{TOP + HEIGHT + 64}" font-family="sans-serif" font-size="11">',
           "<style>.g{stroke:#dddddd}.t{font-size:13px;font-weight:bold}.r{text-anchor:end;fill:#555555}.m{text-anchor:middle;fill:#555555}</style>",
           f'<rect width="{width}" height="{TOP + HEIGHT + 64}" fill="#ffffff"/>',
           '<text x="8" y="16">tokens a second by round trip (log scale)</text>']
    for i, (title, suffix) in enumerate(panels):
        out += panel(cells, title, suffix, i * (WIDTH + GAP), delays, low, high)
    for i, mode in enumerate(MODES):
        at = LEFT + i * 110
        out.append(f'<rect x="{at}" y="{TOP + HEIGHT + 36}" width="18" height="4" fill="{COLOURS[mode]}"/>'
                   f'<text x="{at + 24}" y="{TOP + HEIGHT + 42}">{mode}</text>')
    return "\n".join([*out, "</svg>", ""])
