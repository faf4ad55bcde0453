"""Time the unfreezing schedule with and without the cache: python tests/bench/vit_schedule.py

A ViT-B/16 with random weights learns made-up songs. Each run trains with the cache, without it,
and without freezing, one after the other, so that all meet the same machine.
"""

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import ViTConfig, ViTModel

from musemo.config import Config
from musemo.core import MusemoError, seed_for
from musemo.dataset import EpochSampler
from musemo.presets import make_config
from musemo.vit import EmotionViT, start_at_mean
from musemo.vit_training import schedule_phases, train_vit

WAYS = {
    "cached": {},
    "plain": {"training.cache": False},
    "unfrozen": {"training.unfreeze": [[1, 64]]},
}


class Songs(TensorDataset):
    "Random pictures with random labels."

    def __init__(self, items: int, side: int, seed: int):
        rng = torch.Generator().manual_seed(seed)
        pixels = torch.rand(items, 3, side, side, generator=rng) * 2 - 1
        labels = torch.rand(items, 2, generator=rng) * 2 - 1
        super().__init__(pixels, labels, torch.arange(items))
        self.labels = labels.numpy()

    def __getitem__(self, key: int):
        return super().__getitem__(key % len(self))  # the same picture in each epoch


def make_loaders(options: argparse.Namespace) -> dict[str, DataLoader]:
    "Make loaders of made-up songs that shuffle like section 9's."
    loaders = {}
    for part, items in (("train", options.songs), ("val", options.judged)):
        seed = seed_for(0, part)
        songs = Songs(items, ViTConfig().image_size, seed)
        loaders[part] = DataLoader(
            songs,
            batch_size=options.batch,
            sampler=EpochSampler(items, seed) if part == "train" else None,
            generator=torch.Generator(),
        )
    return loaders


def prepare(way: str, options: argparse.Namespace) -> tuple[EmotionViT, dict, Config]:
    "Make a network, its songs and the settings of a way."
    epochs = options.unfrozen_epochs if way == "unfrozen" else options.epochs
    settings = {"training.epochs": epochs, "training.patience": epochs, "device": "cpu"}
    settings |= {"training.cache_mb": options.cache_mb, "training.unfreeze": options.unfreeze}
    config = make_config("full", settings | WAYS[way])
    torch.manual_seed(0)
    model = EmotionViT(ViTModel(ViTConfig(), add_pooling_layer=False))
    loaders = make_loaders(options)
    start_at_mean(model, torch.from_numpy(loaders["train"].dataset.labels))
    return model, loaders, config


def schedule_job(way: str, *, quick: bool) -> Callable[[], list[float]]:
    "Prepare a training for the bench, which times it; it returns the validation losses."
    sizes = ["--songs=4", "--judged=2", "--batch=2"] if quick else []
    model, loaders, config = prepare(way, read_options(sizes))
    return lambda: [row["val_loss"] for row in train_vit(model, loaders, config)[0]]


def measure(way: str, options: argparse.Namespace) -> list[dict]:
    "Train once: seconds of each epoch, with what it reached."
    model, loaders, config = prepare(way, options)
    marks = [(time.perf_counter(), time.process_time())]

    def mark(row: dict) -> None:
        marks.append((time.perf_counter(), time.process_time()))

    history, _ = train_vit(model, loaders, config, on_epoch=mark)
    spent = np.diff(marks, axis=0)
    return [
        {"way": way, "epoch": row["epoch"], "s": wall, "CPU s": cpu, "val_loss": row["val_loss"]}
        for row, (wall, cpu) in zip(history, spent, strict=True)
    ]


def compare(table: pd.DataFrame, unit: str, options: argparse.Namespace) -> dict[str, float]:
    "Set one run's ways against each other: how many times longer they take than the cached one."
    seconds = table.pivot(index="epoch", columns="way", values=unit)
    settings = {"training.epochs": options.epochs, "training.unfreeze": options.unfreeze}
    phases = schedule_phases(make_config("full", settings).training)
    firsts = [first for first, *_ in phases] + [options.epochs + 1]
    sums = seconds.sum()
    unfrozen = seconds["unfrozen"].dropna().mean() * options.epochs
    facts = {
        f"cached ({unit})": sums["cached"],
        f"plain ({unit})": sums["plain"],
        f"unfrozen ({unit}, from {options.unfrozen_epochs} epochs)": unfrozen,
        f"plain / cached ({unit})": sums["plain"] / sums["cached"],
        f"unfrozen / cached ({unit})": unfrozen / sums["cached"],
    }
    for (first, _, blocks), after in zip(phases, firsts[1:], strict=True):
        part = seconds.loc[first : after - 1]
        for name, rows in (("", part), (", after its first epoch", part.iloc[1:])):
            ratio = rows["plain"].sum() / rows["cached"].sum() if len(rows) else np.nan
            facts[f"plain / cached ({unit}), {blocks} blocks{name}"] = ratio
    return facts


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    "Read options, of the command line by default."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="times that each way is measured")
    parser.add_argument("--songs", type=int, default=32, help="to learn, one window each")
    parser.add_argument("--judged", type=int, default=8, help="songs, once an epoch")
    parser.add_argument("--batch", type=int, default=16, help="windows")
    parser.add_argument("--epochs", type=int, default=24, help="of the schedule")
    parser.add_argument("--unfreeze", default="[[8, 1], [12, 2], [16, 3]]", help="as in training")
    parser.add_argument("--unfrozen-epochs", type=int, default=2, help="measured; all cost alike")
    parser.add_argument("--cache-mb", type=float, default=1000, help="MB; 0: on disk")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args(arguments)


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    model = EmotionViT(ViTModel(ViTConfig(), add_pooling_layer=False))
    model(torch.zeros(1, 3, 224, 224)).sum().backward()  # the first one pays for the libraries
    del model
    rows = []
    for run in range(options.runs):
        table = []
        for way in list(WAYS)[:: 1 if run % 2 else -1]:  # each goes first in turn
            table += measure(way, options)
            print(f"run {run + 1}, {way}", file=sys.stderr)
        table = pd.DataFrame(table)
        rows.append(compare(table, "s", options) | compare(table, "CPU s", options))
        losses = table.pivot(index="epoch", columns="way", values="val_loss")
        far = (losses["plain"] - losses["cached"]).abs().max()
        rows[-1]["largest difference of validation loss"] = far
    table = pd.DataFrame(rows).T
    table.columns = [f"run {run + 1}" for run in range(options.runs)]
    print(table.assign(median=table.median(axis=1)).to_string(float_format="%.4g"))
    print(
        f"{options.songs} + {options.judged} songs, {options.epochs} epochs, "
        f"{torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    try:
        main()
    except MusemoError as error:
        sys.exit(f"{error}")
