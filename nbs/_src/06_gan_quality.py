# %%
#| default_exp gan_quality

# %% [markdown]
# # Generator quality
#
# > How near generated windows come to real music: distances, a 0-100 score, and what it hides.
#
# Windows go in, generated and real; numbers come out, each beside a floor (noise) and a ceiling
# (real training songs). Every judgement is made against songs that the generator never saw.
#
# Shapes: n windows, M mel bands, T frames, D features, P patches of a window.

# %%
#| export distance
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from musemo.config import AudioConfig
from musemo.core import MusemoError

# %%
#| export
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from musemo.config import Config
from musemo.core import MusemoError, Run, cut_windows, load_part, progress, rng_for

# %%
#| export quality_plots
import librosa
import matplotlib.pyplot as plt
import numpy as np

from musemo.config import AudioConfig, Config
from musemo.core import COLORS, plot_log_mel, subplots

# %%
#| hide
from fastcore.test import test_close, test_eq, test_fail
from scipy import linalg


# %% [markdown]
# ## Sets that can be judged
#
# A NaN, an empty set or two shapes give no distance. They are refused before any is computed.


# %%
#| export distance
def check_windows(
    windows: np.ndarray,  # (n, M, T) in [-1, 1]
    like: np.ndarray | None = None,  # windows of the shape that these must have
) -> np.ndarray:  # float32
    "Refuse a set that cannot be judged; raises MusemoError."
    windows = np.asarray(windows, dtype=np.float32)
    if windows.ndim != 3 or len(windows) < 2:
        raise MusemoError(f"windows of shape {windows.shape}: needed is (n, M, T) with n >= 2")
    if like is not None and windows.shape[1:] != like.shape[1:]:
        raise MusemoError(
            f"windows of {windows.shape[1:]} (bands, frames) against {like.shape[1:]}: "
            "both sets must have one shape; run section 5 again"
        )
    if not np.isfinite(windows).all():
        bad = int((~np.isfinite(windows).all((1, 2))).sum())
        raise MusemoError(f"{bad} of {len(windows)} windows hold NaN or infinity: none may")
    return windows


# %%
test_fail(lambda: check_windows(np.zeros((1, 4, 4))), contains="n >= 2")
test_fail(lambda: check_windows(np.full((3, 4, 4), np.nan)), contains="3 of 3 windows hold NaN")
test_fail(lambda: check_windows(np.zeros((2, 4, 4)), np.zeros((2, 4, 5))), contains="one shape")


# %% [markdown]
# ## Frechet distance without a covariance
#
# The textbook asks for the square root of a D x D matrix: 219 GB for a whole clip. Its trace is
# the sum of the singular values of the n x m products between the centred samples, so we
# never leave the small side.


# %%
#| export distance
def _fewer_rows(x):
    "Find D rows with the same x.T @ x, (n, D) -> (D, D)."
    values, vectors = np.linalg.eigh(x.T @ x)
    return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T


def frechet_distance(
    a: np.ndarray,  # (n, D)
    b: np.ndarray,  # (m, D)
    *,
    chunk: int = 8192,  # features at a time: bounds memory
) -> float:  # squared distance, in the features' unit squared; 0: same mean and covariance
    "Compute the Frechet distance of two Gaussians from samples, exactly (Dowson & Landau 1982)."
    n, m, width = len(a), len(b), a.shape[1]
    total, cross = 0.0, 0.0
    for start in range(0, width, chunk):
        x, y = (np.asarray(z[:, start : start + chunk], dtype=np.float64) for z in (a, b))
        mean_x, mean_y = x.mean(0), y.mean(0)
        x, y = x - mean_x, y - mean_y
        total += ((mean_x - mean_y) ** 2).sum() + (x**2).sum() / (n - 1) + (y**2).sum() / (m - 1)
        if width <= chunk:  # D rows with the same x.T @ x have the same singular values
            x, y = (_fewer_rows(z) if len(z) > width else z for z in (x, y))
        cross = cross + x @ y.T
    root = np.linalg.svd(cross, compute_uv=False).sum() / np.sqrt((n - 1) * (m - 1))
    return max(float(total - 2 * root), 0.0)


# %% [markdown]
# It agrees with the textbook where that can be computed, and is zero between a set and itself.


# %%
def textbook(a, b):
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(cov_a @ cov_b).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)


rng = np.random.default_rng(0)
a, b = rng.normal(size=(300, 16)), 1.5 * rng.normal(size=(200, 16)) + 0.2
test_close(frechet_distance(a, b), textbook(a, b), eps=1e-8)
test_close(frechet_distance(a, b), frechet_distance(a, b, chunk=5), eps=1e-8)
test_close(frechet_distance(a, a), 0, eps=1e-9)


# %% [markdown]
# The kernel distance sees any difference in shape, not only in mean and covariance. It is
# unbiased: between two samples of one distribution it is zero on average, so it may be negative.


# %%
#| export distance
def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    "Compute all squared Euclidean distances between rows, (n, D) and (m, D) -> (n, m)."
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)


def kernel_distance(
    a: np.ndarray,  # (n, D)
    real: np.ndarray,  # (m, D); sets the kernel's width
) -> float:  # 0 .. 2, no unit
    "Compute the unbiased squared MMD with a Gaussian kernel (Gretton 2012)."
    within_a, within = squared_distances(a, a), squared_distances(real, real)
    n, m = len(a), len(real)
    width = max(np.median(within[np.triu_indices(m, 1)]), 1e-12)
    between = np.exp(-squared_distances(a, real) / width).mean()
    same_a = (np.exp(-within_a / width).sum() - n) / (n * (n - 1))
    same = (np.exp(-within / width).sum() - m) / (m * (m - 1))
    return float(same_a + same - 2 * between)


# %%
test_close(np.mean([kernel_distance(*rng.normal(size=(2, 50, 4))) for _ in range(50)]), 0, 0.01)
assert kernel_distance(rng.normal(size=(50, 4)) + 1, rng.normal(size=(50, 4))) > 0.2


# %% [markdown]
# ## Variety
#
# Coverage asks how much of the real music has a generated neighbour nearer than other songs
# are (Naeem 2020). Spacing asks how far generated windows lie from each other: copies of twenty
# good windows cover much, and have no spacing at all.


# %%
#| export distance
def coverage(
    a: np.ndarray,  # (n, D)
    real: np.ndarray,  # (m, D)
    songs: np.ndarray,  # (m,) song of each real row: a song's own windows are no neighbours
    *,
    neighbours: int = 3,
) -> float:  # share, 0..1
    "Measure the share of real rows with a row of `a` as near as their k-th neighbour."
    between = squared_distances(real, real)
    between[songs[:, None] == songs] = np.inf
    neighbours = min(neighbours, int(np.isfinite(between).sum(1).min()))
    radius = np.sort(between, 1)[:, neighbours - 1]
    return float((squared_distances(real, a).min(1) <= radius).mean())


def spacing(a: np.ndarray) -> float:
    "Measure the median distance of a row to the nearest other row, (n, D)."
    between = squared_distances(a, a)
    np.fill_diagonal(between, np.inf)
    return float(np.sqrt(np.median(between.min(1))))


# %%
real = rng.normal(size=(60, 3))
test_eq(coverage(real, real, np.arange(60)), 1.0)
test_eq(coverage(real + 50, real, np.arange(60)), 0.0)
test_close(spacing(np.repeat(real[:20], 3, 0)), 0, eps=1e-6)


# %% [markdown]
# ## What is compared
#
# The default embedding has mean, spread and onset strength of each of up to 32 bands. Music
# rises fast and falls slowly: steps without their sign would pass music played backwards.
# Training songs set the scale, so that what varies little counts as much as what varies much.


# %%
#| export distance
def window_statistics(
    windows: np.ndarray,  # (n, M, T) in [-1, 1]
    *,
    bands: int = 32,  # neighbouring mel bands are averaged down to about this number
) -> np.ndarray:  # (n, D)
    "Describe windows by mean, spread and onset strength (rms of rises) of each band."
    group = max(windows.shape[1] // bands, 1)
    starts = np.arange(0, windows.shape[1], group)
    x = np.add.reduceat(windows, starts, axis=1) / group  # (n, bands, T)
    onset = np.sqrt((np.maximum(np.diff(x, axis=2), 0) ** 2).mean(2))
    return np.concatenate([x.mean(2), x.std(2), onset], axis=1).astype(np.float64)


def whiten(
    features: np.ndarray,  # (n, D) of training windows
    *,
    shrink: float = 0.1,  # variance added to each direction: rare ones are not blown up
) -> Callable:  # (n, D) -> (n, D)
    "Make the map that gives training features zero mean and about unit covariance."
    mean, spread = features.mean(0), np.maximum(features.std(0), 0.01)
    values, vectors = np.linalg.eigh(np.cov(((features - mean) / spread).T))
    matrix = vectors / np.sqrt(np.maximum(values, 0) + shrink)
    return lambda features: (features - mean) / spread @ matrix


# %%
windows = rng.uniform(-1, 1, size=(400, 32, 20)).astype(np.float32)
features = window_statistics(windows)
test_eq(features.shape, (400, 96))
test_close(whiten(features, shrink=1e-6)(features).std(0), np.ones(96), eps=0.01)


# %% [markdown]
# Statistics of whole windows cannot tell a blurred picture from a sharp one. Patches of 8 bands
# x 8 frames can, and so does roughness: the mean step between neighbouring cells.


# %%
#| export distance
@dataclass(frozen=True)
class Described:
    "What the judge keeps of each window, so that any subset is measured quickly."

    features: np.ndarray  # (n, D) whitened embedding
    patches: np.ndarray  # (n, P, side * side)
    steps: np.ndarray  # (n, 2) mean absolute step in time and in frequency
    songs: np.ndarray  # (n,) where a window is from; generated: its own number

    def take(self, rows: np.ndarray) -> "Described":
        "Keep some windows."
        kept = (self.features, self.patches, self.steps, self.songs)
        return Described(*(array[rows] for array in kept))


def mean_steps(windows: np.ndarray) -> np.ndarray:
    "Measure the mean absolute step in time and in frequency of each window, (n, M, T) -> (n, 2)."
    return np.array([[np.abs(np.diff(w, axis=axis)).mean() for axis in (1, 0)] for w in windows])


def cut_patches(
    windows: np.ndarray,  # (n, M, T)
    rng: np.random.Generator,
    *,
    side: int = 8,  # bands and frames
    count: int = 20,  # P, a window
) -> np.ndarray:  # (n, P, side * side)
    "Cut small squares at random places out of each window."
    n, bands, frames = windows.shape
    i, rows = np.arange(side), np.arange(n)[:, None, None, None]
    band = rng.integers(0, bands - side + 1, (n, count))[:, :, None, None] + i[:, None]
    frame = rng.integers(0, frames - side + 1, (n, count))[:, :, None, None] + i
    return windows[rows, band, frame].reshape(n, count, side * side)


# %%
test_eq(cut_patches(windows, rng).shape, (400, 20, 64))
test_eq(cut_patches(windows[:, :8, :8], rng, count=1)[:, 0], windows[:, :8, :8].reshape(400, 64))


# %% [markdown]
# The examples below need music in small: decaying tones at random bands, some louder than others.


# %%
def tones(count, rng):
    "Draw windows of decaying partials, (count, 32, 64) in [-1, 1]."
    out = np.full((count, 32, 64), -1.0, dtype=np.float32)
    level = rng.uniform(0.2, 1.2, size=(count, 1))
    for i in range(count):
        for start in range(0, 64, rng.integers(6, 12)):
            decay = np.exp(-np.arange(64 - start) / rng.uniform(5, 20))
            out[i, rng.integers(2, 30), start:] += level[i] * decay
    return np.clip(out + 0.05 * rng.normal(size=out.shape), -1, 1).astype(np.float32)


fresh, train = tones(80, rng), tones(200, rng)
scale = whiten(window_statistics(train))
figure, axes = subplots(1, 3, size=(2.6, 1.8))
for panel, window in zip(axes, fresh, strict=False):
    panel.imshow(window, origin="lower", aspect="auto", cmap="magma")
    panel.set(title="made-up music", xlabel="frame", ylabel="band")
    panel.grid(False)


# %% [markdown]
# Seven measures of one set against another; noise with the real means and spreads is the floor:
# it looks right to a mean and sounds like rain.


# %%
#| export distance
def measure(
    x: Described,
    real: Described,  # as many windows: the distances depend on the number
) -> dict:  # 0 is best in all but coverage and spacing
    "Measure one set of windows against real ones."
    steps = np.maximum(x.steps.mean(0), 1e-6) / np.maximum(real.steps.mean(0), 1e-6)
    time, frequency = np.abs(np.log(steps))
    patches = (z.patches.reshape(-1, z.patches.shape[2]) for z in (x, real))
    return {
        "patch_frechet": frechet_distance(*patches),
        "roughness_time": float(time),
        "roughness_frequency": float(frequency),
        "frechet": frechet_distance(x.features, real.features),
        "kernel": kernel_distance(x.features, real.features),
        "coverage": coverage(x.features, real.features, real.songs),
        "spacing": spacing(x.features),
    }


def noise_like(windows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    "Draw Gaussian noise with the mean and spread of each band, (n, M, T) in [-1, 1]."
    mean, spread = windows.mean((0, 2))[:, None], windows.std((0, 2))[:, None]
    noise = rng.standard_normal(windows.shape, dtype=np.float32)
    return np.clip(mean + spread * noise, -1, 1)


# %%
def described(windows):
    patches, rows = cut_patches(windows, np.random.default_rng(1)), np.arange(len(windows))
    return Described(scale(window_statistics(windows)), patches, mean_steps(windows), rows)


music, noise = (described(x) for x in (train[:80], noise_like(fresh, rng)))
pd.DataFrame({"music": measure(music, described(fresh)), "noise": measure(noise, described(fresh))})


# %% [markdown]
# ## The specification's families
#
# Moments, smoothness, frequency profile and range of each set, in decibels, and the plain Frechet
# distance on spectrograms. Noise passes moments and profile by construction, and a blur passes
# the range: these are told, and weigh nothing in the score.


# %%
#| export distance
def describe_families(
    windows: np.ndarray,  # (n, M, T) in [-1, 1]
    real: np.ndarray,  # (n, M, T): held-out windows
    audio: AudioConfig,
) -> dict:  # family.measure -> value
    "Measure the specification's five families on one set of windows."
    db, real_db = audio.to_db(windows), audio.to_db(real)
    mean, spread = float(db.mean()), float(db.std())
    standard = (db - mean) / max(spread, 1e-6)
    profile, real_profile = db.mean((0, 2)), real_db.mean((0, 2))
    flat = min(profile.std(), real_profile.std()) < 1e-6
    low, high = np.percentile(db, [1, 99], axis=(1, 2))
    flattened = (x.reshape(len(x), -1) for x in (windows, real))
    return {
        "frechet on spectrograms ([-1, 1]^2)": frechet_distance(*flattened),
        "moments: mean (dB)": mean,
        "moments: spread (dB)": spread,
        "moments: skewness": float((standard * standard * standard).mean()),
        "temporal smoothness: mean step (dB/frame)": float(np.abs(np.diff(db, axis=2)).mean()),
        "frequency correlation: profile r": 0.0
        if flat
        else float(np.corrcoef(profile, real_profile)[0, 1]),
        "dynamic range: 1-99 % (dB)": float((high - low).mean()),
    }


# %%
families = describe_families(fresh, fresh, AudioConfig())
test_close(families["frequency correlation: profile r"], 1, eps=1e-6)
pd.Series(families)


# %% [markdown]
# ## Does it obey?
#
# A ridge regression learns valence and arousal from real training windows and reads them from
# generated ones. What it reads from held-out real windows is the most that can be asked.


# %%
#| export distance
def fit_reader(
    features: np.ndarray,  # (n, D) of real training windows, whitened
    labels: np.ndarray,  # (n, 2) valence and arousal, [-1, 1]
    *,
    penalty: float = 0.3,  # per window
) -> Callable:  # (n, D) -> (n, 2)
    "Fit a ridge regression that reads valence and arousal from windows."
    center, mean = features.mean(0), labels.mean(0)
    x = features - center
    system = x.T @ x + penalty * len(x) * np.eye(x.shape[1])
    matrix = np.linalg.solve(system, x.T @ (labels - mean))
    return lambda features: (features - center) @ matrix + mean


def correlations(read: np.ndarray, asked: np.ndarray) -> dict:
    "Correlate what was read with what was asked; None where either does not vary."
    out = {}
    for i, name in enumerate(("valence", "arousal")):
        still = min(np.std(read[:, i]), np.std(asked[:, i])) < 1e-9
        out[name] = None if still else float(np.corrcoef(read[:, i], asked[:, i])[0, 1])
    return out


# %%
level = fresh.mean((1, 2))
asked = np.stack([rng.uniform(-1, 1, 80), (level - level.mean()) / 2], 1)
features = scale(window_statistics(fresh))
read = fit_reader(features[:40], asked[:40])(features[40:])
found = correlations(read, asked[40:])
assert found["arousal"] > 0.5 > abs(found["valence"])
test_eq(correlations(np.zeros((4, 2)), np.zeros((4, 2)))["valence"], None)
found


# %% [markdown]
# ## Does it copy?
#
# Copies of training music would score like music. So each generated window is held against its
# nearest training window; held-out songs say how near strangers come.


# %%
#| export distance
def nearest_training(
    features: np.ndarray,  # (n, D)
    train: np.ndarray,  # (N, D)
) -> tuple[np.ndarray, np.ndarray]:  # distance (n,), row of the nearest (n,)
    "Find the nearest training window of each window."
    between = squared_distances(features, train)
    return np.sqrt(between.min(1)), between.argmin(1)


# %%
distance, row = nearest_training(features[:3] + 0.01, features)
test_eq(row, [0, 1, 2])
assert distance.max() < 0.2

# %% [markdown]
# ## From seven distances to one score
#
# Texture is how a window looks from near, distribution how the set looks from afar, variety
# what it leaves out. The parts are joined as a weighted geometric mean: an arithmetic one gives
# twenty repeated windows a good mark, because six of seven things are right.

# %%
#| export distance
SCORE_PARTS = {  # name: (family, weight); the weights add up to 1
    "patch_frechet": ("texture", 0.15),
    "roughness_time": ("texture", 0.10),
    "roughness_frequency": ("texture", 0.10),
    "frechet": ("distribution", 0.15),
    "kernel": ("distribution", 0.15),
    "coverage": ("variety", 0.20),
    "spacing": ("variety", 0.15),
}
LOWEST_PART = 0.01  # no part counts less, so that a bad score still tells bad from worse


# %% [markdown]
# A distance is placed between noise (0) and real training songs (1) on a logarithmic scale; it
# spans at most a factor of a hundred, since nobody hears the difference below that.


# %%
#| export distance
def place_part(
    name: str,  # of SCORE_PARTS
    value: float,
    floor: float,  # noise
    ceiling: float,  # real training songs
) -> float:  # LOWEST_PART .. 1
    "Place one measure between its floor and its ceiling."
    if name in ("coverage", "spacing"):
        part = value / max(ceiling, 1e-9)
    elif name.startswith("roughness"):
        part = (floor - value) / max(floor - ceiling, 1e-9)
    else:
        best = max(ceiling, floor / 100, 1e-12)
        part = np.log(floor / max(value, best)) / np.log(floor / best) if floor > best else 0.0
    return float(np.clip(part, LOWEST_PART, 1))


def join_parts(parts: dict) -> float:
    "Join placed parts into the score: 100 times their weighted geometric mean."
    weights = np.array([SCORE_PARTS[name][1] for name in parts])
    return float(100 * np.exp(weights @ np.log(list(parts.values()))))


# %%
test_close(sum(weight for _, weight in SCORE_PARTS.values()), 1)
test_eq(place_part("frechet", 9.0, 900.0, 9.0), 1.0)
test_close(place_part("frechet", 90.0, 900.0, 9.0), 0.5)
test_close(join_parts({name: 1.0 for name in SCORE_PARTS}), 100)
test_close(join_parts({name: LOWEST_PART for name in SCORE_PARTS}), 1)

# %% [markdown]
# What follows is `musemo.gan_quality`; what came before, the measures, is `musemo.distance`, and
# the pictures are `musemo.quality_plots`.

# %%
#| export
from musemo.distance import (
    SCORE_PARTS,
    Described,
    check_windows,
    correlations,
    cut_patches,
    describe_families,
    fit_reader,
    join_parts,
    mean_steps,
    measure,
    nearest_training,
    noise_like,
    place_part,
    whiten,
    window_statistics,
)


# %% [markdown]
# ## The judge
#
# A judge is made once for a data set and a width: reference windows from held-out songs, the
# floor and the ceiling. It then judges any set of the same size.


# %%
#| export
@dataclass(frozen=True)
class Judge:
    "Real reference windows with the floor and the ceiling of every measure."

    describe: Callable  # (n, M, T) windows, songs -> Described
    real: Described  # n held-out windows
    floor: dict
    ceiling: dict

    def measure(self, windows: np.ndarray) -> dict:
        "Measure as many windows as the judge has real ones; raises MusemoError for fewer."
        count = len(self.real.songs)
        if len(windows) < count:
            raise MusemoError(f"{len(windows)} windows: this judge compares sets of {count}")
        return measure(self.describe(windows[:count]), self.real)

    def place(self, measured: dict) -> dict:
        "Place each measure between floor and ceiling, 0..1."
        return {k: place_part(k, v, self.floor[k], self.ceiling[k]) for k, v in measured.items()}

    def score(self, windows: np.ndarray) -> float:
        "Score windows, 0-100."
        return join_parts(self.place(self.measure(windows)))


# %% [markdown]
# The floor is noise with the real means and spreads of each band: what looks right to a mean
# and sounds like rain. The ceiling is the mean of several draws from the training songs.


# %%
#| export
def make_judge(
    train: np.ndarray,  # (N, M, T) windows of training songs, N >= n
    held: np.ndarray,  # (n, M, T) windows of held-out songs
    songs: np.ndarray,  # (n,) song of each held-out window
    *,
    seed: int,
    embed: Callable = window_statistics,  # (n, M, T) -> (n, D)
    draws: int = 3,  # of n training windows, averaged in the ceiling
) -> Judge:
    "Make a judge; raises MusemoError where fewer than two songs were held out."
    if len(np.unique(songs)) < 2:
        raise MusemoError(
            "1 song held out: two or more are needed to judge; raise data.validation or data.test"
        )
    held, train = check_windows(held), check_windows(train, like=held)
    scale = whiten(embed(train))

    def describe(windows, songs=None):
        windows = check_windows(windows, like=held)
        patches = cut_patches(windows, rng_for(seed, "patches"))
        songs = np.arange(len(windows)) if songs is None else songs
        return Described(scale(embed(windows)), patches, mean_steps(windows), songs)

    real, rng = describe(held, songs), rng_for(seed, "ceiling")
    floor = measure(describe(noise_like(train[: len(held)], rng)), real)
    rows = [rng.permutation(len(train))[: len(held)] for _ in range(draws)]
    drawn = [measure(describe(train[row]), real) for row in rows]
    return Judge(describe, real, floor, {k: float(np.mean([d[k] for d in drawn])) for k in floor})


# %% [markdown]
# On made-up music, decaying tones at random pitches, real scores high, and noise, one window
# repeated and a blur score low. On real music the same is a test.

# %%
judge = make_judge(train, tones(80, rng), np.arange(80) // 2, seed=0)
blurred = (fresh + np.roll(fresh, 1, 2) + np.roll(fresh, 1, 1) + np.roll(fresh, 2, 2)) / 4
scores = {
    "real": judge.score(fresh),
    "noise": judge.score(noise_like(fresh, rng)),
    "one repeated": judge.score(np.repeat(fresh[:1], 80, axis=0)),
    "blurred": judge.score(blurred),
}
assert scores["real"] > 85 and max(scores["noise"], scores["one repeated"]) < 15
assert scores["blurred"] < 50
scores


# %% [markdown]
# The interval comes from halves: half of the generated windows against half of the songs, many
# times. Their spread is that of the whole (Shao & Wu 1989); ordinary resampling would repeat
# windows, and repetition is just what the score punishes.


# %%
#| export
def score_interval(
    judge: Judge,
    windows: np.ndarray,  # (n, M, T)
    *,
    draws: int,
    seed: int,
) -> list[float]:  # points, lower and upper end of the 90 % interval
    "Estimate the score's interval over windows and songs by drawing halves without replacement."
    x, real, rng = judge.describe(windows[: len(judge.real.songs)]), judge.real, rng_for(seed, "b")
    names, scores = np.unique(real.songs), []
    for _ in progress(range(draws), desc="score interval"):
        songs = rng.permutation(names)[: max(len(names) // 2, 2)]
        rows = np.flatnonzero(np.isin(real.songs, songs))
        half = rng.permutation(len(x.songs))[: max(len(rows), 2)]
        with threadpool_limits(1):  # small matrices: threads would only wait for each other
            measured = measure(x.take(half), real.take(rows))
        scores.append(join_parts(judge.place(measured)))
    middle = join_parts(judge.place(measure(x, real)))
    ends = np.quantile(scores, [0.05, 0.95]) - np.mean(scores)
    return np.clip(middle + ends, 0, 100).tolist()


# %%
low, high = score_interval(judge, fresh, draws=10, seed=0)
assert low <= judge.score(fresh) <= high


# %% [markdown]
# ## Five pictures
#
# Examples side by side; profile over frequency; histogram of levels; level over time; the parts
# of the score. Blue is real, orange generated, green the generator that came second.


# %%
#| export quality_plots
def band_centres(audio: AudioConfig) -> np.ndarray:
    "Say the centre frequency of each mel band, (M,) Hz."
    return librosa.mel_frequencies(audio.n_mels, fmin=audio.f_min, fmax=audio.f_max)


def plot_side_by_side(
    sets: dict[str, np.ndarray],  # name -> windows (n, M, T) in [-1, 1]
    audio: AudioConfig,
) -> plt.Figure:
    "Draw windows of each set in a row, on one decibel scale."
    columns = min(4, *map(len, sets.values()))
    figure, axes = subplots(len(sets), columns, size=(2.9, 2.2), squeeze=False)
    style = {"sample_rate": audio.sample_rate, "hop": audio.hop, "bands": band_centres(audio)}
    style["limits"] = (audio.db_min, audio.db_max)
    for row, (name, windows) in zip(axes, sets.items(), strict=True):
        picks = np.linspace(0, len(windows) - 1, columns).astype(int)
        for panel, pick in zip(row, picks, strict=True):
            decibels = audio.to_db(windows[pick])
            image = plot_log_mel(panel, decibels, **style, title=f"{name} {pick}")
    figure.colorbar(image, ax=axes, label="level (dB)")
    return figure


# %%
small = AudioConfig(n_mels=32)
figure = plot_side_by_side({"real": fresh, "blurred": blurred}, small)


# %%
#| export quality_plots
def plot_averages(
    sets: dict[str, np.ndarray],  # name -> windows (n, M, T) in [-1, 1]; real ones first
    audio: AudioConfig,
) -> plt.Figure:
    "Draw frequency profile, level histogram and temporal evolution of up to three sets."
    figure, axes = subplots(1, 3)
    edges = np.linspace(audio.db_min, audio.db_max, 41)
    for (name, windows), color in zip(sets.items(), ("real", "model", "third"), strict=False):
        seconds = np.arange(windows.shape[2]) * audio.hop / audio.sample_rate
        db, color = audio.to_db(windows), COLORS[color]
        profile, level = db.mean(2), db.mean(1)  # (n, M), (n, T)
        for panel, x, y in ((axes[0], band_centres(audio), profile), (axes[2], seconds, level)):
            panel.plot(x, y.mean(0), color=color, label=name)
            low, high = np.percentile(y, [10, 90], axis=0)
            panel.fill_between(x, low, high, color=color, alpha=0.2)
        axes[1].hist(db.ravel(), edges, density=True, histtype="step", color=color, label=name)
    axes[0].set(title="Frequency profile", xlabel="frequency (Hz)", ylabel="level (dB)")
    axes[0].set_xscale("log")
    axes[1].set(title="Levels of all cells", xlabel="level (dB)", ylabel="share per dB")
    axes[2].set(title="Level over time", xlabel="time (s)", ylabel="level (dB)")
    axes[0].legend(title="mean, 10-90 % of windows", title_fontsize=8)
    return figure


# %%
figure = plot_averages({"real": fresh, "blurred": blurred}, small)


# %%
#| export quality_plots
def plot_parts(
    quality: dict,  # content of gan_quality.json
    config: Config,
) -> plt.Figure:
    "Draw the parts of each generator's score as bars, with the tiers of the specification."
    figure, axes = subplots(size=(7, 3.8))
    records = sorted(quality["generators"].items(), key=lambda item: -item[1]["score"])
    height = 0.8 / len(records)
    for i, (name, record) in enumerate(records):
        parts = [100 * part["part"] for part in record["components"].values()]
        rows = np.arange(len(parts) + 1) + (i - (len(records) - 1) / 2) * height
        label = f"{name}: {record['score']:.0f} ({record['tier']})"
        color = COLORS[("model", "third")[i]]
        axes.barh(rows, [*parts, record["score"]], height, color=color, label=label)
        axes.plot(record["interval"], [rows[-1]] * 2, color="black", linewidth=2)
    names = [name.replace("_", " ") for name in quality["components"]]
    axes.set_yticks(range(len(names) + 1), [*names, "score"])
    for tier in (config.quality.good, config.quality.excellent):
        axes.axvline(tier, color=COLORS["floor"], linestyle="--")
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="points: 0 noise, 100 real training songs")
    axes.set_title("Parts and score, 90 % interval in black")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


# %% [markdown]
# ## The stage
#
# Equal numbers of generated, training and held-out windows are compared, and at most ten of a
# song. With windows as long as the clip there is one of each song. All generators of a run stand
# before one judge. The better one, whose songs will train the predictor, is chosen on validation
# songs alone, so that the test songs have no say in it; the run's score is that one's.


# %%
#| export
def real_windows(
    run: Run,
    config: Config,
    split: str,  # train, val, or held: validation and test
    *,
    most: int = 10,  # windows of a song
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # windows, song number and labels of each
    "Cut windows of the generator's width out of real songs, in a mixed order."
    parts = [load_part(run, name) for name in (("val", "test") if split == "held" else (split,))]
    songs = pd.concat([table for table, _ in parts], ignore_index=True)
    log_mel = np.concatenate([array for _, array in parts])
    width, frames = config.gan.frames, songs["frames"].to_numpy()
    room = int(max(np.median(frames) - width, 0))
    count = min(most, 1 + 4 * room // width)  # neighbours may share three quarters
    windows, song = cut_windows(log_mel, frames, width, per_song=count)
    order = rng_for(config.seed, "quality", split).permutation(len(windows))
    labels = songs[["valence", "arousal"]].to_numpy()[song]
    return windows[order], song[order], labels[order]


def explain_quality(quality: dict) -> str:
    "Say in words what was compared and how far that carries."
    low, high = quality["interval"]
    few = " So few songs say little: a generator that repeats a few windows covers them all."
    return (
        f"{quality['best']}: score {quality['score']:.0f} of 100 ({quality['tier']}), 90 % "
        f"interval {low:.0f} to {high:.0f}: {quality['windows']} windows against real ones from "
        f"{quality['songs']} held-out songs." + few * (quality["songs"] < 20)
    )


# %%
few = {
    "best": "flow",
    "score": 61.0,
    "tier": "good",
    "interval": [40, 80],
    "windows": 40,
    "songs": 4,
}
assert "say little" in explain_quality(few)
assert "say little" not in explain_quality(few | {"songs": 70})


# %%
#| export
@dataclass(frozen=True)
class Compared:
    "What the stage compared, for the page to show."

    quality: dict  # as in gan_quality.json
    families: pd.DataFrame  # a row a measure
    generated: dict[str, np.ndarray]  # (n, M, T) of each generator, the best first
    real: np.ndarray  # (n, M, T) held-out
    nearest: np.ndarray  # (n, M, T) the training window nearest to each of the best generator's


_quality_units = {
    "score": "points, 0-100, of the best generator; interval: 90 %",
    "best": "by validation_score, points on validation songs alone",
    "generators": "a record each, in the units of this file",
    "components": "floor: noise; ceiling: real training songs; part: 0-1; weight: share",
    "frechet": "whitened features squared; patch_frechet: [-1, 1] squared; kernel: squared MMD",
    "roughness": "absolute log ratio to real",
    "coverage": "share; spacing: whitened features; obedience: Pearson r of asked and read",
    "copying": "median distance to the nearest training window, whitened features",
    "windows": "count; songs: count, held out",
    "families": "in the name of each row",
}


# %%
#| export
def score_record(judge: Judge, windows: np.ndarray, config: Config) -> dict:
    "Score windows: score, tier, interval, and every component with its floor and ceiling."
    measured, tiers = judge.measure(windows), config.quality
    parts = judge.place(measured)
    score = join_parts(parts)
    table = pd.DataFrame({"value": measured, "floor": judge.floor, "ceiling": judge.ceiling})
    table["part"] = pd.Series(parts)
    table["weight"] = pd.Series({name: weight for name, (_, weight) in SCORE_PARTS.items()})
    return {
        "score": score,
        "tier": ["poor", "good", "excellent"][(score >= tiers.good) + (score >= tiers.excellent)],
        "interval": score_interval(judge, windows, draws=tiers.bootstrap, seed=config.seed),
        "components": table.to_dict("index"),
    }


# %%
#| export
def generator_record(
    judge: Judge,
    generated: np.ndarray,  # (n, M, T)
    asked: np.ndarray,  # (n, 2) valence and arousal
    train: tuple[np.ndarray, np.ndarray],  # features (N, D) of training windows, labels (N, 2)
    config: Config,
) -> tuple[dict, np.ndarray]:  # the record, and the row of the nearest training window (n,)
    "Judge one generator: score, obedience and copying."
    features, reader = judge.describe(generated).features, fit_reader(*train)
    distance, row = nearest_training(features, train[0])
    record = score_record(judge, generated, config)
    record["obedience"] = correlations(reader(features), asked)
    record["copying"] = float(np.median(distance))
    return record, row


def load_samples(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    "Read what a generator drew in section 5, windows and emotions; raises MusemoError."
    asked = run.load(f"{name}_samples.csv")[["valence", "arousal"]].to_numpy()
    return check_windows(run.load(f"{name}_samples.npy")), asked


# %%
#| export
def judge_generators(run: Run, config: Config) -> Compared:
    "Judge the run's generators and write gan_quality.json; raises MusemoError for bad samples."
    samples = {name: load_samples(run, name) for name in config.generators}
    train, _, train_labels = real_windows(run, config, "train")
    held, songs, held_labels = real_windows(run, config, "held")
    count = min(len(train), len(held), *(len(asked) for _, asked in samples.values()))
    held, songs, held_labels = (x[:count] for x in (held, songs, held_labels))
    judge = make_judge(train, held, songs, seed=config.seed)
    known, records, rows = (judge.describe(train).features, train_labels), {}, {}
    for name, (windows, asked) in samples.items():
        some = windows[:count], asked[:count]
        records[name], rows[name] = generator_record(judge, *some, known, config)
    chosen = choose_generator(run, config, {name: x for name, (x, _) in samples.items()})
    for name, score in chosen.items():
        records[name]["validation_score"] = score
    names = list(chosen)
    generated = {name: samples[name][0][:count] for name in names}
    strangers = nearest_training(judge.real.features, known[0])[0]
    read = fit_reader(*known)(judge.real.features)
    quality = quality_record(names[0], records, generated, held, train[:count], config) | {
        "songs": len(np.unique(songs)),
        "held_out": {
            "obedience": correlations(read, held_labels),
            "copying": float(np.median(strangers)),
        },
    }
    run.save("gan_quality.json", quality)
    families = pd.DataFrame(quality["families"])
    return Compared(quality, families, generated, held, train[rows[names[0]]])


# %%
#| export
def choose_generator(
    run: Run,
    config: Config,
    samples: dict[str, np.ndarray],  # generator -> windows (n, M, T)
) -> dict[str, float | None]:  # generator -> its score on validation songs alone, the best first
    "Rank generators without the test songs; a single one needs no score."
    if len(samples) == 1:
        return dict.fromkeys(samples)
    train, held, songs = (
        real_windows(run, config, "train")[0],
        *real_windows(run, config, "val")[:2],
    )
    count = min(len(train), len(held), *map(len, samples.values()))
    judge = make_judge(train, held[:count], songs[:count], seed=config.seed)
    scores = {name: judge.score(windows) for name, windows in samples.items()}
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


# %%
#| export
def quality_record(
    best: str,
    records: dict,  # of each generator
    generated: dict,  # windows of each
    held: np.ndarray,  # (n, M, T)
    train: np.ndarray,  # (n, M, T)
    config: Config,
) -> dict:
    "Gather gan_quality.json: the best generator's record first, then all of them."
    noise = noise_like(train, rng_for(config.seed, "noise"))
    sets = generated | {"real": held, "training": train, "noise": noise}
    return records[best] | {
        "best": best,
        "generators": records,
        "windows": len(held),
        "families": {name: describe_families(x, held, config.audio) for name, x in sets.items()},
        "units": _quality_units,
    }


# %% [markdown]
# ## On the run
#
# What section 5 drew, against songs that it never saw. The interval covers windows and songs,
# not the training: another seed may train better or worse.

# %% tags=["parameters"]
run_folder = None  # a run's folder; None: a run at the smoke size, made on the spot

# %%
#| hide
from musemo.pipeline import open_run

run, config = open_run(run_folder, before=6)

# %%
compared = judge_generators(run, config)
quality = compared.quality
print(explain_quality(quality))
components = {
    (name, key): record["components"][key]
    for key in quality["components"]
    for name, record in quality["generators"].items()
}
pd.DataFrame(components).T.swaplevel().sort_index(sort_remaining=False).round(3)

# %% [markdown]
# The parts, each between noise and real training songs. The shortest bar is what to mend first.

# %%
parts_figure = plot_parts(quality, config)

# %% [markdown]
# Real above, generated below. Look for onsets (upright edges) and partials (level lines).

# %%
pictures = {"held-out real": compared.real, **compared.generated}
figure = plot_side_by_side(pictures, config.audio)

# %%
figure = plot_averages(pictures, config.audio)

# %% [markdown]
# The specification's families: generated music should stand where real and training stand.
# Noise, beside them, has the right moments and profile: these alone prove nothing.

# %%
compared.families.round(3)

# %% [markdown]
# Does it obey, does it copy? Correlations cannot be asked to exceed those of real songs; the
# distance to the training songs should be no smaller than that of held-out ones.

# %%
judged = {**quality["generators"], "held-out real": quality["held_out"]}
table = pd.DataFrame({name: record["obedience"] for name, record in judged.items()}).T
table.columns = [f"obedience, {name} (r)" for name in table]
table["copying (distance to the nearest training window)"] = [
    record["copying"] for record in judged.values()
]
table.astype(float).round(2)

# %% [markdown]
# Generated windows below the training windows that are nearest to them, as the statistics see it.

# %%
best = quality["best"]
pictures = {"nearest in training": compared.nearest, best: compared.generated[best]}
figure = plot_side_by_side(pictures, config.audio)
components = quality["generators"][best]["components"]
noise = {k: place_part(k, c["floor"], c["floor"], c["ceiling"]) for k, c in components.items()}
told = [f"{name} {record['score']:.0f}" for name, record in quality["generators"].items()]
run.headline(
    "06_gan_quality",
    f"{', '.join(told)} of 100 points (noise {join_parts(noise):.0f}, real training songs 100)",
    parts_figure,
)
