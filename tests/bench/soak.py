"""Does memory stay flat? Stages of many smoke runs, then predictions: python tests/bench/soak.py

All happens in one process, as in a service or a long notebook. Memory after a warm-up is compared
with memory at the end; the exit code is 1 where it has grown by more than 5 %.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from musemo.core import Run
from musemo.demo import compose_demo
from musemo.prediction import EmotionModel
from musemo.presets import make_config
from musemo.sections import SECTIONS

MOST = 0.05  # of the memory after the warm-up


def held() -> float:
    "Measure the memory that this process holds, in MB."
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6


def make_run(folder: Path, config) -> Run:
    "Do what the twelve notebooks leave, without them."
    run = Run(folder)
    for section in SECTIONS:
        for stage in section.stages(config):
            stage.make(run, config)
    return run


def repeat(work: Callable[[int], object], times: int, warm_up: int, *, name: str) -> float:
    "Do some work many times; print the memory on the way and return its growth since the warm-up."
    begun, memory = time.process_time(), {}
    shown = {1, warm_up, *(times * i // 10 for i in range(1, 11))}
    for i in range(1, times + 1):
        work(i)
        if i in shown:
            memory[i] = held()
            spent = time.process_time() - begun
            print(f"{name:12} {i:6d} {memory[i]:8.0f} MB {spent:8.0f} s of CPU", flush=True)
    return memory[times] / memory[min(warm_up, times)] - 1


def main() -> None:
    "Repeat runs and predictions, print a table, and say whether memory stayed flat."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--predictions", type=int, default=1000)
    options = parser.parse_args()
    os.environ["MUSEMO_QUIET"] = "1"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        compose_demo(folder / "music", songs=24, seconds=6.0)
        values = {"data.path": str(folder / "music"), "data.cache": str(folder / "cache")}
        config = make_config("smoke", values)
        # Each run has another seed: nothing may be kept for the sake of another one.
        grown = {
            "runs": repeat(
                lambda i: make_run(folder / f"run {i}", config.model_copy(update={"seed": i})),
                options.runs,
                3,
                name="runs",
            )
        }
        model = EmotionModel.from_run(folder / f"run {options.runs}")
        songs = sorted((folder / "music").rglob("*.mp3"))
        grown["predictions"] = repeat(
            lambda i: model.predict(songs[i % len(songs)]),
            options.predictions,
            100,
            name="predictions",
        )
    for name, share in grown.items():
        verdict = "flat" if share <= MOST else f"MISSED: at most {MOST:.0%}"
        print(f"{name}: {share:+.1%} since the warm-up, {verdict}")
    sys.exit(any(share > MOST for share in grown.values()))


if __name__ == "__main__":
    main()
