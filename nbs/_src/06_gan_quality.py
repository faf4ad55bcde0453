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

import numpy as np
import torch
from torch import nn

from musemo.config import AudioConfig
from musemo.core import MusemoError

# %%
#| export embeddings
from collections.abc import Callable

import numpy as np
import soxr
import torch

from musemo.core import MusemoError

# %%
#| export obedience
from collections.abc import Callable

import numpy as np

from musemo.distance import check_rows

# %%
#| export score_parts
import numpy as np

# %%
#| export judge
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from musemo.core import MusemoError, progress, rng_for
from musemo.distance import (
    check_windows,
    frechet_distance,
    kernel_distance,
    measure_variety,
    noise_like,
    quantile_distance,
    smear,
)
from musemo.embeddings import (
    MARKS,
    check_features,
    cut_patches,
    whiten,
    window_changes,
    window_marks,
    window_statistics,
)
from musemo.obedience import (
    allowed_obedience,
    chance_obedience,
    fit_reader,
    measure_obedience,
)
from musemo.score_parts import SCORE_PARTS, join_parts, place_part, tells

# %%
#| export attempts
from dataclasses import replace

import numpy as np

from musemo.distance import noise_like, smear
from musemo.judge import Judge

# %%
#| export quality_record
import numpy as np
import pandas as pd

from musemo.config import Config
from musemo.core import rng_for
from musemo.distance import (
    describe_families,
    frechet_infinity,
    leading_directions,
    nearest_training,
    noise_like,
    ratio_to_real,
)
from musemo.judge import Described, Judge, measure, score_interval
from musemo.obedience import correlation_interval, correlations
from musemo.score_parts import SCORE_PARTS, join_parts

# %%
#| export
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from musemo.attempts import try_to_fool
from musemo.audio import invert_log_mel
from musemo.config import Config
from musemo.core import MusemoError, Run, cut_windows, load_part, pick_device, rng_for
from musemo.dataset import to_pixels
from musemo.distance import check_windows
from musemo.embeddings import audio_embedding, torch_embedding, window_statistics
from musemo.judge import Described, Judge, make_judge, set_limits
from musemo.quality_record import (
    copy_record,
    endless_distances,
    family_record,
    real_record,
    score_record,
)
from musemo.vit import revive_vit

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
from IPython.display import display
from scipy import linalg


# %% [markdown]
# ## Sets that can be judged, and the floor
#
# A NaN, an empty set or two shapes give no distance. They are refused before any is computed.
#
# Two things that are no music are floors: noise with the real means and spreads, which looks right
# to a mean and sounds like rain, and music smeared over its neighbours, as a timid network draws.


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
        raise MusemoError(f"{bad} of {len(windows)} windows hold NaN or infinity: leave those out")
    return windows


def noise_like(windows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    "Draw Gaussian noise with the mean and spread of each band, (n, M, T) in [-1, 1]."
    mean, spread = windows.mean((0, 2))[:, None], windows.std((0, 2))[:, None]
    noise = rng.standard_normal(windows.shape, dtype=np.float32)
    return np.clip(mean + spread * noise, -1, 1)


# %%
#| export distance
def smear(
    windows: np.ndarray,  # (n, M, T)
    *,
    bands: int = 5,  # odd, as is frames
    frames: int = 5,
) -> np.ndarray:
    "Replace each cell by the mean of those around it."
    cells = torch.from_numpy(np.ascontiguousarray(windows, dtype=np.float32))[:, None]
    around = {"padding": (bands // 2, frames // 2), "count_include_pad": False}
    return nn.functional.avg_pool2d(cells, (bands, frames), 1, **around)[:, 0].numpy()


def check_rows(
    rows: np.ndarray,  # (n, D)
    like: np.ndarray | None = None,  # rows with as many columns
    *,
    least: int = 2,  # rows
) -> np.ndarray:
    "Refuse rows that give no distance; raises MusemoError."
    rows = np.asarray(rows)
    if rows.ndim != 2 or len(rows) < least or not rows.shape[1]:
        raise MusemoError(
            f"rows of shape {rows.shape}: needed is (n, D) with n >= {least}; use more windows"
        )
    if like is not None and rows.shape[1] != np.shape(like)[-1]:
        raise MusemoError(
            f"{rows.shape[1]} columns against {np.shape(like)[-1]}: both sets must have the same; "
            "describe both by one embedding"
        )
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows).all(1)).sum())
        raise MusemoError(f"{bad} of {len(rows)} rows hold NaN or infinity: leave those out")
    return rows


# %%
test_close(smear(np.eye(3)[None])[0, 1, 1], 1 / 3, eps=1e-6)
test_eq(smear(np.ones((2, 6, 7), np.float32)), np.ones((2, 6, 7), np.float32))
test_fail(lambda: check_rows(np.zeros((1, 4))), contains="n >= 2")
test_fail(lambda: check_rows(np.full((3, 4), np.inf)), contains="3 of 3 rows hold NaN")
test_fail(lambda: check_rows(np.zeros((3, 4)), np.zeros((3, 5))), contains="4 columns against 5")
test_fail(lambda: check_windows(np.zeros((1, 4, 4))), contains="n >= 2")
test_fail(lambda: check_windows(np.full((3, 4, 4), np.nan)), contains="3 of 3 windows hold NaN")
test_fail(lambda: check_windows(np.zeros((2, 4, 4)), np.zeros((2, 4, 5))), contains="one shape")


# %% [markdown]
# ## Frechet distance without a covariance
#
# The textbook asks for the square root of a D x D matrix: 219 GB for a whole clip. Its trace is
# the sum of the singular values of the n x m products between the centred samples, so we
# never leave the small side.
#
# It agrees with the textbook where that can be computed, and is zero between a set and itself.


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
    a, b = check_rows(a), check_rows(b, a)
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
test_fail(lambda: frechet_distance(a, a[:1]), contains="n >= 2")


# %% [markdown]
# Few windows look further apart than they are: the distance of two samples of one distribution
# shrinks with 1/n. A line through smaller samples, drawn on to 1/n = 0, takes that out.
#
# It is a line only where n is well above D, and n counts songs: ten windows of a song are not ten
# independent ones. So whole songs are drawn, a few leading directions are compared, and with
# fewer than three songs a direction there is no answer rather than a wild one.


# %%
#| export distance
def frechet_infinity(
    a: np.ndarray,  # (n, D)
    b: np.ndarray,  # (m, D)
    *,
    rng: np.random.Generator,
    songs: tuple[np.ndarray, np.ndarray] | None = None,  # of each row; None: each its own
    sizes: int = 12,  # sample sizes, from half of the songs to all
    draws: int = 4,  # of each size
    least: int = 3,  # songs a column
) -> float | None:  # features' unit squared, about 0 for one distribution; None: too few songs
    "Extrapolate the Frechet distance to endless songs (Chong & Forsyth 2020)."
    a, b = check_rows(a), check_rows(b, a)
    songs = songs or (np.arange(len(a)), np.arange(len(b)))
    names = [np.unique(x) for x in songs]
    if min(map(len, names)) < least * a.shape[1]:
        return None
    inverse, found = np.repeat(np.linspace(1, 2, sizes), draws), []  # even steps of 1/n
    for x in inverse:
        some = (rng.permutation(name)[: round(len(name) / x)] for name in names)
        rows = (np.isin(song, kept) for song, kept in zip(songs, some, strict=True))
        found.append(frechet_distance(a[next(rows)], b[next(rows)]))
    return float(np.polyfit(inverse, found, 1)[1])


# %%
#| export distance
def leading_directions(
    rows: np.ndarray,  # (n, D) of training songs
    count: int,
) -> Callable:  # (m, D) -> (m, count), in the rows' unit
    "Make the projection on the directions in which rows vary most, through the n x n products."
    center = check_rows(rows).mean(0)
    rows = rows - center
    values, vectors = np.linalg.eigh(rows @ rows.T)
    count = min(count, len(rows) - 1)
    matrix = rows.T @ (vectors[:, -count:] / np.sqrt(np.maximum(values[-count:], 1e-9)))
    return lambda rows: (rows - center) @ matrix


# %% [markdown]
# The kernel distance sees any difference in shape, not only in mean and covariance. It is
# unbiased: between two samples of one distribution it is zero on average, so it may be negative.
# Pairs within a song are left out, as a row's pair with itself always is: neighbours of one song
# are alike because they are neighbours.


# %%
#| export distance
def quantile_distance(
    a: np.ndarray,  # (n, K)
    b: np.ndarray,  # (m, K)
    *,
    tail: float = 0.02,  # share of each end that is left out: odd songs
) -> np.ndarray:  # (K,) in the columns' unit
    "Compute the earth mover's distance of each column's middle: how far its values must move."
    shares = np.linspace(tail, 1 - tail, 50)
    a, b = (np.quantile(x, shares, axis=0) for x in (check_rows(a), check_rows(b, a)))
    return np.abs(a - b).mean(0)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    "Compute all squared Euclidean distances between rows, (n, D) and (m, D) -> (n, m)."
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)


def kernel_distance(
    a: np.ndarray,  # (n, D)
    real: np.ndarray,  # (m, D); sets the kernel's width
    *,
    songs: tuple[np.ndarray, np.ndarray] | None = None,  # of each row; None: each its own
) -> float:  # 0 .. 2, no unit
    "Compute the unbiased squared MMD with a Gaussian kernel (Gretton 2012), of other songs only."
    a, real = check_rows(a), check_rows(real, a)
    songs = songs or (np.arange(len(a)), np.arange(len(real)))
    other_a, other = (x[:, None] != x for x in songs)
    if not (other_a.any() and other.any()):
        raise MusemoError("all rows of a set are of one song: give some of two songs or more")
    within = squared_distances(real, real)[other]
    width = max(np.median(within), 1e-12)
    between = np.exp(-squared_distances(a, real) / width).mean()
    same_a = np.exp(-squared_distances(a, a)[other_a] / width).mean()
    return float(same_a + np.exp(-within / width).mean() - 2 * between)


# %%
ten = np.repeat(np.arange(40), 10)


def clustered(rng):  # ten windows a song, that resemble each other
    return rng.normal(size=(40, 8))[ten] + 0.5 * rng.normal(size=(400, 8))


pairs = [(clustered(rng), clustered(rng)) for _ in range(8)]
raw = np.mean([frechet_distance(*pair) for pair in pairs])
endless = np.mean([frechet_infinity(*pair, rng=rng, songs=(ten, ten), sizes=6) for pair in pairs])
assert abs(endless) < raw / 3  # one distribution: the truth is 0
test_eq(frechet_infinity(*pairs[0], rng=rng, songs=(ten // 2, ten // 2)), None)  # 20 songs
test_close(np.mean([kernel_distance(*pair, songs=(ten, ten)) for pair in pairs]), 0, eps=0.02)
test_close(quantile_distance(pairs[0][0], pairs[0][0] + 3), np.full(8, 3.0), eps=1e-9)
line = np.outer(np.arange(9.0), [3.0, 0.0, 4.0])
test_close(np.ptp(leading_directions(line, 1)(line)), 8 * 5, eps=1e-6)
a, b = rng.normal(size=(400, 8)), rng.normal(size=(400, 8)) + 0.5  # 8 x 0.25 = 2 apart
test_close(frechet_infinity(a, b, rng=rng), 2, eps=0.5)
test_close(frechet_infinity(a, b - 0.5, rng=rng), 0, eps=0.3)
test_close(np.mean([kernel_distance(*rng.normal(size=(2, 50, 4))) for _ in range(50)]), 0, 0.01)
assert kernel_distance(rng.normal(size=(50, 4)) + 2, rng.normal(size=(50, 4))) > 0.3


# %% [markdown]
# ## Variety
#
# Each row has a neighbourhood that reaches to its k-th nearest row of another song. Precision and
# density ask whether generated windows lie in those of real music; coverage and recall whether
# real music is reached (Naeem 2020). Diversity is the share of windows that differ: of two
# hundred that repeat twenty it is at most 10 % (Leinster & Cobbold 2012), and a slight change of
# each does not hide it. Distinct are those without a twin:
# another generated window within half of the usual distance to a stranger.
#
# Recall of real songs is as low as .02 to .12 with 150 windows and 96 features: a handful of
# windows. It is told beside the score and weighs nothing, or one lucky window would move it.


# %%
#| export distance
def neighbour_radius(
    between: np.ndarray,  # (n, n) squared distances within a set
    songs: np.ndarray,  # (n,) a song's own rows are no neighbours
    neighbours: int,
) -> np.ndarray:  # (n,) squared
    "Find how far the k-th nearest row of another song is; raises MusemoError for one song."
    between = np.where(songs[:, None] == songs, np.inf, between)
    neighbours = min(neighbours, int(np.isfinite(between).sum(1).min()))
    if neighbours < 1:
        raise MusemoError(
            "all windows are of one song: give some of others, where neighbours are sought"
        )
    return np.sort(between, 1)[:, neighbours - 1]


def measure_variety(
    a: np.ndarray,  # (n, D)
    real: np.ndarray,  # (m, D)
    songs: tuple[np.ndarray, np.ndarray],  # song of each row of `a`, and of each real row
    *,
    neighbours: int = 3,
) -> dict:  # shares 0..1; density may exceed 1; raises MusemoError
    "Measure precision, recall, density and coverage of `a`, and how many of its rows differ."
    a, real = check_rows(a), check_rows(real, a)
    within, between = squared_distances(a, a), squared_distances(a, real)  # (n, n), (n, m)
    apart = squared_distances(real, real)
    reach = neighbour_radius(apart, songs[1], neighbours)
    inside = between <= reach  # a zero radius holds what lies on it
    own = neighbour_radius(within, songs[0], neighbours)
    usual = max(np.median(neighbour_radius(apart, songs[1], 1)), 1e-11)
    return {
        "precision": float(inside.any(1).mean()),
        "recall": float((between <= own[:, None]).any(0).mean()),
        "density": float(inside.sum(1).mean() / neighbours),
        "coverage": float(inside.any(0).mean()),
        "diversity": float(1 / len(a) / np.exp(-8 * within / usual).mean()),
        "distinct": float(((within < usual / 4).sum(1) == 1).mean()),
    }


# %%
real, each = rng.normal(size=(60, 3)), (np.arange(60), np.arange(60))
test_eq(measure_variety(real, real, each)["coverage"], 1.0)
test_eq(measure_variety(real + 50, real, each)["coverage"], 0.0)
repeated = measure_variety(np.repeat(real[:20], 3, 0), real, each)
assert repeated["diversity"] <= 20 / 60 and repeated["distinct"] == 0
test_fail(lambda: measure_variety(real, real[:, :2], each), contains="2 columns against 3")


# %% [markdown]
# ## What is compared
#
# An embedding turns windows into rows of numbers. The default has mean, spread and onset strength
# of each of up to 32 bands. Training songs set the scale, so that what varies little counts as
# much as what varies much. They set its ends, too: beyond what 99 % of them hold nothing counts
# further, or one odd song among the real ones would outweigh all others.
#
# Statistics of whole bands cannot tell a blurred picture from a sharp one, nor music from music
# played backwards. Texture can: how much cells change from one side to the other, near and far,
# in time and in frequency; whether rises are steeper than falls; whether few changes are large.
#
# Five marks are told one by one, because a mean over many numbers would hide them: sharpness in
# time and in frequency (changes between neighbours against changes over four cells), onsets (how
# much steeper rises are than falls), the level of the loudest hundredth, and interaction: the
# share of a window's variance that neither its bands nor its frames explain alone. Notes that come
# and go make it; a steady chord under a beat, woven like cloth, has little of it.
#
# Patches of 8 bands x 8 frames see any pattern that repeats. Their own level is taken out: how
# loud music is belongs to the distribution of whole windows.


# %%
#| export embeddings
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
    tail: float = 0.005,  # share of training windows beyond each end of the scale
) -> Callable:  # (n, D) -> (n, D)
    "Make the map to zero mean and about unit covariance, within ends, leading directions first."
    ends = np.quantile(features, [tail, 1 - tail], axis=0)
    inner = np.clip(features, *ends)
    mean, spread = inner.mean(0), np.maximum(inner.std(0), 0.01)
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(((inner - mean) / spread).T)))
    values, vectors = values[::-1], vectors[:, ::-1]
    matrix = vectors / np.sqrt(np.maximum(values, 0) + shrink)
    return lambda features: (np.clip(features, *ends) - mean) / spread @ matrix


# %%
#| export embeddings
def side_difference(
    x: np.ndarray,  # (n, M, T)
    reach: int,  # cells on each side, a power of two
) -> np.ndarray:  # (n, M, T - 2 * reach + 1)
    "Subtract the mean of `reach` cells from that of the next ones, along the last axis."
    step = 1
    while step < reach:
        x, step = (x[..., step:] + x[..., :-step]) / 2, 2 * step
    return x[..., reach:] - x[..., :-reach]


def window_changes(
    windows: np.ndarray,  # (n, M, T) in [-1, 1]
    *,
    zones: int = 4,  # Z, of neighbouring bands
    reaches: tuple[int, ...] = (1, 4, 16),  # R, cells; too wide ones are left out
    quiet: float = 0.01,  # changes below count as none
) -> list[np.ndarray]:  # in time and in frequency, (n, Z, R, 3) each
    "Describe changes by log size, skewness and log peakiness."
    parts, out = np.array_split(windows, zones, axis=1), []
    for turned in (parts, [np.ascontiguousarray(part.swapaxes(1, 2)) for part in parts]):
        numbers = []
        for x in turned:
            for reach in (r for r in reaches if 2 * r <= min(y.shape[2] for y in turned)):
                change = side_difference(x, reach).reshape(len(x), -1)
                square = change * change
                size = np.sqrt(square.mean(1)) + quiet / 10
                skewness = np.einsum("ij,ij->i", square, change) / change.shape[1] / size**3
                peak = np.log(size / (np.abs(change).mean(1) + quiet / 10))
                numbers.append(np.stack([np.log(size + quiet), skewness, peak], axis=1))
        out.append(np.stack(numbers, axis=1, dtype=np.float64).reshape(len(windows), zones, -1, 3))
    return out


# %%
#| export embeddings
MARKS = ("sharpness_time", "sharpness_frequency", "onsets", "loudest", "interaction")


def window_marks(
    windows: np.ndarray,  # (n, M, T) in [-1, 1]
    changes: list[np.ndarray],  # as window_changes gives them
) -> np.ndarray:  # (n, 5): two log ratios, a skewness, a level in [-1, 1], a log share
    "Describe windows by the five marks that are told one by one."
    near_far = [x[:, :, [0, min(1, x.shape[2] - 1)], 0].mean(1) for x in changes]  # (n, 2)
    sharpness = [x[:, 0] - x[:, 1] for x in near_far]
    onsets = np.arcsinh(changes[0][:, :, 0, 1]).mean(1)  # a few odd songs weigh less
    cells = windows.reshape(len(windows), -1)
    place = int(0.99 * cells.shape[1])  # of the sorted cells
    loudest = np.partition(cells, place, axis=1)[:, place]
    rows, columns = windows.mean(2, keepdims=True), windows.mean(1, keepdims=True)
    left = (windows - rows - columns).var((1, 2)) + 1e-6
    interaction = np.log(left / (windows.var((1, 2)) + 1e-6))
    return np.stack([*sharpness, onsets, loudest, interaction], axis=1)


# %%
#| export embeddings
def cut_patches(
    windows: np.ndarray,  # (n, M, T)
    rng: np.random.Generator,
    *,
    side: int = 8,  # bands and frames
    count: int = 20,  # P, a window
) -> np.ndarray:  # (n, P, side * side)
    "Cut small squares at random places out of each window, each with mean zero."
    n, bands, frames = windows.shape
    i, rows = np.arange(side), np.arange(n)[:, None, None, None]
    band = rng.integers(0, bands - side + 1, (n, count))[:, :, None, None] + i[:, None]
    frame = rng.integers(0, frames - side + 1, (n, count))[:, :, None, None] + i
    patches = windows[rows, band, frame].reshape(n, count, side * side)
    return patches - patches.mean(2, keepdims=True)


# %%
windows = rng.uniform(-1, 1, size=(400, 32, 20)).astype(np.float32)
features = window_statistics(windows)
test_eq(features.shape, (400, 96))
scale = whiten(features, shrink=1e-6)
test_close(scale(features).std(0), np.ones(96), eps=0.01)
test_close(scale(features + 1e3), scale(features + 1e6))  # out of range is out of range
ramp = np.tile(np.arange(40.0), (2, 8, 1)) / 40
test_close(side_difference(ramp, 4), np.full((2, 8, 33), 0.1))
texture = np.hstack([x.reshape(400, -1) for x in window_changes(windows)])
test_eq(texture.shape, (400, 3 * (4 * 2 + 4 * 2)))  # 8 bands x 20 frames a zone
marks = [window_marks(x, window_changes(x)) for x in (windows, smear(windows))]
sharp, blurred = (x[:, :2] for x in marks)
assert (sharp.min(0) > blurred.max(0) + 0.5).all()
rises = np.tile(np.maximum(0, 1 - np.arange(20.0) % 5 / 4), (1, 32, 1))
steep = [window_marks(x, window_changes(x))[0, 2] for x in (rises, rises[:, :, ::-1])]
assert steep[0] > 0.5 and steep[1] < -0.5
assert window_marks(rises, window_changes(rises))[0, 4] < -9  # all bands do the same: no notes
assert marks[0][:, 4].min() > -0.2  # noise is nothing else
test_eq(cut_patches(windows, rng).shape, (400, 20, 64))
test_close(cut_patches(windows, rng).mean(2), 0, eps=1e-6)


# %% [markdown]
# ## Other ears
#
# Any callable from windows to rows will do for an embedding: `judge_generators(run, config,
# embed=...)` takes one. A torch model is wrapped. `quality.embedding=vit` is the run's own ViT,
# once section 11 has trained it; the run goes on with `--from 6`.
#
# An audio model such as CLAP hears sound, so windows are made audible first. It comes whole from
# a folder or the hub, or the run stops: a judge with random weights would judge nothing.


# %%
#| export embeddings
def torch_embedding(
    model: Callable,  # (B, M, T) float32 in [-1, 1] -> (B, D); a module in eval mode, or any
    *,
    batch: int = 32,
    device: torch.device | str = "cpu",
) -> Callable:  # (n, M, T) -> (n, D)
    "Make an embedding of a torch model."

    @torch.no_grad()
    def embed(windows):
        parts = torch.from_numpy(np.ascontiguousarray(windows, dtype=np.float32)).split(batch)
        return np.concatenate([model(x.to(device)).cpu().double().numpy() for x in parts])

    return embed


def check_features(features: np.ndarray, count: int) -> np.ndarray:
    "Refuse what an embedding must not give; raises MusemoError."
    if features.ndim != 2 or len(features) != count or not np.isfinite(features).all():
        raise MusemoError(
            f"the embedding made {features.shape} of {count} windows: needed is (n, D), all finite"
        )
    return features


# %%
#| export embeddings
WAYS_TO_HEAR = (
    "ways out: quality.embedding=FOLDER with config.json, preprocessor_config.json and "
    "model.safetensors of an audio model, or quality.embedding=statistics"
)


def load_ears(
    name: str,  # local folder or hub name of an audio model with its feature extractor
) -> tuple:  # model, feature extractor
    "Load an audio model of transformers; raises MusemoError with the ways out."
    import transformers  # takes seconds, and only these judges need it

    try:
        safe = {"trust_remote_code": False}  # None would offer to run a model's own code
        extractor = transformers.AutoFeatureExtractor.from_pretrained(name, **safe)
        model, info = transformers.AutoModel.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, **safe
        )
    except Exception as error:  # transformers, safetensors and the hub each raise their own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise MusemoError(
            f"quality.embedding = {name!r}: cannot be had ({reason}); {WAYS_TO_HEAR}"
        ) from error
    lacking = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if lacking or not hasattr(extractor, "sampling_rate"):
        fault = f"{len(lacking)} weights are missing, e.g. {lacking[0]}" if lacking else "no audio"
        raise MusemoError(f"quality.embedding = {name!r}: {fault}; {WAYS_TO_HEAR}")
    return model.eval().float(), extractor


# %%
#| export embeddings
def pool_tokens(output) -> torch.Tensor:  # (B, D)
    "Take a model's pooled features, or the mean of its tokens."
    if torch.is_tensor(output):
        return output
    pooled = getattr(output, "pooler_output", None)
    return output.last_hidden_state.flatten(1, -2).mean(1) if pooled is None else pooled


def audio_embedding(
    name: str,  # of load_ears
    to_wave: Callable,  # (B, M, T) in [-1, 1] -> (B, S) sound
    *,
    sample_rate: int,  # Hz, of that sound
    batch: int = 8,
    device: torch.device | str = "cpu",
) -> Callable:  # (n, M, T) -> (n, D)
    "Make an embedding of an audio model; long sound is heard in parts, and these averaged."
    model, extractor = load_ears(name)
    hear, rate = getattr(model.to(device), "get_audio_features", model), extractor.sampling_rate

    @torch.no_grad()
    def embed(windows):
        out = []
        for start in range(0, len(windows), batch):
            waves = soxr.resample(to_wave(windows[start : start + batch]).T, sample_rate, rate).T
            most = getattr(extractor, "nb_max_samples", None) or waves.shape[1]
            heard = []
            for wave in np.array_split(waves, -(-waves.shape[1] // most), axis=1):
                inputs = extractor(list(wave), sampling_rate=rate, return_tensors="pt")
                heard.append(pool_tokens(hear(**inputs.to(device))).cpu().double().numpy())
            out.append(np.mean(heard, axis=0))
        return np.concatenate(out)

    return embed


# %%
bands = torch_embedding(lambda x: x.mean(2), batch=150)
test_close(bands(windows), windows.mean(2), eps=1e-6)
test_fail(lambda: check_features(np.zeros((3, 2, 2)), 3), contains="made (3, 2, 2) of 3")
test_fail(lambda: load_ears("/no/such/folder"), contains="quality.embedding=statistics")


# %% [markdown]
# ## The specification's families
#
# Moments, smoothness, frequency profile and range of each set, and the plain Frechet distance on
# spectrograms. Levels count from the quiet end of the scale, so that a ratio to real music means
# something. Real against itself is no distance, so that distance counts in the training songs'.
# Noise passes moments and profile: these are told, and weigh nothing in the score.
#
# The examples below need music in small: decaying tones at random bands, some louder than others.


# %%
#| export distance
def describe_families(
    windows: np.ndarray,  # (n, M, T) in [-1, 1]
    real: np.ndarray,  # (n, M, T): held-out windows
    audio: AudioConfig,
) -> dict:  # family.measure -> value
    "Measure the specification's five families on one set of windows."
    db, real_db = (audio.to_db(x) - audio.db_min for x in (windows, real))
    mean, spread = float(db.mean()), float(db.std())
    standard = (db - mean) / max(spread, 1e-6)
    profile, real_profile = db.mean((0, 2)), real_db.mean((0, 2))
    flat = min(profile.std(), real_profile.std()) < 1e-6
    low, high = np.percentile(db, [1, 99], axis=(1, 2))
    flattened = (x.reshape(len(x), -1) for x in (windows, real))
    return {
        "frechet on spectrograms ([-1, 1]^2)": frechet_distance(*flattened),
        "moments: mean (dB above the quiet end)": mean,
        "moments: spread (dB)": spread,
        "moments: skewness": float((standard * standard * standard).mean()),
        "temporal smoothness: mean step (dB/frame)": float(np.abs(np.diff(db, axis=2)).mean()),
        "frequency correlation: profile r": 0.0
        if flat
        else float(np.corrcoef(profile, real_profile)[0, 1]),
        "dynamic range: 1-99 % (dB)": float((high - low).mean()),
    }


def ratio_to_real(families: dict[str, dict]) -> dict[str, dict]:  # set -> measure -> value / real's
    "Divide each set's measures by those of real; where these are zero, by the training set's."
    usual = {
        key: value if abs(value) > 1e-6 else families["training"][key]  # rounding is zero, too
        for key, value in families["real"].items()
    }
    return {
        name: {key: value / usual[key] if usual[key] else None for key, value in row.items()}
        for name, row in families.items()
    }


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
figure, axes = subplots(1, 3, size=(2.6, 1.8))
for panel, window in zip(axes, fresh, strict=False):
    panel.imshow(window, origin="lower", aspect="auto", cmap="magma")
    panel.set(title="made-up music", xlabel="frame", ylabel="band")
    panel.grid(False)
families = describe_families(fresh, fresh, AudioConfig())
test_close(families["frequency correlation: profile r"], 1, eps=1e-6)
rows = {"real": {"x": 2.0, "y": 0.0}, "training": {"x": 2.0, "y": 0.5}}
test_eq(ratio_to_real(rows | {"gan": {"x": 3.0, "y": 1.0}})["gan"], {"x": 1.5, "y": 2.0})

# %% [markdown]
# ## Does it obey? Does it copy?
#
# A ridge regression learns valence and arousal from real training windows and reads them from
# generated ones. It never saw the generator. What it reads from held-out real windows is the most
# that can be asked, and piano music hardly tells valence: so an axis counts by what 19 of 20
# draws of held-out songs reach, and not at all where that is under 0.2.
#
# Copies of training music would score like music. So each generated window is held against its
# nearest training window; held-out songs say how near strangers come. Training takes windows
# anywhere, so the nearest is looked for a quarter of a window apart: of exact copies 97 % are found
# (on demo music and on rated piano pieces; of copies 5 dB quieter 96 and 92 %), and of held-out
# windows none. Of more than 600 songs, or where sound is made of each window, only ten windows
# each are looked at, and fewer copies are found.

# %%
#| export obedience
READ_AXES = ("valence", "arousal")
SONGS_TO_CORRELATE = 8  # fewer held-out songs tell nothing of a correlation
LEAST_ALLOWED = 0.2  # correlation; an axis that real songs do not reach is not asked for


def fit_reader(
    features: np.ndarray,  # (n, D) of real training windows, whitened
    labels: np.ndarray,  # (n, 2) valence and arousal, [-1, 1]
    *,
    penalty: float = 0.3,  # per window
) -> Callable:  # (n, D) -> (n, 2)
    "Fit a ridge regression that reads valence and arousal from windows."
    center, mean = check_rows(features).mean(0), check_rows(labels).mean(0)
    x = features - center
    system = x.T @ x + penalty * len(x) * np.eye(x.shape[1])
    matrix = np.linalg.solve(system, x.T @ (labels - mean))
    return lambda features: (features - center) @ matrix + mean


def correlations(read: np.ndarray, asked: np.ndarray) -> dict:
    "Correlate what was read with what was asked; None where either does not vary."
    out = {}
    for i, name in enumerate(READ_AXES):
        still = min(np.std(read[:, i]), np.std(asked[:, i])) < 1e-9
        out[name] = None if still else float(np.corrcoef(read[:, i], asked[:, i])[0, 1])
    return out


# %%
#| export obedience
def correlation_interval(
    read: np.ndarray,  # (n, 2)
    asked: np.ndarray,  # (n, 2)
    songs: np.ndarray,  # (n,) drawn whole; a generated window is a song of its own
    *,
    rng: np.random.Generator,
    shares: tuple[float, ...] = (0.05, 0.95),
    draws: int = 500,
) -> dict:  # axis -> its correlation at these shares of the draws; None where there is none
    "Draw songs again and again, with replacement, and correlate (bootstrap)."
    names, place = np.unique(songs, return_inverse=True)
    count = len(names)
    weights = rng.multinomial(count, np.full(count, 1 / count), draws)[:, place].astype(float)
    weights /= weights.sum(1, keepdims=True)  # (draws, n)
    x, y = read - read.mean(0), asked - asked.mean(0)
    mean_x, mean_y = weights @ x, weights @ y
    spread = (weights @ x**2 - mean_x**2) * (weights @ y**2 - mean_y**2)  # (draws, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (weights @ (x * y) - mean_x * mean_y) / np.sqrt(spread)
    found[spread < 1e-18] = 0  # a draw of one condition correlates with nothing
    still = [value is None for value in correlations(read, asked).values()]
    ends = np.quantile(found, shares, axis=0).T.tolist()
    return {axis: None if no else end for axis, no, end in zip(READ_AXES, still, ends, strict=True)}


# %%
#| export obedience
def allowed_obedience(
    read: np.ndarray,  # (n, 2) of held-out real windows
    labels: np.ndarray,  # (n, 2) of their songs
    songs: np.ndarray,  # (n,)
    *,
    rng: np.random.Generator,
    share: float = 0.05,  # of the draws, that stay below
) -> dict:  # axis -> correlation; only axes that count
    "Find what may be asked: what nineteen of twenty draws of held-out songs reach."
    if len(np.unique(songs)) < SONGS_TO_CORRELATE:
        return {}
    found = correlation_interval(read, labels, songs, rng=rng, shares=(share,))
    return {axis: x[0] for axis, x in found.items() if x is not None and x[0] >= LEAST_ALLOWED}


def measure_obedience(
    read: np.ndarray,  # (n, 2)
    asked: np.ndarray,  # (n, 2)
    allowed: dict,  # axis -> correlation
) -> float:  # 0: none; the mean of `allowed`: as much as real songs
    "Average the correlations of the axes that count; one that excels makes up for no other."
    found = correlations(read, asked)
    return float(np.mean([np.clip(found[axis] or 0, 0, most) for axis, most in allowed.items()]))


def chance_obedience(
    read: np.ndarray,  # (n, 2)
    asked: np.ndarray,  # (n, 2)
    allowed: dict,
    *,
    rng: np.random.Generator,
    share: float = 0.9,  # of the shuffles, that stay below
    draws: int = 50,
) -> float:
    "Find what obedience chance gives: that of conditions dealt out anew."
    shuffled = (rng.permutation(asked) for _ in range(draws))
    found = [measure_obedience(read, conditions, allowed) for conditions in shuffled]
    return float(np.quantile(found, share))


# %%
#| export distance
def nearest_training(
    features: np.ndarray,  # (n, D)
    train: np.ndarray,  # (N, D)
) -> tuple[np.ndarray, np.ndarray]:  # distance (n,), row of the nearest (n,)
    "Find the nearest training window of each window; raises MusemoError."
    train = check_rows(train, least=1)
    between = squared_distances(check_rows(features, train, least=1), train)
    return np.sqrt(between.min(1)), between.argmin(1)


# %%
level = fresh.mean((1, 2))
asked = np.stack([rng.uniform(-1, 1, 80), (level - level.mean()) / 2], 1)
features = whiten(window_statistics(train))(window_statistics(fresh))
read = fit_reader(features[:40], asked[:40])(features[40:])
found = correlations(read, asked[40:])
assert found["arousal"] > 0.5 > abs(found["valence"])
test_eq(correlations(np.zeros((4, 2)), np.zeros((4, 2)))["valence"], None)
songs = np.arange(80) // 2  # forty songs of two windows
allowed = allowed_obedience(read, asked[40:], songs[:40], rng=rng)
test_eq(list(allowed), ["arousal"])  # valence was drawn by lot
test_close(measure_obedience(read, asked[40:], allowed), allowed["arousal"], eps=1e-9)
assert chance_obedience(read, asked[40:], allowed, rng=rng) < allowed["arousal"] / 2
test_eq(allowed_obedience(read, asked[40:], songs[:40] % 7, rng=rng), {})  # seven songs
low, high = correlation_interval(read, asked[40:], songs[:40], rng=rng)["arousal"]
assert low < found["arousal"] < high
distance, row = nearest_training(features[:3] + 0.01, features)
test_eq(row, [0, 1, 2])
assert distance.max() < 0.2

# %% [markdown]
# ## From thirteen measures to one score
#
# Texture is how a window looks from near, distribution how the set looks from afar, variety
# what it leaves out, obedience whether it does what it was asked. The parts are joined as a
# weighted geometric mean: an arithmetic one gives twenty repeated windows a good mark, because
# most things are right about them.
#
# A distance is placed between its floor (0) and real training songs (1) on a logarithmic scale;
# it spans at most a factor of a hundred, so that a ceiling near zero does not make it endless.
# The floor is noise; for the five marks it is the nearer of noise, which is too rough, and smeared
# music, which is too soft. It is at least twice the ceiling: luck decides what lies closer.
# Shares start from nothing, obedience from what conditions dealt out by chance reach. A measure
# that cannot tell these songs from its floor, as obedience with very few of them, is left out.

# %%
#| export score_parts
SCORE_PARTS = {  # name: (family, weight); the weights add up to 1
    "patch_frechet": ("texture", 0.02),
    "texture_kernel": ("texture", 0.07),
    "sharpness_time": ("texture", 0.07),
    "sharpness_frequency": ("texture", 0.06),
    "onsets": ("texture", 0.09),
    "interaction": ("texture", 0.09),
    "frechet": ("distribution", 0.07),
    "kernel": ("distribution", 0.09),
    "loudest": ("distribution", 0.05),
    "coverage": ("variety", 0.04),
    "diversity": ("variety", 0.09),
    "distinct": ("variety", 0.12),
    "obedience": ("obedience", 0.14),
}
LOWEST_PART = 0.01  # no part counts less, so that a bad score still tells bad from worse


def tells(
    name: str,  # of SCORE_PARTS
    floor: float,
    ceiling: float,
) -> bool:
    "Say whether a measure tells real songs from what is no music."
    return ceiling > floor if SCORE_PARTS[name][0] in ("variety", "obedience") else ceiling < floor


def place_part(
    name: str,  # of SCORE_PARTS
    value: float,
    floor: float,  # what is no music
    ceiling: float,  # real songs
) -> float:  # LOWEST_PART .. 1
    "Place one measure between its floor and its ceiling."
    if SCORE_PARTS[name][0] in ("variety", "obedience"):
        part = (value - floor) / (ceiling - floor)
    else:
        best = max(ceiling, floor / 100, 1e-12)
        floor = max(floor, 2 * best)
        part = np.log(floor / max(value, best)) / np.log(floor / best)
    return float(np.clip(part, LOWEST_PART, 1))


def join_parts(parts: dict) -> float:
    "Join placed parts into the score: 100 times their weighted geometric mean; 0 without any."
    if not parts:  # of so few songs nothing can be told
        return 0.0
    weights = np.array([SCORE_PARTS[name][1] for name in parts])  # one that cannot tell is missing
    return float(100 * np.exp(weights @ np.log(list(parts.values())) / weights.sum()))


# %%
test_close(sum(weight for _, weight in SCORE_PARTS.values()), 1)
test_eq(place_part("frechet", 9.0, 900.0, 9.0), 1.0)
test_close(place_part("frechet", 90.0, 900.0, 9.0), 0.5)
test_eq([tells("distinct", 0.0, 0.3), tells("distinct", 0.3, 0.3)], [True, False])
test_eq([tells("frechet", 9.0, 1.0), tells("frechet", 1.0, 9.0)], [True, False])
test_close(join_parts({name: 1.0 for name in SCORE_PARTS}), 100)
test_close(join_parts({name: LOWEST_PART for name in SCORE_PARTS}), 1)


# %% [markdown]
# ## The judge
#
# A judge is made once for a data set and a width: reference windows from held-out songs, the
# floor and the ceiling. It then judges any set of the same size. The embedding decides what is
# near to what; texture is always its own, so that no embedding can be deaf to it.
#
# The ceiling is what nine of ten draws of real music reach: each takes as many training songs,
# and windows, as were held out, and is judged as a generator's windows are. What real songs miss
# by chance, a generator may miss.


# %%
#| export judge
@dataclass(frozen=True)
class Described:
    "What the judge keeps of each window, so that any subset is measured quickly."

    features: np.ndarray  # (n, D) whitened embedding
    texture: np.ndarray  # (n, K) whitened
    patches: np.ndarray  # (n, P, side * side)
    marks: np.ndarray  # (n, 5)
    songs: np.ndarray  # (n,) where a window is from; generated: its own number
    asked: np.ndarray  # (n, 2) conditions, or labels of its song; NaN: not told
    read: np.ndarray  # (n, 2) what the reader reads; NaN: no reader

    def take(self, rows: np.ndarray) -> "Described":
        "Keep some windows."
        return Described(**{name: array[rows] for name, array in vars(self).items()})

    def as_generated(self) -> "Described":
        "Forget the songs: a generator's windows have none."
        return replace(self, songs=np.arange(len(self.songs)))


def describe_set(
    windows: np.ndarray,  # (n, M, T) in [-1, 1]
    embed: Callable,  # (n, M, T) -> (n, D)
    *,
    rng: np.random.Generator,  # of the patches
    songs: np.ndarray | None = None,  # (n,)
    asked: np.ndarray | None = None,  # (n, 2) on [-1, 1]
) -> Described:  # not whitened, nothing read
    "Describe windows in all ways that the judge compares; raises MusemoError."
    count, features = len(windows), check_features(embed(windows), len(windows))
    nothing = np.full((count, 2), np.nan)
    if asked is not None and np.shape(asked) != (count, 2):
        raise MusemoError(
            f"conditions of shape {np.shape(asked)} for {count} windows: needed is (n, 2), "
            "valence and arousal of each"
        )
    changes = window_changes(windows)
    texture = np.hstack([x.reshape(count, -1) for x in changes])
    return Described(
        *(features, texture, cut_patches(windows, rng), window_marks(windows, changes)),
        songs=np.arange(count) if songs is None else np.asarray(songs),
        asked=nothing if asked is None else np.asarray(asked, dtype=np.float64),
        read=nothing,
    )


# %%
#| export judge
def measure(
    x: Described,
    real: Described,  # as many windows: the distances depend on the number
    allowed: dict,  # axis -> correlation that real songs allow
) -> dict:  # of each measure; 0 is best in distances, 1 in shares
    "Measure one set of windows against real ones."
    patches = (z.patches.reshape(-1, z.patches.shape[2]) for z in (x, real))
    songs = x.songs, real.songs
    measured = {
        "patch_frechet": frechet_distance(*patches),
        "texture_kernel": kernel_distance(x.texture, real.texture, songs=songs),
        "frechet": frechet_distance(x.features, real.features),
        "kernel": kernel_distance(x.features, real.features, songs=songs),
    } | measure_variety(x.features, real.features, songs)
    measured |= zip(MARKS, quantile_distance(x.marks, real.marks).tolist(), strict=True)
    if allowed and np.isfinite(x.asked).all():
        measured["obedience"] = measure_obedience(x.read, x.asked, allowed)
    return measured


# %%
#| export judge
@dataclass(frozen=True)
class Judge:
    "Real reference windows with the floor and the ceiling of every measure."

    describe: Callable  # (n, M, T) windows, songs, asked -> Described
    train: Described  # N training windows
    real: Described  # n held-out windows
    not_music: list[Described]  # noise and smeared music, n of each
    floor: dict
    ceiling: dict
    allowed: (
        dict  # axis -> correlation that held-out songs allow; an axis that is not asked: absent
    )

    def measure(self, windows: np.ndarray, asked: np.ndarray | None = None) -> dict:
        "Measure as many windows as the judge has real ones; raises MusemoError for fewer."
        count = len(self.real.songs)
        if len(windows) < count:
            raise MusemoError(
                f"{len(windows)} windows: this judge needs sets of {count}; give as many"
            )
        asked = asked if asked is None else asked[:count]
        return measure(self.describe(windows[:count], None, asked), self.real, self.allowed)

    def place(self, measured: dict) -> dict:
        "Place the parts of the score that tell between floor and ceiling, 0..1."
        ends = {k: (self.floor[k], self.ceiling[k]) for k in SCORE_PARTS if k in measured}
        return {k: place_part(k, measured[k], *x) for k, x in ends.items() if tells(k, *x)}

    def score_described(self, x: Described) -> float:
        "Score windows that are described already, 0-100."
        return join_parts(self.place(measure(x, self.real, self.allowed)))

    def score(self, windows: np.ndarray, asked: np.ndarray | None = None) -> float:
        "Score windows, 0-100, and their obedience where it is told what was asked, (n, 2)."
        return join_parts(self.place(self.measure(windows, asked)))


# %%
#| export judge
CEILING_DRAWS = 10
CEILING_SHARE = 0.9  # of the draws, that reach the ceiling
HIGHER_IS_BETTER = ("precision", "recall", "density", "coverage", "diversity", "distinct")


def find_ceiling(
    train: Described,
    real: Described,  # held-out
    rng: np.random.Generator,
) -> dict:
    "Measure draws of training songs against held-out ones; keep what most of them reach."
    names, found = np.unique(train.songs), []
    for _ in range(CEILING_DRAWS):
        songs = rng.permutation(names)[: len(np.unique(real.songs))]
        rows = rng.permutation(len(train.songs))
        first = np.isin(train.songs[rows], songs)  # others only where these have too few windows
        rows = np.concatenate([rows[first], rows[~first]])[: len(real.songs)]
        found.append(measure(train.take(rows).as_generated(), real, {}))
    table = pd.DataFrame(found)
    return {
        name: float(table[name].quantile(abs(CEILING_SHARE - (name in HIGHER_IS_BETTER))))
        for name in table
    }


def find_floor(
    noise: Described,
    smeared: Described,
    real: Described,  # held-out
) -> dict:
    "Measure what is no music: too rough, too soft, or nothing at all."
    floor, soft = measure(noise, real, {}), measure(smeared, real, {})
    floor |= {name: min(floor[name], soft[name]) for name in MARKS}
    return floor | {name: 0.0 for name, (kind, _) in SCORE_PARTS.items() if kind == "variety"}


# %%
#| export judge
def fit_scales(
    known: Described,  # training windows as describe_set gives them
) -> Callable:  # Described -> Described
    "Learn of training songs what the scales are, and how emotion is read."
    scale, scale_texture = whiten(known.features), whiten(known.texture)
    labelled = np.isfinite(known.asked).all()
    reader = fit_reader(scale(known.features), known.asked) if labelled else None

    def finish(x):
        features = scale(x.features)
        read = reader(features) if reader else x.read
        return replace(x, features=features, texture=scale_texture(x.texture), read=read)

    return finish


def check_songs(songs: np.ndarray, name: str) -> None:
    "Refuse fewer than two songs; raises MusemoError."
    if (count := len(np.unique(songs))) < 2:
        raise MusemoError(
            f"{count} song {name}: two or more are needed to judge; "
            "use more songs, or change data.validation and data.test"
        )


# %%
#| export judge
def set_limits(
    describe: Callable,  # (n, M, T) windows, songs, asked -> Described
    train: Described,
    real: Described,  # held-out
    not_music: list[Described],  # noise and smeared music, n or more of each
    *,
    seed: int,
) -> Judge:
    "Make a judge of held-out songs that are described already."
    rng, few = rng_for(seed, "ceiling"), np.arange(len(real.songs))
    floor = find_floor(*(x.take(few) for x in not_music), real)
    ceiling, allowed = find_ceiling(train, real, rng), {}
    if np.isfinite(np.hstack([real.read, real.asked])).all():
        allowed = allowed_obedience(real.read, real.asked, real.songs, rng=rng)
    if allowed:
        floor |= {"obedience": chance_obedience(real.read, real.asked, allowed, rng=rng)}
        ceiling |= {"obedience": float(np.mean(list(allowed.values())))}
    return Judge(describe, train, real, not_music, floor, ceiling, allowed)


# %%
#| export judge
def make_judge(
    train: tuple[np.ndarray, np.ndarray],  # windows (N, M, T) of training songs; song of each
    held: tuple[np.ndarray, np.ndarray],  # windows (n, M, T) of held-out songs; song of each
    *,
    seed: int,
    labels: tuple[np.ndarray, np.ndarray] = (None, None),  # (N, 2) and (n, 2): judges obedience
    embed: Callable = window_statistics,  # (n, M, T) -> (n, D)
) -> Judge:
    "Make a judge; raises MusemoError where fewer than two songs are on a side."
    check_songs(train[1], "to train")
    check_songs(held[1], "held out")
    like = check_windows(held[0])

    def look(windows, songs=None, asked=None):
        rng, windows = rng_for(seed, "patches"), check_windows(windows, like=like)
        return describe_set(windows, embed, rng=rng, songs=songs, asked=asked)

    known, some = look(*train, labels[0]), train[0][: len(like)]
    finish = fit_scales(known)
    not_music = [finish(look(x)) for x in (noise_like(some, rng_for(seed, "noise")), smear(some))]
    real = finish(look(*held, labels[1]))
    return set_limits(lambda *x: finish(look(*x)), finish(known), real, not_music, seed=seed)


# %% [markdown]
# The interval comes from halves: half of the generated windows against half of the songs, many
# times. Their spread is that of the whole (Shao & Wu 1989); ordinary resampling would repeat
# windows, and repetition is just what the score punishes. With fewer than four held-out songs a
# half is one song or the whole, and nothing can be said.
#
# On made-up music, decaying tones at random pitches, real scores high, and noise, one window
# repeated and a blur score low. On real music the same is a test.


# %%
#| export judge
def score_interval(
    judge: Judge,
    x: Described,  # as many generated windows as the judge has real ones
    *,
    draws: int,
    seed: int,
) -> list[float] | None:  # points, both ends of the 90 % interval; None: under four songs
    "Estimate the score's interval over windows and songs by drawing halves without replacement."
    real, rng = judge.real, rng_for(seed, "b")
    names, scores = np.unique(real.songs), []
    if len(names) < 4:
        return None
    for _ in progress(range(draws), desc="score interval"):
        songs = rng.permutation(names)[: len(names) // 2]
        rows = np.flatnonzero(np.isin(real.songs, songs))
        half = rng.permutation(len(x.songs))[: max(len(rows), 2)]
        with threadpool_limits(1):  # small matrices: threads would only wait for each other
            measured = measure(x.take(half), real.take(rows), judge.allowed)
        scores.append(join_parts(judge.place(measured)))
    middle = judge.score_described(x)
    low, high = np.quantile(scores, [0.05, 0.95]) - np.mean(scores)
    return np.clip([middle + min(low, 0), middle + max(high, 0)], 0, 100).tolist()


# %%
each = np.arange(200)
judge = make_judge((train, each), (tones(80, rng), each[:80]), seed=0)
blurred = (fresh + np.roll(fresh, 1, 2) + np.roll(fresh, 1, 1) + np.roll(fresh, 2, 2)) / 4
scores = {
    "real": judge.score(fresh),
    "noise": judge.score(noise_like(fresh, rng)),
    "one repeated": judge.score(np.repeat(fresh[:1], 80, axis=0)),
    "blurred": judge.score(blurred),
    "played backwards": judge.score(fresh[:, :, ::-1]),
}
assert scores["real"] > 85 and max(scores["noise"], scores["one repeated"]) < 25
assert scores["blurred"] < 50 and scores["played backwards"] < 60
scores
low, high = score_interval(judge, judge.describe(fresh), draws=10, seed=0)
assert low <= judge.score(fresh) <= high


# %% [markdown]
# Obedience is judged where the labels are told. Louder was called more aroused here; real windows
# with the conditions of others are as good music as ever, and lose the part that asks for more.


# %%
def rated(windows):  # arousal is loudness; valence is drawn by lot
    loud = windows.mean((1, 2))
    return np.stack([rng.uniform(-1, 1, len(windows)), (loud - loud.mean()) / 2], axis=1)


held = tones(80, rng)
labels = rated(train), rated(held)
obeying = make_judge((train, each), (held, each[:80]), seed=0, labels=labels)
asked = rated(fresh)
test_eq(list(obeying.allowed), ["arousal"])
own, others = (obeying.score(fresh, x) for x in (asked, rng.permutation(asked)))
assert own > 85 and others < 0.8 * own
print(f"as asked: {own:.0f} of 100; each told another's wish: {others:.0f}")


# %% [markdown]
# ## What fools it?
#
# A score is worth what it cost to get it wrongly. Each attempt is made of training songs, as a
# cheat would have them, and keeps their labels, so that it obeys. The page shows the run's own.


# %%
#| export attempts
def repeat_some(
    songs: np.ndarray,  # (N,) of each window
    rng: np.random.Generator,
    size: int,
) -> dict[str, np.ndarray]:  # rows (size,)
    "Choose few windows to repeat at random."
    own = np.flatnonzero(songs == songs[0])
    twenty = rng.permutation(len(songs))[:20]
    return {
        "one window, repeated": np.zeros(size, dtype=int),
        "one song's windows, repeated": rng.choice(own[:10], size),
        "twenty windows, repeated": rng.choice(twenty, size),
    }


def shuffle_blocks(windows: np.ndarray, rng: np.random.Generator, *, width: int = 8) -> np.ndarray:
    "Put blocks of frames in another order, for each window anew."
    whole = windows[:, :, : windows.shape[2] // width * width].copy()
    blocks = whole.reshape(*whole.shape[:2], -1, width)  # (n, M, blocks, width)
    order = rng.permuted(np.tile(np.arange(blocks.shape[2]), (len(windows), 1)), axis=1)
    mixed = np.take_along_axis(blocks, order[:, None, :, None], axis=2).reshape(whole.shape)
    return np.concatenate([mixed, windows[:, :, whole.shape[2] :]], axis=2)


# %%
#| export attempts
def change_windows(
    windows: np.ndarray,  # (n, M, T) real ones, in [-1, 1]
    rng: np.random.Generator,
    *,
    step: float,  # 5 dB, in the windows' units
) -> dict[str, np.ndarray]:
    "Spoil every window in one way at a time."
    n, noise = len(windows), noise_like(windows, rng)
    hiss = 0.05 * rng.standard_normal(windows.shape, dtype=np.float32)
    other, tenth = windows[rng.permutation(n)], rng.permutation(n) < n / 10
    return {
        "noise in the bands' levels": noise,
        "smeared over 5 bands x 5 frames": smear(windows),
        "smeared over 3 bands x 3 frames": smear(windows, bands=3, frames=3),
        "smeared over 5 frames": smear(windows, bands=1),
        "played backwards": windows[:, :, ::-1].copy(),
        "blocks of 8 frames shuffled": shuffle_blocks(windows, rng),
        "hiss over all": np.clip(windows + hiss, -1, 1),
        "a tenth is noise": np.where(tenth[:, None, None], noise, windows),
        "louder of two, cell by cell": np.maximum(windows, other),
        "mean of two": (windows + other) / 2,
        "5 dB quieter": np.clip(windows - step, -1, 1),
    }


def try_to_fool(
    judge: Judge,
    train: np.ndarray,  # (N, M, T) the judge's training windows
    *,
    step: float,  # 5 dB, in the windows' units
    rng: np.random.Generator,
) -> dict[str, float]:  # attempt -> score
    "Score what is no new music; the labels of the songs are what was asked."
    known = judge.train
    n = min(len(judge.real.songs), len(train))
    repeated = repeat_some(known.songs, rng, n).items()
    sets = {name: known.take(rows).as_generated() for name, rows in repeated}
    copies = known.take(np.arange(n)).as_generated()
    sets["conditions of other songs"] = replace(copies, asked=rng.permutation(copies.asked))
    sets["copies of training songs"] = copies
    for name, changed in change_windows(train[:n], rng, step=step).items():
        sets[name] = judge.describe(changed, None, copies.asked)
    return {name: judge.score_described(x) for name, x in sets.items()}


# %%
count_up = np.tile(np.arange(19.0), (3, 2, 1))
test_eq(np.sort(shuffle_blocks(count_up, rng)), count_up)
fooled = try_to_fool(obeying, train, step=0.125, rng=rng)
assert fooled["twenty windows, repeated"] < 50 < fooled["copies of training songs"]
{name: round(score) for name, score in sorted(fooled.items(), key=lambda item: item[1])}

# %% [markdown]
# ## Five pictures
#
# Examples side by side; profile over frequency; histogram of levels; level over time; the parts
# of the score. Blue is real; each generator keeps its own colour, and anything else is grey.

# %%
#| export quality_plots
GENERATOR_COLORS = {"gan": COLORS["model"], "residual": "#8d5fa8", "flow": COLORS["third"]}


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
#| export quality_plots
def plot_averages(
    sets: dict[str, np.ndarray],  # name -> windows (n, M, T) in [-1, 1]; real ones first
    audio: AudioConfig,
) -> plt.Figure:
    "Draw frequency profile, level histogram and temporal evolution of each set."
    figure, axes = subplots(1, 3)
    edges = np.linspace(audio.db_min, audio.db_max, 41)
    for i, (name, windows) in enumerate(sets.items()):
        seconds = np.arange(windows.shape[2]) * audio.hop / audio.sample_rate
        color = GENERATOR_COLORS.get(name, COLORS["floor"]) if i else COLORS["real"]
        db = audio.to_db(windows)
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
small = AudioConfig(n_mels=32)
figure = plot_side_by_side({"real": fresh, "blurred": blurred}, small)
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
        parts = [100 * record["components"][name]["part"] for name in quality["components"]]
        rows = np.arange(len(parts) + 1) + (i - (len(records) - 1) / 2) * height
        label = f"{name}: {record['score']:.0f} ({record['tier']})"
        color = GENERATOR_COLORS[name]
        axes.barh(rows, [*parts, record["score"]], height, color=color, label=label)
        if record["interval"]:
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
# ## The record
#
# What is kept of each generator, and in what words it is told. Where so few songs are held out
# that an interval or an extrapolation would be a guess, the record says none.

# %%
#| export quality_record
LEADING = 8  # directions of the extrapolated distance: more would need more songs


def endless_distances(
    x: tuple[np.ndarray, np.ndarray],  # features (n, D) and windows (n, M, T); each its own song
    real: tuple[np.ndarray, np.ndarray],
    songs: tuple[np.ndarray, np.ndarray],  # of each row
    train: np.ndarray,  # (n, M, T) windows that give the leading directions
    config: Config,
) -> dict:  # None where there are too few songs
    "Extrapolate Frechet distances in leading directions, of features and of spectrograms."
    lead = leading_directions(train.reshape(len(train), -1), LEADING)
    views = {
        "frechet_infinity": [z[0][:, :LEADING] for z in (x, real)],
        "frechet_infinity_spectrograms": [lead(z[1].reshape(len(z[1]), -1)) for z in (x, real)],
    }
    return {
        name: frechet_infinity(*pair, rng=rng_for(config.seed, "fd"), songs=songs)
        for name, pair in views.items()
    }


def obedience_record(x: Described, config: Config) -> dict:
    "Correlate what was asked with what is read, with the interval over windows or songs."
    rng = rng_for(config.seed, "obedience")
    return {
        "obedience": correlations(x.read, x.asked),
        "obedience_interval": correlation_interval(x.read, x.asked, x.songs, rng=rng),
    }


# %%
#| export quality_record
def score_record(judge: Judge, x: Described, config: Config) -> dict:
    "Score windows: score, tier, interval, and every component with its floor and ceiling."
    measured, tiers = measure(x, judge.real, judge.allowed), config.quality
    parts = judge.place(measured)
    score = join_parts(parts)
    table = pd.DataFrame({"value": measured, "floor": judge.floor, "ceiling": judge.ceiling})
    weighted = table.loc[list(parts)]
    weighted["part"] = pd.Series(parts)
    weights = pd.Series({name: weight for name, (_, weight) in SCORE_PARTS.items()})[list(parts)]
    weighted["weight"] = weights / weights.sum()
    return {
        "score": score,
        "tier": ["poor", "good", "excellent"][(score >= tiers.good) + (score >= tiers.excellent)],
        "interval": score_interval(judge, x, draws=tiers.bootstrap, seed=config.seed),
        "components": weighted.to_dict("index"),
        "beside": table.drop(index=list(parts)).to_dict("index"),
    } | obedience_record(x, config)


def copy_record(
    x: Described,
    real: Described,  # held-out
    near: Described,  # all windows of training songs that may have been copied
    config: Config,
) -> tuple[dict, np.ndarray]:  # the record, and the row of the nearest training window (n,)
    "Measure how near windows lie to training songs, beside how near strangers do: held-out songs."
    distance, row = nearest_training(x.features, near.features)
    strangers = np.median(nearest_training(real.features, near.features)[0])
    copied = (distance < config.quality.copied_below * strangers).mean()
    found = {"copying": float(np.median(distance)), "copied": float(copied)}
    return found | {"nearest_songs": near.songs[row].tolist()}, row


# %%
#| export quality_record
def real_record(judge: Judge, near: Described, config: Config) -> dict:
    "Measure what real music gets: training songs' score, held-out songs' obedience and copying."
    train, real = judge.train, judge.real
    x = train.take(np.arange(len(train.songs)) < len(real.songs))
    measured = measure(x.as_generated(), real, judge.allowed)
    record = {
        "score": join_parts(judge.place(measured)),
        "coverage": measured["coverage"],
        "allowed": judge.allowed,
    }
    return record | obedience_record(real, config) | copy_record(real, real, near, config)[0]


def family_record(
    generated: dict,  # windows of each generator, (n, M, T)
    held: np.ndarray,  # (n, M, T)
    train: np.ndarray,  # (n, M, T)
    config: Config,
) -> dict:
    "Measure the five families of every set, and as a ratio to held-out songs."
    noise = noise_like(train, rng_for(config.seed, "noise"))
    sets = generated | {"real": held, "training": train, "noise": noise}
    families = {name: describe_families(x, held, config.audio) for name, x in sets.items()}
    return {"families": families, "ratios": ratio_to_real(families)}


# %%
#| export quality_record
def explain_quality(quality: dict) -> str:
    "Say in words what was compared, how far that carries, and who copies."
    few = " So few songs say little: a generator that repeats a few windows covers them all."
    interval, allowed = quality["interval"], quality["held_out"]["allowed"]
    between = "90 % interval {:.0f} to {:.0f}".format(*interval) if interval else "no interval"
    lines = [
        f"{quality['best']}: score {quality['score']:.0f} of 100 ({quality['tier']}), {between}: "
        f"{quality['windows']} windows against real ones from "
        f"{quality['songs']} held-out songs, as {quality['embedding']} see them."
        + few * (quality["songs"] < 20)
        + " Under four songs give no interval." * (not interval),
        "Obedience counts up to what held-out songs surely reach: "
        + ", ".join(f"{k} r = {v:.2f}" for k, v in allowed.items())
        + "."
        if "obedience" in quality["components"]
        else "Obedience does not count: chance reaches as much as held-out songs surely do."
        if allowed
        else "Obedience does not count: held-out songs show no sure correlation themselves.",
    ]
    if left := [name for name in quality["beside"] if name in SCORE_PARTS and name != "obedience"]:
        lines.append(f"Left out, as it cannot tell so few songs from none: {', '.join(left)}.")
    if quality["chosen_by"] == "held":
        lines.append(
            "Generators were ranked on all held-out songs, as there is one validation song: "
            "the best one's score is a little flattered."
        )
    usual = quality["held_out"]["copied"]
    for name, record in quality["generators"].items():
        if record["copied"] > usual + 0.1:
            lines.append(
                f"WARNING: {name} copies: {record['copied']:.0%} of its windows lie much nearer to "
                f"a training song than held-out songs usually do ({usual:.0%} of those). Its "
                "score says how like music they are, not that they are new."
            )
    return "\n".join(lines)


# %%
sure = {"best": "flow", "score": 61.0, "tier": "good", "interval": [40, 80], "windows": 40}
told = sure | {"songs": 4, "embedding": "statistics", "chosen_by": "val"}
told["held_out"] = {"copied": 0.0, "allowed": {"arousal": 0.5}}
told |= {"generators": {"flow": {"copied": 0.0}}, "components": {}, "beside": {}}
assert "say little" in explain_quality(told)
assert "say little" not in explain_quality(told | {"songs": 70})
assert "no interval" in explain_quality(told | {"interval": None})
assert "one validation song" in explain_quality(told | {"chosen_by": "held"})
assert "flow copies: 90%" in explain_quality(told | {"generators": {"flow": {"copied": 0.9}}})


# %%
#| export quality_record
def compare_generators(
    quality: dict,  # content of gan_quality.json
    times: dict[str, dict],  # as read_times gives it
) -> pd.DataFrame:  # a column a generator, and real music
    "Set the generators side by side, beside what real music gets."
    columns = {}
    for name, x in (quality["generators"] | {"real music": quality["held_out"]}).items():
        measured = x.get("components", {}) | x.get("beside", {})
        covered = measured["coverage"]["value"] if measured else x["coverage"]
        low, high = x.get("interval") or (np.nan, np.nan)
        numbers = {"score (points)": x["score"], "tier": x.get("tier")}
        numbers |= {"interval, from (points)": low, "interval, to (points)": high}
        for axis, r in x["obedience"].items():
            ends = x["obedience_interval"][axis]
            numbers[f"obedience, {axis} (r)"] = r
            numbers[f"obedience, {axis}, 90 % interval (r)"] = (
                "{:z.2f} to {:z.2f}".format(*ends) if ends else None
            )
        columns[name] = numbers | {
            "coverage (share)": covered,
            "Frechet distance, endless songs": x["frechet_infinity"],
            "the same on spectrograms ([-1, 1]^2)": x["frechet_infinity_spectrograms"],
            "distance to the nearest training window": x["copying"],
            "copied (share of windows)": x["copied"],
        }
        columns[name] |= times.get(name, {"training (s)": None, "drawing (s a window)": None})
    table = pd.DataFrame(columns, dtype=object)
    return table.map(lambda x: "-" if pd.isna(x) else x if isinstance(x, str) else f"{x:.3g}")


# %%
row = {"score": 61.0, "obedience": {"arousal": 0.4}, "obedience_interval": {"arousal": [0.2, 0.6]}}
row |= {"frechet_infinity": None, "frechet_infinity_spectrograms": 2.0, "copying": 3.0}
row |= {"copied": 0.0, "coverage": 0.5, "interval": None}
table = compare_generators({"generators": {"flow": row}, "held_out": row}, {})
test_eq(table.loc["Frechet distance, endless songs", "flow"], "-")  # too few songs
test_eq(table.loc["obedience, arousal, 90 % interval (r)", "flow"], "0.20 to 0.60")


# %% [markdown]
# ## The stage
#
# Equal numbers of generated, training and held-out windows are compared, and at most ten of a
# song. With windows as long as the clip there is one of each song. All generators of a run stand
# before one judge. The better one, whose songs will train the predictor, is chosen on validation
# songs alone, so that the test songs have no say in it; the run's score is that one's. One
# validation song is too few for a judge: then all held-out songs rank them, and the page says so.


# %%
#| export
def real_windows(
    run: Run,
    config: Config,
    split: str,  # train, val, or held: validation and test
    *,
    most: int = 10,  # windows of a song
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # windows, song_id and labels of each
    "Cut windows of the generator's width out of real songs, in a mixed order."
    parts = [load_part(run, name) for name in (("val", "test") if split == "held" else (split,))]
    songs = pd.concat([table for table, _ in parts], ignore_index=True)
    log_mel = np.concatenate([array for _, array in parts])
    width, frames = config.gan.frames, songs["frames"].to_numpy()
    room = int(max(np.median(frames) - width, 0))
    count = min(most, 1 + 4 * room // width)  # neighbours may share three quarters
    windows, song = cut_windows(log_mel, frames, width, per_song=count)
    order = rng_for(config.seed, "quality", split).permutation(len(windows))
    song, labels = song[order], songs[["valence", "arousal"]].to_numpy()
    names = songs.get("song_id", songs.index.to_series()).to_numpy()  # its place, if it has no id
    return windows[order], names[song], labels[song]


def load_samples(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    "Read what a generator drew in section 5, windows and emotions; raises MusemoError."
    asked = run.load(f"{name}_samples.csv")[["valence", "arousal"]].to_numpy()
    return check_windows(run.load(f"{name}_samples.npy")), asked


def read_times(run: Run, names: list[str]) -> dict[str, dict]:  # s of training, s a window
    "Read what generators took; they stay out of the record, which is the same in each run."
    found = {name: f"{name}_times.json" for name in names}
    times = {name: run.load(file) for name, file in found.items() if run.has(file)}
    return {
        name: {"training (s)": x["step"] * x["steps"], "drawing (s a window)": x["drawing"]}
        for name, x in times.items()
    }


# %%
#| export
def vit_embedding(run: Run, config: Config) -> Callable:  # (n, M, T) -> (n, D)
    "Make an embedding of this run's own ViT; raises MusemoError where it is not trained."
    if not (run.has("vit.safetensors") and run.has("vit_history.json")):
        raise MusemoError(
            f"quality.embedding = 'vit': {run.path('vit.safetensors')} is not there; "
            "run sections 1-11 with quality.embedding=statistics first, then go on with "
            "--from 6 --set quality.embedding=vit"
        )
    model = revive_vit(run.load("vit_history.json")["model"], run.load("vit.safetensors"))
    device, side = pick_device(config.device), config.dataset.image_size
    model, norm = model.eval().to(device), {"mean": model.mean, "std": model.std}

    def look(windows):  # (B, M, T) -> (B, D)
        width = config.window if not side else windows.shape[2]
        starts = range(0, max(windows.shape[2] - width, 0) + 1, width)
        frames = (
            torch.arange(width, device=windows.device) % windows.shape[2]
        )  # again from the start
        pixels = [to_pixels(windows[..., frames + start], side, **norm) for start in starts]
        seen = [model.backbone(pixel_values=x).last_hidden_state[:, 0] for x in pixels]
        return torch.stack(seen).mean(0)

    return torch_embedding(look, device=device)


def choose_embedding(run: Run, config: Config) -> Callable:  # (n, M, T) -> (n, D)
    "Make the embedding that the configuration names; raises MusemoError."
    if config.quality.embedding == "statistics":
        return window_statistics
    if config.quality.embedding == "vit":
        return vit_embedding(run, config)
    device, rate = pick_device(config.device), config.audio.sample_rate

    def to_wave(windows):
        return invert_log_mel(windows, config, seed=config.seed, device=device)

    return audio_embedding(config.quality.embedding, to_wave, sample_rate=rate, device=device)


# %%
#| export
@dataclass(frozen=True)
class Compared:
    "What the stage compared, for the page to show."

    quality: dict  # as in gan_quality.json
    generated: dict[str, np.ndarray]  # (n, M, T) of each generator, the best first
    real: np.ndarray  # (n, M, T) held-out
    nearest: np.ndarray  # (n, M, T) the training window nearest to each of the best generator's
    times: dict[str, dict]  # of each generator, as read_times gives it


_quality_units = {
    "score": "points, 0-100, of the best generator; interval: 90 %, null: under 4 songs",
    "best": "by validation_score, points on the songs that chosen_by names",
    "embedding": "statistics, vit, or the audio model or function that judged",
    "generators": "a record each, in the units of this file",
    "components": "floor: no music; ceiling: real songs; part: 0-1; weight: share",
    "frechet": "whitened features squared; frechet_infinity: the same in 8 directions, "
    "extrapolated; frechet_infinity_spectrograms: [-1, 1] squared; null: under 24 songs",
    "patch_frechet": "[-1, 1] squared; kernel, texture_kernel: squared MMD",
    "sharpness_time": "log ratio, as sharpness_frequency; onsets: arsinh of a skewness; "
    "loudest: [-1, 1]",
    "coverage": "share, as precision, recall, distinct; diversity; density: x",
    "obedience": "Pearson r of asked and read; obedience_interval: 90 %; as a component: the "
    "mean of the axes in allowed, none above it",
    "allowed": "Pearson r that 19 of 20 draws of held-out songs reach; other axes do not count",
    "copying": "median distance to the nearest training window, whitened features",
    "copied": "share of windows nearer than quality.copied_below of held-out ones' median",
    "nearest_songs": "song_id of the training window nearest to each window",
    "noise": "points that noise in the bands' levels gets",
    "attempts": "points that each attempt to fool the judge gets; null: not tried",
    "windows": "count; songs: count, held out",
    "families": "in the name of each row; ratios: x real held-out; Frechet: x training songs'",
}


# %%
#| export
def choose_generator(
    run: Run,
    config: Config,
    samples: dict[str, tuple[np.ndarray, np.ndarray]],  # windows (n, M, T), conditions (n, 2)
    judge: Judge,  # of all held-out songs
) -> tuple[dict[str, float | None], str | None]:  # scores, the best first; songs that ranked them
    "Rank generators without the test songs, if two songs or more are for validation."
    if len(samples) == 1:
        return dict.fromkeys(samples), None
    held, songs, labels = real_windows(run, config, "val")
    split = "held" if len(np.unique(songs)) < 2 else "val"
    if split == "val":
        count = min(len(held), *(len(x) for x, _ in samples.values()))
        real = judge.describe(held[:count], songs[:count], labels[:count])
        judge = set_limits(judge.describe, judge.train, real, judge.not_music, seed=config.seed)
    scores = {name: judge.score(*drawn) for name, drawn in samples.items()}
    return dict(sorted(scores.items(), key=lambda item: -item[1])), split


def judge_each(
    judge: Judge,
    samples: dict[str, tuple[np.ndarray, np.ndarray]],  # windows (n, M, T), conditions (n, 2)
    known: tuple[np.ndarray, np.ndarray],  # training and held-out windows (n, M, T)
    near: Described,  # all windows of training songs that may have been copied
    config: Config,
) -> tuple[dict, dict]:  # records of generators and of real music; rows of the nearest windows
    "Record each generator, and training songs as what real music gets."
    train, held = known
    n, records, rows = len(held), {}, {}
    real = judge.real.features, held
    for name, (windows, asked) in samples.items():
        x = judge.describe(windows, None, asked)
        copying, rows[name] = copy_record(x, judge.real, near, config)
        songs, drawn = (x.songs, judge.real.songs), (x.features, windows)
        records[name] = score_record(judge, x, config) | copying
        records[name] |= endless_distances(drawn, real, songs, train, config)
    songs, drawn = (judge.train.songs[:n], judge.real.songs), (judge.train.features[:n], train)
    records["real"] = real_record(judge, near, config)
    records["real"] |= endless_distances(drawn, real, songs, train, config)
    return records, rows


# %%
#| export
MOST_NEAR = 6000  # training windows among which copies are looked for; but ten of each song


def judge_generators(
    run: Run,
    config: Config,
    *,
    embed: Callable | None = None,  # (n, M, T) -> (n, D); None: as quality.embedding says
) -> Compared:
    "Judge the run's generators and write gan_quality.json; raises MusemoError for bad samples."
    samples = {name: load_samples(run, name) for name in config.generators}
    named, hear = config.quality.embedding, embed or choose_embedding(run, config)
    train, held = (real_windows(run, config, split) for split in ("train", "held"))
    n = min(len(train[0]), len(held[0]), *(len(asked) for _, asked in samples.values()))
    held, known = [x[:n] for x in held], train[0][:n]
    labels = train[2], held[2]
    judge = make_judge(train[:2], held[:2], labels=labels, seed=config.seed, embed=hear)
    samples = {name: (x[:n], asked[:n]) for name, (x, asked) in samples.items()}
    chosen, split = choose_generator(run, config, samples, judge)
    samples = {name: samples[name] for name in chosen}  # the best first
    slow = embed is None and named not in ("statistics", "vit")  # sound is made of each window
    many, others, near = MOST_NEAR // len(np.unique(train[1])), train, judge.train
    if many > 10 and not slow:
        others = real_windows(run, config, "train", most=many)
        near = judge.describe(*others)
    records, rows = judge_each(judge, samples, (known, held[0]), near, config)
    real = records.pop("real")
    for name, score in chosen.items():
        records[name]["validation_score"] = score
    best, generated = next(iter(chosen)), {name: x for name, (x, _) in samples.items()}
    rng, step = rng_for(config.seed, "fool"), 10 / (config.audio.db_max - config.audio.db_min)
    attempts = None if slow else try_to_fool(judge, train[0], step=step, rng=rng)
    quality = records[best] | {"best": best, "chosen_by": split, "embedding": named}
    if embed:
        quality["embedding"] = getattr(embed, "__name__", type(embed).__name__)
    quality |= {"generators": records, "windows": n, "songs": len(np.unique(held[1]))}
    noise = judge.score_described(judge.not_music[0].take(np.arange(n)))
    quality |= {"held_out": real, "noise": noise, "attempts": attempts}
    quality |= family_record(generated, held[0], known, config) | {"units": _quality_units}
    run.save("gan_quality.json", quality)
    return Compared(quality, generated, held[0], others[0][rows[best]], read_times(run, [*chosen]))


# %% [markdown]
# ## On the run
#
# What section 5 drew, against songs that it never saw. The interval covers windows and songs,
# not the training: another seed may train better or worse.

# %% tags=["parameters"]
run_folder = None  # a run's folder; None: a run at the smoke size, made on the spot

# %%
#| hide
from musemo.opening import open_run

run, config = open_run(run_folder, before=6)

# %%
compared = judge_generators(run, config)
quality = compared.quality
print(explain_quality(quality))
parts_figure = plot_parts(quality, config)
compare_generators(quality, compared.times)

# %% [markdown]
# Real music is the mark: training songs' score, and what held-out songs get elsewhere. No obedience
# can be asked to exceed theirs, and no distance to the training songs should be much smaller. With
# enough songs real ones come near 100 and noise near 1; with the few of a smoke run they need not.
# The same on spectrograms has no axis of ours in it, only the eight directions in which training
# songs differ most.
#
# What fools it, and by how much: all of these are made of this run's training songs, with their
# labels. What stands far above half of real songs' points is a hole: the louder of two songs, a
# few spoilt windows among many, a slight change of level. Copies score as music does; only the
# distance to the nearest training song exposes them.

# %%
if quality["attempts"]:
    display(pd.Series(quality["attempts"], name="score (points)").sort_values().round().to_frame())

# %% [markdown]
# The parts in numbers, and beside them what has no weight: precision, recall and density, and what
# cannot tell these songs from noise.
#
# The specification's families: generated music should stand where real and training stand.
# Noise, beside them, has the right moments and profile: these alone prove nothing.

# %%
rows = {
    (key, name): row
    for name, record in quality["generators"].items()
    for key, row in (record["components"] | record["beside"]).items()
}
display(pd.DataFrame(rows).T.sort_index(level=0, sort_remaining=False).round(3))
families, ratios = (pd.DataFrame(quality[key]) for key in ("families", "ratios"))
ratios = ratios.drop(columns="real").add_suffix(" / real")
pd.concat([families, ratios], axis=1).astype(float).round(2)

# %% [markdown]
# Real above, the generators below. Look for onsets (upright edges) and partials (level lines).

# %%
pictures = {"held-out real": compared.real, **compared.generated}
figure = plot_side_by_side(pictures, config.audio)
figure = plot_averages(pictures, config.audio)

# %% [markdown]
# Does it copy? Generated windows below the training windows that are nearest to them, as the
# embedding sees it, and the songs that these are of. One song over and over would be a warning.

# %%
best = quality["best"]
pictures = {"nearest in training": compared.nearest, best: compared.generated[best]}
figure = plot_side_by_side(pictures, config.audio)
nearest = pd.Series(quality["nearest_songs"]).value_counts().rename_axis("nearest song_id")
display(nearest.head(5).to_frame("windows (count)"))

# %%
told = [f"{name} {record['score']:.0f}" for name, record in quality["generators"].items()]
marks = f"noise {quality['noise']:.0f}, real songs {quality['held_out']['score']:.0f}"
run.headline(
    "06_gan_quality",
    f"{', '.join(told)} of 100 points ({marks})",
    parts_figure,
)
