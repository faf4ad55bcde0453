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
#| export augmentation
import math

import numpy as np
import torch

from musemo.config import AugmentationConfig

# %%
#| export
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from musemo.augmentation import augment_window, draw_stretch, frames_needed
from musemo.config import Config
from musemo.core import (
    MusemoError,
    Run,
    cut_windows,
    load_part,
    rng_for,
    seed_for,
    take_rows,
    torch_rng_for,
)

# %%
#| hide
import tempfile
from pathlib import Path

import librosa
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
    place = {"device": windows.device}
    middle, scale = (torch.tensor(x, **place).view(1, 3, 1, 1) for x in (mean, std))
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
test_eq(to_pixels(clicks.to("meta"), 16).device.type, "meta")  # as on a GPU


# %% [markdown]
# ## Other views of the same song
#
# A few hundred songs are soon known by heart. `augmentation` changes training windows so that
# none comes twice: it hides stretches, changes the tempo, moves the bands, mixes songs. All is off
# by default: nothing here has been shown to help on this data, and tempo and register carry
# emotion themselves, so strong changes contradict the label.
#
# SpecAugment (Park 2019) hides time and bands. What is hidden becomes the window's mean, which
# says less than silence would: silence is a sound, too.


# %%
#| export augmentation
def mask_stretches(
    window: torch.Tensor,  # (M, T)
    *,
    axis: int,  # 0: bands, 1: time
    masks: int,
    width: float,  # share of the axis, widest mask
    rng: np.random.Generator,
) -> torch.Tensor:  # (M, T)
    "Hide stretches of random place and width behind the window's mean."
    size, mean, window = window.shape[axis], window.mean(), window.clone()
    for _ in range(masks):
        wide = int(rng.integers(0, int(width * size) + 1))
        start = int(rng.integers(0, size - wide + 1))
        window.narrow(axis, start, wide).fill_(mean)
    return window


# %%
slope = torch.linspace(-1, 1, 64).repeat(16, 1)  # (M, T)
hidden = mask_stretches(slope, axis=1, masks=2, width=0.25, rng=np.random.default_rng(1))
columns = (hidden != slope).any(dim=0)
assert 0 < columns.sum() <= 32 and hidden[:, columns].abs().max() < 1e-6
test_eq(mask_stretches(slope, axis=0, masks=0, width=0.25, rng=None), slope)


# %% [markdown]
# A tempo: frame t of the result is frame t / factor of the sound, between two frames a mixture.
# Pitch stays, as bands do not move. Sound that is to be faster needs more of it, so a wider
# window is cut; where a song has no more, it is not made faster than that. No frame is invented.


# %%
#| export augmentation
def draw_stretch(
    stretch: float,  # share, faster or slower by at most this
    *,
    width: int,  # frames that are wanted
    frames: int,  # frames that there are
    rng: np.random.Generator,
) -> float:  # 2: twice as long
    "Draw a factor, as often above 1 as below, that the sound is long enough for."
    factor = (1 + stretch) ** rng.uniform(-1, 1)
    return max(factor, min(1.0, (width - 1) / max(frames - 1, 1)))


def frames_needed(width: int, factor: float) -> int:
    "Count the frames that become `width` of them."
    return math.ceil((width - 1) / factor - 1e-6) + 1


def stretch_time(
    window: torch.Tensor,  # (M, W), W >= frames_needed(width, factor)
    *,
    factor: float,  # 2: twice as long
    width: int,  # frames of the result
) -> torch.Tensor:  # (M, width)
    "Change the tempo by interpolating frames."
    places = (torch.arange(width) / factor).clamp(max=window.shape[1] - 1)
    before = places.long()
    after = (before + 1).clamp(max=window.shape[1] - 1)
    return torch.lerp(window[:, before], window[:, after], places - before)


# %% [markdown]
# A pulse every 8 frames comes every 16 at factor 2, and there is the way back. Between frames a
# straight line is exact, so a slope stays one.

# %%
pulse = torch.full((16, 33), -1.0)
pulse[:, ::8] = 1.0
slower = stretch_time(pulse, factor=2, width=65)
test_eq((slower[0] == 1).nonzero().flatten().tolist(), [0, 16, 32, 48, 64])
test_eq(stretch_time(slower, factor=0.5, width=33), pulse)
test_close(stretch_time(slope, factor=1.3, width=64)[0].diff(), 2 / 63 / 1.3, eps=1e-5)
test_eq((frames_needed(65, 2), frames_needed(33, 0.5), frames_needed(64, 1)), (33, 65, 64))
rng = np.random.default_rng(0)
test_eq(draw_stretch(0.0, width=64, frames=200, rng=rng), 1.0)
draws = [draw_stretch(1.0, width=64, frames=64, rng=rng) for _ in range(20)]
test_eq(min(draws), 1.0)


# %% [markdown]
# A pitch: all bands move up or down. On mel bands that is right above 1 kHz, where they are
# evenly spaced in pitch; below, they are evenly spaced in hertz, so low notes move further than
# high ones, and overtones leave their places. A band that has nothing to move in keeps the
# edge's sound. Small shifts only: formants move along.


# %%
#| export augmentation
def shift_bands(
    window: torch.Tensor,  # (M, T)
    bands: int,  # up; below 0: down
) -> torch.Tensor:  # (M, T)
    "Move all mel bands, roughly a change of pitch; the edge band fills what is left."
    count = window.shape[0]
    return window[(torch.arange(count) - bands).clamp(0, count - 1)]


# %%
note = torch.full((16, 8), -1.0)
note[5] = 0.5
test_eq(shift_bands(note, 3)[8], note[5])
test_eq(shift_bands(shift_bands(note, 3), -3), note)
test_eq(shift_bands(note, 0), note)
edges = make_config("full").audio
hertz = librosa.mel_frequencies(edges.n_mels, fmin=edges.f_min, fmax=edges.f_max)
semitones = 12 * np.log2(hertz[1:] / hertz[:-1])
print(f"one band at 100 Hz: {semitones[np.searchsorted(hertz, 100)]:.1f} semitones")
print(f"one band at 1 kHz and above: {semitones[hertz[:-1] > 1000].mean():.2f} semitones")


# %% [markdown]
# One window's changes, drawn in a fixed order.


# %%
#| export augmentation
def augment_window(
    window: torch.Tensor,  # (M, W)
    settings: AugmentationConfig,
    *,
    factor: float,  # of its length, from draw_stretch
    width: int,  # frames of the result
    rng: np.random.Generator,
) -> torch.Tensor:  # (M, width)
    "Change a training window: tempo, pitch, then masks."
    window = stretch_time(window, factor=factor, width=width)
    window = shift_bands(window, int(rng.integers(-settings.shift, settings.shift + 1)))
    masks = {0: (settings.band_masks, settings.band_width)}
    masks[1] = (settings.time_masks, settings.time_width)
    for axis, (count, widest) in masks.items():
        window = mask_stretches(window, axis=axis, masks=count, width=widest, rng=rng)
    return window


# %%
strong = {"time_masks": 2, "band_masks": 2, "stretch": 0.3, "shift": 3}
strong = {f"augmentation.{name}": value for name, value in strong.items()}
mild, strong = (make_config("smoke", values).augmentation for values in ({}, strong))
test_eq((mild.changes_windows, strong.changes_windows), (False, True))
views = [
    augment_window(slope, which, factor=1, width=64, rng=np.random.default_rng(seed))
    for which, seed in ((mild, 0), (strong, 0), (strong, 0), (strong, 1))
]
test_eq((views[0], views[1]), (slope, views[2]))
assert views[1].shape == slope.shape and views[1].abs().max() <= 1
assert not views[1].equal(views[3])


# %% [markdown]
# Mixup (Zhang 2018) averages two songs and their labels, by a share that is mostly near 0 or 1
# for a small alpha. Labels mix with what they belong to, so this happens in the training step:
# section 11 mixes pictures or, where frozen blocks are cached, the tokens at the cut (Verma
# 2019), so mixtures are new in each epoch though tokens are not.


# %%
#| export augmentation
def mix_batch(
    inputs: torch.Tensor,  # (B, ...) pictures, or tokens
    labels: torch.Tensor,  # (B, 2)
    *,
    alpha: float,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    "Mix a batch with itself in another order, and its labels alike."
    share, order = rng.beta(alpha, alpha), torch.from_numpy(rng.permutation(len(inputs)))
    return tuple(share * x.float() + (1 - share) * x[order].float() for x in (inputs, labels))


# %%
levels = torch.tensor([[-0.8, 0.1], [0.2, 0.3], [0.6, -0.5]])
pictures = levels[:, :1, None].expand(-1, 4, 6)
mixed, told = mix_batch(pictures, levels, alpha=0.4, rng=np.random.default_rng(0))
test_close(mixed[:, 0, 0], told[:, 0], eps=1e-6)
test_close(told.mean(0), levels.mean(0), eps=1e-6)
assert not told.equal(levels)


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
    augmented: bool = True  # change windows as the configuration says, where they are drawn anew

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
# have the right width already. Only where windows are drawn anew are they changed; what judges
# is never.


# %%
#| export
def pick_window(
    data: WindowDataset,
    key: int,  # epoch * len(data) + item
) -> tuple[np.ndarray, np.ndarray, int]:  # window (M, T), label (2,), song's place or -1
    "Cut the window of a key; the next epoch's key of a training song cuts another."
    item, width = key % len(data), data.config.window
    per_song = data.config.dataset.windows_per_song
    song, place = divmod(item, per_song)
    if item < data.real:
        label, one = data.labels[song], slice(song, song + 1)
        sound, frames = data.log_mel[one], data.frames[one]
    else:
        song, row, per_song, place = -1, item - data.real, 1, 0
        label, sound = data.synthetic_labels[row], data.synthetic[row : row + 1]
        frames = np.array([sound.shape[2]])
    if data.seed is None:
        windows, _ = cut_windows(sound, frames, width, per_song=per_song)
        return windows[place], label, song
    return draw_window(data, key, sound, frames), label, song


def draw_window(data: WindowDataset, key: int, sound: np.ndarray, frames: np.ndarray) -> np.ndarray:
    "Draw a training window (M, T) of one song (1, M, T), changed where that is asked for."
    settings, width = data.config.augmentation, data.config.window
    cut = rng_for(data.seed, "window", key)
    if not (data.augmented and settings.changes_windows):
        return cut_windows(sound, frames, width, rng=cut)[0][0]
    rng = rng_for(data.seed, "augmentation", key)
    factor = draw_stretch(settings.stretch, width=width, frames=int(frames[0]), rng=rng)
    wide, _ = cut_windows(sound, frames, frames_needed(width, factor), rng=cut)
    window = torch.from_numpy(wide[0])
    return augment_window(window, settings, factor=factor, width=width, rng=rng).numpy()


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
# itself, so the windows of any epoch can be had again. With `views` the windows come round again
# while the order stays new: what section 11 caches is looked up by key.


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
            "make them again (--from 7)"
        )
    labels = table.loc[rows, ["valence", "arousal"]].to_numpy(np.float32, copy=True)
    return take_rows(windows, rows), labels


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
from musemo.audio import invert_log_mel, keep_from_clipping
from musemo.core import COLORS, subplots
from musemo.listening import card, lay_out, spectrogram_png
from musemo.opening import open_run

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
learnt = loaders["train"].dataset
run.headline(
    "09_dataset",
    f"{learnt.real} real + {len(learnt) - learnt.real} synthetic windows an epoch, "
    f"{high} x {wide} px",
    figure,
)

# %% [markdown]
# One training song under each of the changes that `augmentation` offers, stronger than one would
# choose, so that they can be seen and heard. The first is the window as it is. Would people rate
# the others alike? A change that they would not hear past teaches a wrong label.

# %%
data, rng = loaders["train"].dataset, np.random.default_rng(0)
width = config.window
one, other = (
    torch.from_numpy(cut_windows(data.log_mel[i : i + 1], data.frames[i : i + 1], width)[0][0])
    for i in (0, 1)
)
shown = {
    "as it is": one,
    "time masks": mask_stretches(one, axis=1, masks=2, width=0.2, rng=rng),
    "band masks": mask_stretches(one, axis=0, masks=2, width=0.2, rng=rng),
    "twice as slow": stretch_time(one, factor=2, width=width),
    "10 bands higher": shift_bands(one, 10),
    "mixed with another song": mix_batch(
        torch.stack([one, other]), torch.zeros(2, 2), alpha=100, rng=np.random.default_rng(3)
    )[0][0],
}
changed, audio = np.stack([x.numpy() for x in shown.values()]), config.audio
sounds, _ = keep_from_clipping(invert_log_mel(changed, config, seed=config.seed))
lay_out(
    [
        card(title, spectrogram_png(x, audio), sound, audio, seconds=config.inversion.page_seconds)
        for title, x, sound in zip(shown, changed, sounds, strict=True)
    ]
)

# %% [markdown]
# Labels of what is trained on and what judges. Where the synthetic labels lie far from the real
# ones, the ViT learns a part of the plane that no rated song is there to check.

# %%
figure, axes = subplots(1, 2, size=(4, 3), sharex=True, sharey=True)
for split, color in (("train", "real"), ("val", "third"), ("test", "model")):
    axes[0].scatter(*loaders[split].dataset.labels.T, s=10, color=COLORS[color], label=split)
axes[1].scatter(*learnt.labels.T, s=10, color=COLORS["real"], label="real, training")
axes[1].scatter(*learnt.synthetic_labels.T, s=10, marker="x", color=COLORS["model"], label="made")
for panel, title in zip(axes, ("Real songs by part", "Training part"), strict=True):
    panel.set(title=title, xlabel="valence [-1, 1]", ylabel="arousal [-1, 1]")
    panel.legend()
