"""Train and judge generators over several seeds: python tests/bench/generators.py

The songs and their split are the same for all seeds, so that the spread is that of training. By
default the demo music at the demo's size; --set changes single fields as in `musemo run`.
"""

import argparse
import importlib
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from musemo.config import Config
from musemo.core import MusemoError, Run
from musemo.data import prepare_data
from musemo.gan_quality import judge_generators
from musemo.opening import with_data
from musemo.presets import make_config
from musemo.sections import SECTIONS

RUNS = Path(__file__).resolve().parents[2] / "runs"  # composed music stays there for the next time
FITS = {stage.generator: stage.function for s in SECTIONS for stage in s.all_stages}
MEASURES = ["score", "diversity", "obedience V", "obedience A", "coverage", "within bounds"]


def train(run: Run, config: Config, name: str) -> dict:
    "Train one generator by its stage: share of rounds within the bounds, odd values, seconds."
    module, function = FITS[name].split(":")
    begun, facts = time.perf_counter(), {"within bounds": np.nan}
    try:
        history, *_ = getattr(importlib.import_module(f"musemo.{module}"), function)(run, config)
    except MusemoError as error:
        return facts | {"seconds": time.perf_counter() - begun, "stopped": str(error)}
    steps = pd.DataFrame(history["steps"], dtype=float)
    late, bounds = steps[len(steps) // 2 :], (config.gan.weak_below, config.gan.strong_above)
    if "accuracy_real" in steps:
        accuracy = late[["accuracy_real", "accuracy_fake"]].mean(axis=1)
        facts["within bounds"] = accuracy.between(*bounds).mean()
    # A penalty is measured every few steps only, and blank between them.
    values = steps[[name for name in steps if name.endswith(("loss", "norm"))]]
    facts["non-finite"] = int((~np.isfinite(values)).to_numpy().sum())
    return facts | {"steps": len(steps), "seconds": time.perf_counter() - begun}


def judge(run: Run, config: Config, trained: dict[str, dict]) -> None:
    "Add what section 6 says of each generator that was trained to the end."
    names = [name for name, facts in trained.items() if "stopped" not in facts]
    if not names:
        return
    quality = judge_generators(run, config.model_copy(update={"generators": tuple(names)})).quality
    for name in names:
        record, parts = quality["generators"][name], quality["generators"][name]["components"]
        trained[name] |= {
            "score": record["score"],
            "diversity": parts["diversity"]["value"],
            "obedience V": record["obedience"]["valence"],
            "obedience A": record["obedience"]["arousal"],
            "coverage": parts["coverage"]["value"],
        }
    real = quality["held_out"]
    beside = {"score": real["score"], "coverage": real["coverage"]}
    beside |= {f"obedience {k[0].upper()}": v for k, v in real["obedience"].items()}
    trained["real music"] = beside


def measure(config: Config, names: list[str], prepared: Run, folder: Path) -> list[dict]:
    "Train and judge the named generators with one seed, in a run folder of its own."
    run = Run(folder)
    run.folder.mkdir()
    for name in ("songs.csv", "logmel.npy"):
        run.path(name).symlink_to(prepared.path(name))
    trained = {}
    for name in names:
        trained[name] = train(run, config, name)
        print(f"seed {config.seed}: {name}, {trained[name]['seconds']:.0f} s", file=sys.stderr)
    judge(run, config, trained)
    return [{"generator": name, "seed": config.seed, **facts} for name, facts in trained.items()]


def configure(options: argparse.Namespace) -> Config:
    "Make the configuration that the options name, with its music composed."
    for text in options.set:
        if "=" not in text:
            raise MusemoError(f"--set {text!r}: must be SECTION.FIELD=VALUE")
    values = dict(text.split("=", 1) for text in options.set)
    if options.data:
        values["data.path"] = str(options.data.resolve())
    try:
        config = make_config(options.preset, {"generators": options.generators} | values)
    except ValueError as error:
        raise MusemoError(str(error)) from error
    return with_data(config, RUNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = [name for name in FITS if name]
    parser.add_argument("--generators", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--data", type=Path, help="as of `musemo run`; else the demo music")
    parser.add_argument("--preset", default="demo", help="smoke, demo, kaggle or full")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help=".csv, written anew after each seed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ.setdefault("MUSEMO_QUIET", "1")
    config, rows = configure(options), []
    with tempfile.TemporaryDirectory() as folder:
        prepared = Run(Path(folder) / "data")
        prepare_data(prepared, config)
        for seed in options.seeds:
            own = config.model_copy(update={"seed": seed})
            rows += measure(own, options.generators, prepared, Path(folder) / f"seed-{seed}")
            if options.out:
                pd.DataFrame(rows).to_csv(options.out, index=False)
    table = pd.DataFrame(rows)
    print(table.sort_values(["generator", "seed"]).to_string(index=False, float_format="%.3g"))
    means = table.groupby("generator")[[x for x in MEASURES if x in table]].agg(["mean", "std"])
    print(f"\nover {len(options.seeds)} seeds\n{means.to_string(float_format='%.3g')}")
    print(f"{torch.get_num_threads()} threads, preset {config.preset}, {' '.join(options.set)}")


if __name__ == "__main__":
    try:
        main()
    except MusemoError as error:
        sys.exit(f"{error}")
