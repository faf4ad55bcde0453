"""Measure musemo beside the usual way, stage by stage: python -m tests.bench.bench

Each way works in a process of its own, one after the other, so that all meet the same machine.
Prints a table, leaves bench.json and bench.png in --out, and exits with 1 where a stage is below
its floor, a cost grows faster than its input, or the two ways disagree.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np

from musemo.peak_memory import watch_memory
from tests.bench.picture import draw_bench
from tests.bench.stages import GROWTHS, STAGES, Growth, Stage, faults, judge, judge_growth
from tests.bench.work import Work, check_copies, real_clips

ROOT = Path(__file__).resolve().parents[2]
CLIPS = ROOT.parent / "shared/data/deam/DEAM_audio/MEMD_audio"
NAMES = [stage.name for stage in (*STAGES, *GROWTHS)]


def run_way(way: str, options: argparse.Namespace, *, size: int = 0) -> dict:
    "Do one way once: seconds, processor seconds, MB, result."
    work = {"shared": str(options.out / "shared"), "clips": str(options.clips)}
    work |= {"quick": options.quick, "size": size}
    with tempfile.TemporaryDirectory(dir=options.out) as folder, watch_memory(0.05) as memory:
        command = [sys.executable, "-m", "tests.bench.way", way, folder, json.dumps(work)]
        quiet = os.environ | {"MUSEMO_QUIET": "1"}
        done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{way} failed:\n{done.stderr[-3000:]}")
        facts = json.loads(done.stdout.splitlines()[-1])
        facts["result"] = np.load(f"{folder}/result.npy")
    # A short peak is seen from inside alone, the processes of a way together from outside alone.
    facts["mb"] = max(facts["mb"], memory["peak"])
    told = f"{facts['seconds']:.1f} s, {facts['cpu']:.1f} CPU s, {facts['mb']:.0f} MB"
    print(f"  {way}{f' {size}' if size else ''}: {told}", file=sys.stderr)
    return facts


def measure(stage: Stage, options: argparse.Namespace) -> list[dict]:
    "Run all ways of a stage, interleaved; each goes first in turn."
    runs = []
    for run in range(options.runs):
        print(f"{stage.name}, run {run + 1}", file=sys.stderr)
        ways = list(stage.ways.items())
        ways = ways[run % len(ways) :] + ways[: run % len(ways)]
        runs.append({name: run_way(way, options) for name, way in ways})
    return judge(stage, runs)


def measure_growth(growth: Growth, options: argparse.Namespace) -> dict:
    "Run a growing cost at each size, interleaved."
    if options.quick:
        sizes = [size // 10 for size in growth.sizes] if growth.name != "frames" else growth.sizes
        growth = replace(growth, sizes=tuple(sizes))
    runs = []
    for run in range(options.runs):
        print(f"{growth.name}, run {run + 1}", file=sys.stderr)
        runs.append({size: run_way(growth.way, options, size=size) for size in growth.sizes})
    return judge_growth(growth, runs)


def chosen(parts: tuple, options: argparse.Namespace) -> Iterator:
    "Go through what was asked for and can be measured here."
    for part in parts:
        if options.only and part.name not in options.only:
            continue
        if part.clips and not real_clips(options.clips):
            options.skipped.append(part.name)
            print(f"{part.name}: skipped, no .mp3 in {options.clips}; name a folder with --clips")
            continue
        yield part


def limit(row: dict) -> str:
    "Say a row's limit."
    for word, bound in (("at least", row["least"]), ("at most", row["most"])):
        if bound is not None:
            return f"{word} {bound:g} {row['unit']}"
    return "-"


def table(rows: list[dict], growths: list[dict]) -> str:
    "Lay out what was measured, a line for each limit."
    lines = [("stage", "figure", "median", "spread", "by CPU", "limit", "room", "MB", "results")]
    for row in rows:
        room = "-" if row["room"] is None else f"{row['room']:+.0%}"
        sign = "-" if row["unit"] == "s" else "/"
        same = f"{row['difference']:.1g} of {row['tolerance']:g} {row['of']}"
        lines.append(
            (
                row["stage"],
                f"{row['over']} {sign} {row['under']}",
                f"{row['median']:.3g} {row['unit']}",
                f"{row['lowest']:.3g} .. {row['highest']:.3g}",
                f"{row['cpu']:.3g}",
                limit(row),
                room if row["kept"] else f"{room} MISSED",
                " / ".join(f"{mb:.0f}" for mb in row["mb"].values()),
                same if row["same"] else f"{same} DIFFER",
            )
        )
    lines += [("", *[""] * 8)] if growths else []
    for row in growths:
        first, last = row["sizes"][0], row["sizes"][-1]
        seconds = f"{row['cpu'][0]:.3g} -> {row['cpu'][-1]:.3g} CPU s"
        powers = f"time n^{row['power_cpu']:.2f}, memory n^{row['power_mb']:.2f}"
        most = f"n^1.1, {row['most_mb']:.0f} MB"
        mb = f"{row['mb'][0]:.0f} -> {row['mb'][-1]:.0f}"
        kept = "" if row["kept"] else "MISSED"
        lines.append((row["cost"], f"{first} -> {last}", seconds, powers, "", most, kept, mb, ""))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    laid = ["  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(line.rstrip() for line in laid)


def machine() -> dict:
    "Say what the figures were measured on."
    names = ("torch", "librosa", "numpy", "scipy")
    versions = {name: metadata.version(name) for name in names}
    return {"cores": os.cpu_count(), "processor": platform.machine(), "versions": versions}


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    "Read the command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="times that each way is measured")
    parser.add_argument("--only", nargs="+", choices=NAMES, help="stages")
    parser.add_argument("--clips", type=Path, default=CLIPS, help="folder of .mp3 files")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/bench", help="folder")
    parser.add_argument("--quick", action="store_true", help="one run of small sizes, for trying")
    options = parser.parse_args(arguments)
    options.runs = 1 if options.quick else options.runs
    options.out, options.clips = options.out.resolve(), options.clips.resolve()
    options.skipped = []
    return options


def main(arguments: list[str] | None = None) -> None:
    options = read_options(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if real_clips(options.clips):
        check_copies(Work(options.out, str(options.out / "shared"), str(options.clips)))
    rows, growths = [], []
    for stage in chosen(STAGES, options):
        rows += measure(stage, options)
    for growth in chosen(GROWTHS, options):
        growths.append(measure_growth(growth, options))
    print(table(rows, growths))
    found = faults(rows, growths)
    record = {"runs": options.runs, "quick": options.quick, "machine": machine()}
    record |= {"stages": rows, "growth": growths, "skipped": options.skipped, "missed": found}
    units = {
        "median": "see unit",
        "mb": "MB, libraries included",
        "cpu": "x; s of a growing cost",
        "room": "share",
    }
    record["units"] = units
    (options.out / "bench.json").write_text(json.dumps(record, indent=1, allow_nan=False))
    draw_bench(rows, growths, options.out / "bench.png")
    shutil.rmtree(options.out / "shared/clips", ignore_errors=True)
    if found:
        sys.exit("missed: " + "\n        ".join(found))


if __name__ == "__main__":
    main()
