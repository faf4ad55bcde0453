# %%
#| default_exp dataset

# %% [markdown]
# # Dataset
#
# > Windows of songs become pictures for the ViT: real and synthetic to train on, real to judge by.
#
# From the run come whole real songs with their part (train, val, test) and the generator's
# synthetic windows. Out come three loaders of pictures with their labels. Two rules hold: a song
# stays in its part, and nothing synthetic leaves the training part.
#
# Shapes: B batch, N songs, M mel bands, T frames, H = W picture side in pixels.

# %%
#| export
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from musemo.config import Config
from musemo.core import MusemoError, Run, cut_windows, load_part, rng_for, seed_for, torch_rng_for

# %%
#| hide
import tempfile
from pathlib import Path

from fastcore.test import test_close, test_eq

from musemo.presets import make_config

# %% [markdown]
# ## From a spectrogram to a picture
#
# A pretrained ViT expects squares of one size, three channels, and the normalisation of its
# pretraining. A window is squeezed to that size; antialiasing averages the frames that fall on
# one pixel, where plain interpolation would skip most of a 30 s clip. A network without a past
# takes the window as it is (`image_size` 0).

# %%
#| export
HALF = (0.5, 0.5, 0.5)  # mean and deviation of most ViT checkpoints, a channel


def to_pixels(
    windows: torch.Tensor,  # (B, M, T) log-mel in [-1, 1]
    image_size: int,  # pixels; 0: the window itself
    *,
    mean: tuple[float, ...] = HALF,  # of the pretraining's pictures in [0, 1], a channel
    std: tuple[float, ...] = HALF,
) -> torch.Tensor:  # (B, 3, H, W), or (B, 1, M, T)
    "Make pictures of windows: resize, repeat to three channels, normalise like the pretraining."
    if not image_size:
        return windows[:, None]
    square = nn.functional.interpolate(
        (windows[:, None] + 1) / 2, (image_size, image_size), mode="bilinear", antialias=True
    )  # (B, 1, H, W) in [0, 1]
    middle, scale = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (mean, std))
    return (square - middle) / scale


# %% [markdown]
# With mean and deviation .5 the picture keeps the spectrogram's own range. A click every
# fourth frame survives squeezing as its average: nothing is skipped.

# %%
clicks = torch.full((2, 16, 64), -1.0)
clicks[..., ::4] = 1.0
pixels = to_pixels(clicks, 16)
test_eq(pixels.shape, (2, 3, 16, 16))
test_close(pixels[:, :, :, 1:-1], torch.full((2, 3, 16, 14), -0.5), eps=0.1)
test_close(to_pixels(torch.full((1, 8, 8), -1.0), 8, mean=(0.4,) * 3, std=(0.2,) * 3), -2.0)
test_eq(to_pixels(clicks, 0)[:, 0], clicks)


# %% [markdown]
# ## One dataset for all three parts
#
# Training sees new windows in each epoch, judging sees the same evenly spaced ones. A key
# carries both the epoch and the item, and a window's place is drawn from the key alone: any
# number of worker processes, in any order, cuts the same windows.


# %%
#| export
@dataclass
class WindowDataset(Dataset):
    "Pictures of windows with their label and their song's place; synthetic windows have -1."

    songs: pd.DataFrame  # song_id, valence, arousal ([-1, 1]), frames
    log_mel: np.ndarray  # (N, M, T) in [-1, 1]
    config: Config
    seed: int | None = None  # draw windows anew each epoch; None: evenly spaced
    synthetic: np.ndarray | None = None  # (K, M, T) windows in [-1, 1]
    synthetic_labels: np.ndarray | None = None  # (K, 2) valence and arousal, [-1, 1]
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF

    def __post_init__(self):
        self.labels = self.songs[["valence", "arousal"]].to_numpy(np.float32, copy=True)  # (N, 2)
        self.frames = self.songs["frames"].to_numpy(int)  # (N,)
        self.real = len(self.songs) * self.config.dataset.windows_per_song

    def __len__(self) -> int:
        return self.real + (0 if self.synthetic is None else len(self.synthetic))

    def __getitem__(self, key: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        window, label, song = pick_window(self, key)
        size = self.config.dataset.image_size
        pixels = to_pixels(torch.from_numpy(window)[None], size, mean=self.mean, std=self.std)[0]
        return pixels, torch.from_numpy(label), song  # (3, H, W), (2,), -


# %% [markdown]
# Real songs come first in an epoch, each with its windows; then the synthetic windows, which
# have the right width already.


# %%
#| export
def pick_window(
    data: WindowDataset,
    key: int,  # epoch * len(data) + item
) -> tuple[np.ndarray, np.ndarray, int]:  # window (M, T), label (2,), song's place or -1
    "Cut the window of a key; the next epoch's key of a training song cuts another."
    item, options = key % len(data), {}
    if item >= data.real:
        row = item - data.real
        return data.synthetic[row].astype(np.float32), data.synthetic_labels[row], -1
    song, place = divmod(item, data.config.dataset.windows_per_song)
    if data.seed is None:
        options["per_song"] = data.config.dataset.windows_per_song
    else:
        place, options["rng"] = 0, rng_for(data.seed, "window", key)
    width = data.config.window
    one = slice(song, song + 1)
    windows, _ = cut_windows(data.log_mel[one], data.frames[one], width, **options)
    return windows[place], data.labels[song], song


# %%
squares = {"training.recipe": "spec", "dataset.image_size": 32, "dataset.windows_per_song": 3}
small = make_config("smoke", squares)
songs = pd.DataFrame({"song_id": [7, 9], "valence": [0.1, 0.2], "arousal": [0.3, 0.4]})
songs["frames"] = [200, 200]
ramp = np.tile(np.linspace(-1, 1, 200, dtype=np.float16), (2, 128, 1))  # (N, M, T)
data = WindowDataset(songs, ramp, small, seed=0)
pixels, label, song = data[4]
test_eq((len(data), tuple(pixels.shape), song), (6, (3, 32, 32), 1))
test_close(label.numpy(), [0.2, 0.4], eps=1e-6)
assert data[4][0].equal(data[4][0]) and not data[4][0].equal(data[4 + len(data)][0])


# %% [markdown]
# ## The order is an argument too
#
# The sampler shuffles with a generator made from the seed and the epoch, and counts epochs
# itself. Setting `epoch` is all that going on after a break needs. With `views` the windows come
# round again while the order stays new: what section 11 caches is looked up by key.


# %%
#| export
class EpochSampler(Sampler):
    "Shuffle the items anew each epoch; each key carries its epoch."

    def __init__(
        self,
        items: int,  # in an epoch
        seed: int,
    ):
        self.items, self.seed, self.epoch = items, seed, 0
        self.views = 0  # windows that an item shows in turn; 0: another one each epoch

    def __len__(self) -> int:
        return self.items

    def __iter__(self) -> Iterator[int]:
        rng = torch_rng_for(self.seed, "shuffle", self.epoch)
        view = self.epoch % self.views if self.views else self.epoch
        keys = view * self.items + torch.randperm(self.items, generator=rng)
        self.epoch += 1
        return iter(keys.tolist())


# %%
sampler = EpochSampler(4, seed=0)
first, second = list(sampler), list(sampler)
test_eq((sorted(first), sorted(second)), ([0, 1, 2, 3], [4, 5, 6, 7]))
test_eq(list(EpochSampler(4, seed=0)), first)
sampler.epoch, sampler.views = 0, 1
test_eq([list(sampler), list(sampler)], [first, [key - 4 for key in second]])


# %% [markdown]
# ## Synthetic songs
#
# Section 7 leaves two kinds of rows: those without an emotion are meant for training, the five
# named ones are for listening. Only the first kind is read here.


# %%
#| export
def load_synthetic(
    run: Run,
    width: int,  # frames that the ViT's windows have
) -> tuple[np.ndarray, np.ndarray]:  # windows (K, M, T), labels (K, 2) on [-1, 1]
    "Read the synthetic training windows; raises MusemoError where their width is another."
    table, windows = run.load("synthetic.csv"), run.load("synthetic.npy")
    rows = np.flatnonzero(table["emotion"].isna())
    if len(rows) and windows.shape[-1] != width:
        raise MusemoError(
            f"synthetic.npy: windows of {windows.shape[-1]} frames, the ViT sees {width}; "
            "make them again with gan.frames equal to the window (--from 5)"
        )
    labels = table.loc[rows, ["valence", "arousal"]].to_numpy(np.float32, copy=True)
    return windows[rows], labels


# %% [markdown]
# ## Three loaders
#
# Mean and deviation come from the checkpoint that the ViT starts from (section 10). Loading
# happens in the training process, or in `dataset.workers` others: the pictures are the same.


# %%
#| export
def read_datasets(run: Run, config: Config) -> dict[str, WindowDataset]:  # train, val, test
    "Read the three parts of a run; raises MusemoError where one has no songs."
    parts = {}
    for split in ("train", "val", "test"):
        songs, log_mel = load_part(run, split)
        if not len(songs):
            raise MusemoError(f"songs.csv: no songs in the {split} part; give more songs")
        options = {}
        if split == "train":
            options["seed"] = seed_for(config.seed, "dataset")
            options["synthetic"], options["synthetic_labels"] = load_synthetic(run, config.window)
        parts[split] = WindowDataset(songs, log_mel, config, **options)
    return parts


def make_loader(
    data: WindowDataset,
    config: Config,
    *,
    batch_size: int | None = None,  # None: the configuration's
) -> DataLoader:  # batches of pixels, labels, songs' places
    "Load a part: shuffled anew each epoch where it has a seed, else in order."
    return DataLoader(
        data,
        batch_size=batch_size or config.dataset.batch_size,
        sampler=EpochSampler(len(data), data.seed) if data.seed is not None else None,
        num_workers=config.dataset.workers,
        pin_memory=torch.cuda.is_available(),
        # Without one of its own, a loader draws from the generator that drives dropout.
        generator=torch_rng_for(config.seed, "loader"),
    )


def build_loaders(
    run: Run,
    config: Config,
    *,
    mean: tuple[float, ...] = HALF,  # of the pretraining's pictures, a channel
    std: tuple[float, ...] = HALF,
) -> dict[str, DataLoader]:  # train, val, test
    "Make the loaders of a run; raises MusemoError where a part has no songs."
    looks = {"mean": tuple(mean), "std": tuple(std)}
    return {
        split: make_loader(replace(data, **looks), config)
        for split, data in read_datasets(run, config).items()
    }


# %% [markdown]
# The proof on a made-up run: each song's spectrogram is one constant, its number, so every
# picture tells where it comes from. Training sees its own songs and the synthetic windows;
# validation and test see nothing but theirs.

# %%
with tempfile.TemporaryDirectory() as folder:
    fake = Run(Path(folder))
    level = np.linspace(-0.9, 0.9, 10)
    parts = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    table = pd.DataFrame({"song_id": range(10), "valence": level, "arousal": -level})
    fake.save("songs.csv", table.assign(split=parts, frames=90, row=range(10)))
    fake.save("logmel.npy", np.broadcast_to(level[:, None, None], (10, 128, 90)).astype("f2"))
    made = pd.DataFrame({"valence": [0.0] * 3, "arousal": [0.0] * 3})
    fake.save("synthetic.csv", made.assign(emotion=["", "", "neutral"]))
    fake.save("synthetic.npy", np.ones((3, 128, 64), np.float16))
    loaders = build_loaders(fake, small)
    seen = {
        split: {round(float(picture.mean()), 1) for batch in loader for picture in batch[0]}
        for split, loader in loaders.items()
    }
test_eq(seen["train"], {-0.9, -0.7, -0.5, -0.3, -0.1, 0.1, 1.0})
test_eq((seen["val"], seen["test"]), ({0.3, 0.5}, {0.7, 0.9}))
test_eq(len(loaders["train"].dataset), 6 * 3 + 2)

# %% [markdown]
# ## On the run
#
# What the ViT of this run learns from, and one batch as it sees it.

# %% tags=["parameters"]
run_folder = None  # a run's folder; None: a run at the smoke size, made on the spot

# %%
#| hide
from musemo.core import COLORS, subplots
from musemo.pipeline import open_run

run, config = open_run(run_folder, before=9)

# %%
loaders = build_loaders(run, config)
pd.DataFrame(
    {
        split: {
            "songs": len(loader.dataset.songs),
            "windows of real songs, an epoch": loader.dataset.real,
            "synthetic windows": len(loader.dataset) - loader.dataset.real,
            "batches": len(loader),
        }
        for split, loader in loaders.items()
    }
)

# %% [markdown]
# One training batch, eight windows of it: the vertical axis is frequency (low at the bottom),
# the horizontal one time, both in pixels now. Valence and arousal are the song's rating, or what
# the generator was asked for.

# %%
pixels, labels, places = next(iter(loaders["train"]))
shown = min(8, len(pixels))
figure, axes = subplots(2, 4, size=(2.2, 2.4))
limits = {"vmin": float(pixels.min()), "vmax": float(pixels.max())}
for panel in axes.flat[shown:]:
    panel.set_axis_off()
for panel, picture, label, place in zip(axes.flat, pixels, labels, places, strict=False):
    panel.imshow(picture[0], origin="lower", aspect="auto", cmap="magma", **limits)
    kind = "real" if place >= 0 else "synthetic"
    panel.set_title(f"{kind}: V {label[0]:+.2f}, A {label[1]:+.2f}", fontsize=8)
    panel.set(xticks=[], yticks=[], xlabel="time (px)", ylabel="frequency (px)")
high, wide = pixels.shape[2:]
train = loaders["train"].dataset
run.headline(
    "09_dataset",
    f"{train.real} real + {len(train) - train.real} synthetic windows an epoch, {high} x {wide} px",
    figure,
)

# %% [markdown]
# Labels of what is trained on and what judges. Where the synthetic labels lie far from the real
# ones, the ViT learns a part of the plane that no rated song is there to check.

# %%
figure, axes = subplots(1, 2, size=(4, 3), sharex=True, sharey=True)
for split, color in (("train", "real"), ("val", "third"), ("test", "model")):
    axes[0].scatter(*loaders[split].dataset.labels.T, s=10, color=COLORS[color], label=split)
axes[1].scatter(*train.labels.T, s=10, color=COLORS["real"], label="real, training")
axes[1].scatter(*train.synthetic_labels.T, s=10, marker="x", color=COLORS["model"], label="made")
for panel, title in zip(axes, ("Real songs by part", "Training part"), strict=True):
    panel.set(title=title, xlabel="valence [-1, 1]", ylabel="arousal [-1, 1]")
    panel.legend()
