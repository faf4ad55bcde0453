"""The bench as a picture: how far each figure is from its limit, and how costs grow."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

KEPT, MISSED, MEMORY = "#1b6ca8", "#c0392b", "#8a8a8a"


def draw_bench(rows: list[dict], growths: list[dict], path: Path) -> None:
    "Draw both, above each other, into a .png."
    limited = [row for row in rows if row["room"] is not None]
    columns = max(len(growths), 1)
    shape, heights = (2 if growths else 1, 1), (0.3 * len(limited) + 1, 3)[: 2 if growths else 1]
    size = (max(3.6 * columns, 9), sum(heights))
    figure = plt.figure(figsize=size, layout="constrained")
    top, *below = figure.subfigures(*shape, height_ratios=heights, squeeze=False)[:, 0]
    draw_rooms(top.subplots(), limited)
    for part in below:
        for panel, row in zip(part.subplots(1, columns, squeeze=False)[0], growths, strict=True):
            draw_growth(panel, row)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_rooms(panel: plt.Axes, rows: list[dict]) -> None:
    "Draw each figure over its limit, such that right of 1 is good."
    for place, row in enumerate(rows):
        ends = [_times_inside(row, row[key]) for key in ("median", "lowest", "highest")]
        color = KEPT if row["kept"] else MISSED
        panel.plot(sorted(ends[1:]), [place, place], color=color, linewidth=5, alpha=0.4)
        panel.plot(ends[0], place, "o", color=color)
        told = f" {row['median']:.3g} {row['unit']}"
        panel.annotate(told, (max(ends), place), (4, 0), textcoords="offset points", va="center")
    names = [
        f"{row['stage']}: {row['over']} {'-' if row['unit'] == 's' else '/'} {row['under']}"
        for row in rows
    ]
    panel.set_yticks(range(len(rows)), names)
    panel.invert_yaxis()
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.axvline(1, color="black", linewidth=1)
    panel.margins(x=0.15)
    panel.set_title("Figure over its limit (right of the line: kept); bars: all runs", loc="left")


def _times_inside(row: dict, figure: float) -> float:
    return row["most"] / max(figure, 1e-3) if row["least"] is None else figure / row["least"]


def draw_growth(panel: plt.Axes, row: dict) -> None:
    "Draw seconds and memory over a growing size."
    panel.plot(row["sizes"], row["cpu"], "o-", color=KEPT if row["kept"] else MISSED)
    panel.set(xlabel=row["unit"], ylabel="processor time (s)", ylim=(0, 1.15 * max(row["cpu"])))
    memory = panel.twinx()
    memory.plot(row["sizes"], row["mb"], "s--", color=MEMORY)
    memory.set_ylabel("memory (MB), dashed", color=MEMORY)
    memory.set_ylim(0, 1.15 * max(row["mb"]))
    panel.set_title(f"{row['cost']}: time n^{row['power_cpu']:.2f}", loc="left", size=10)
