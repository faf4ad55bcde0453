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
#| export judge
from collections.abc import Callable
from dataclasses import dataclass

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
)
from musemo.embeddings import (
    check_features,
    cut_patches,
    whiten,
    window_statistics,
    window_texture,
)

# %%
#| export
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from musemo.audio import invert_log_mel
from musemo.config import Config
from musemo.core import Run, cut_windows, load_part, pick_device, rng_for
from musemo.distance import (
    check_windows,
    correlations,
    describe_families,
    fit_reader,
    frechet_infinity,
    nearest_training,
    noise_like,
    ratio_to_real,
)
from musemo.embeddings import audio_embedding, window_statistics
from musemo.judge import (
    SCORE_PARTS,
    Described,
    Judge,
    join_parts,
    make_judge,
    measure,
    score_interval,
)

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
# Noise with the real means and spreads is the floor of every measure: it looks right to a mean
# and sounds like rain.


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


def noise_like(windows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    "Draw Gaussian noise with the mean and spread of each band, (n, M, T) in [-1, 1]."
    mean, spread = windows.mean((0, 2))[:, None], windows.std((0, 2))[:, None]
    noise = rng.standard_normal(windows.shape, dtype=np.float32)
    return np.clip(mean + spread * noise, -1, 1)


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


# %% [markdown]
# Few windows look further apart than they are: the distance of two samples of one distribution
# shrinks with 1/n. A line through smaller samples, drawn on to 1/n = 0, takes that out.
#
# The kernel distance sees any difference in shape, not only in mean and covariance. It is
# unbiased: between two samples of one distribution it is zero on average, so it may be negative.


# %%
#| export distance
def frechet_infinity(
    a: np.ndarray,  # (n, D), n well above D: below it the distance is no line in 1/n
    b: np.ndarray,  # (m, D)
    *,
    rng: np.random.Generator,
    sizes: int = 12,  # sample sizes, from half of the rows to all
) -> float:  # features' unit squared; about 0 for one distribution, so it may be negative
    "Extrapolate the Frechet distance to endless samples (Chong & Forsyth 2020)."
    shares, found = 1 / np.linspace(1, 2, sizes), []  # evenly spaced in 1/n
    for share in shares:
        some = (x[rng.permutation(len(x))[: max(round(share * len(x)), 2)]] for x in (a, b))
        found.append(frechet_distance(*some))
    return float(np.polyfit(1 / shares, found, 1)[1])


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
a, b = rng.normal(size=(400, 8)), rng.normal(size=(400, 8)) + 0.5  # 8 x 0.25 = 2 apart
test_close(frechet_infinity(a, b, rng=rng), 2, eps=0.5)
test_close(frechet_infinity(a, b - 0.5, rng=rng), 0, eps=0.3)
test_close(np.mean([kernel_distance(*rng.normal(size=(2, 50, 4))) for _ in range(50)]), 0, 0.01)
assert kernel_distance(rng.normal(size=(50, 4)) + 1, rng.normal(size=(50, 4))) > 0.2


# %% [markdown]
# ## Variety
#
# Each row has a neighbourhood that reaches to its k-th nearest row of another song. Precision and
# density ask whether generated windows lie in those of real music; coverage and recall whether
# real music is reached (Naeem 2020). Diversity is the share of windows that differ: of two
# hundred that repeat twenty it is at most 10 % (Leinster & Cobbold 2012), and a slight change of
# each does not hide it.


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
        raise MusemoError("all windows are of one song: neighbours are sought in others")
    return np.sort(between, 1)[:, neighbours - 1]


def measure_variety(
    a: np.ndarray,  # (n, D)
    real: np.ndarray,  # (m, D)
    songs: tuple[np.ndarray, np.ndarray],  # song of each row of `a`, and of each real row
    *,
    neighbours: int = 3,
) -> dict:  # shares 0..1; density may exceed 1
    "Measure precision, recall, density and coverage of `a`, and how many of its rows differ."
    within, between = squared_distances(a, a), squared_distances(a, real)  # (n, n), (n, m)
    apart = squared_distances(real, real)
    reach = neighbour_radius(apart, songs[1], neighbours)
    inside = between <= reach  # a zero radius holds what lies on it
    own = neighbour_radius(within, songs[0], neighbours)
    alike = max(np.median(neighbour_radius(apart, songs[1], 1)) / 8, 1e-12)
    return {
        "precision": float(inside.any(1).mean()),
        "recall": float((between <= own[:, None]).any(0).mean()),
        "density": float(inside.sum(1).mean() / neighbours),
        "coverage": float(inside.any(0).mean()),
        "diversity": float(1 / len(a) / np.exp(-within / alike).mean()),
    }


# %%
real, each = rng.normal(size=(60, 3)), (np.arange(60), np.arange(60))
test_eq(measure_variety(real, real, each)["coverage"], 1.0)
test_eq(measure_variety(real + 50, real, each)["coverage"], 0.0)
assert measure_variety(np.repeat(real[:20], 3, 0), real, each)["diversity"] <= 20 / 60


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
    "Make the map that gives training features zero mean and about unit covariance, within ends."
    ends = np.quantile(features, [tail, 1 - tail], axis=0)
    inner = np.clip(features, *ends)
    mean, spread = inner.mean(0), np.maximum(inner.std(0), 0.01)
    values, vectors = np.linalg.eigh(np.cov(((inner - mean) / spread).T))
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


def window_texture(
    windows: np.ndarray,  # (n, M, T) in [-1, 1]
    *,
    zones: int = 4,  # of neighbouring bands
    reaches: tuple[int, ...] = (1, 4, 16),  # cells; too wide ones are left out
    quiet: float = 0.01,  # changes below count as none
) -> np.ndarray:  # (n, D)
    "Describe changes in time and frequency by log size, skewness and log peakiness."
    out, parts = [], np.array_split(windows, zones, axis=1)
    for x in (*parts, *(part.swapaxes(1, 2) for part in parts)):
        for reach in (r for r in reaches if 2 * r <= x.shape[2]):
            change = side_difference(x, reach).reshape(len(x), -1)
            square = change * change
            size = np.sqrt(square.mean(1)) + quiet / 10
            skewness = np.einsum("ij,ij->i", square, change) / change.shape[1] / size**3
            peak = np.log(size / (np.abs(change).mean(1) + quiet / 10))
            out += [np.log(size + quiet), skewness, peak]
    return np.stack(out, axis=1).astype(np.float64)


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
test_eq(window_texture(windows).shape, (400, 3 * (4 * 2 + 4 * 2)))  # 8 bands x 20 frames a zone
test_eq(cut_patches(windows, rng).shape, (400, 20, 64))
test_close(cut_patches(windows, rng).mean(2), 0, eps=1e-6)


# %% [markdown]
# ## Other ears
#
# Any callable from windows to rows will do for an embedding. A torch model is wrapped, so that
# the run's own ViT can judge: `lambda x: vit.backbone(to_pixels(x, size)).last_hidden_state[:, 0]`.
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
        return np.concatenate([model(x.to(device)).double().cpu().numpy() for x in parts])

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
def load_ears(
    name: str,  # local folder or hub name of an audio model with its feature extractor
) -> tuple:  # model, feature extractor
    "Load an audio model of transformers; raises MusemoError with the ways out."
    ways = (
        "ways out: quality.embedding=FOLDER with config.json, preprocessor_config.json and "
        "model.safetensors of an audio model, or quality.embedding=statistics"
    )
    import transformers  # takes seconds, and only these judges need it

    try:
        extractor = transformers.AutoFeatureExtractor.from_pretrained(name)
        model, info = transformers.AutoModel.from_pretrained(
            name, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # transformers, safetensors and the hub each raise their own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        message = f"quality.embedding = {name!r}: cannot be had ({reason}); {ways}"
        raise MusemoError(message) from error
    lacking = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if lacking or not hasattr(extractor, "sampling_rate"):
        fault = f"{len(lacking)} weights are missing, e.g. {lacking[0]}" if lacking else "no audio"
        raise MusemoError(f"quality.embedding = {name!r}: {fault}; {ways}")
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
                heard.append(pool_tokens(hear(**inputs.to(device))).double().cpu().numpy())
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
# something. Noise passes moments and profile: these are told, and weigh nothing in the score.
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
    "Divide each set's measures by those of the set named real; None where that is zero."
    return {
        name: {
            key: value / real if (real := families["real"][key]) else None
            for key, value in row.items()
        }
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
test_eq(
    ratio_to_real({"real": {"x": 2.0, "y": 0.0}, "gan": {"x": 3.0, "y": 1.0}})["gan"],
    {"x": 1.5, "y": None},
)


# %% [markdown]
# ## Does it obey? Does it copy?
#
# A ridge regression learns valence and arousal from real training windows and reads them from
# generated ones. What it reads from held-out real windows is the most that can be asked.
#
# Copies of training music would score like music. So each generated window is held against its
# nearest training window; held-out songs say how near strangers come.


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


def nearest_training(
    features: np.ndarray,  # (n, D)
    train: np.ndarray,  # (N, D)
) -> tuple[np.ndarray, np.ndarray]:  # distance (n,), row of the nearest (n,)
    "Find the nearest training window of each window."
    between = squared_distances(features, train)
    return np.sqrt(between.min(1)), between.argmin(1)


# %%
level = fresh.mean((1, 2))
asked = np.stack([rng.uniform(-1, 1, 80), (level - level.mean()) / 2], 1)
features = whiten(window_statistics(train))(window_statistics(fresh))
read = fit_reader(features[:40], asked[:40])(features[40:])
found = correlations(read, asked[40:])
assert found["arousal"] > 0.5 > abs(found["valence"])
test_eq(correlations(np.zeros((4, 2)), np.zeros((4, 2)))["valence"], None)
found
distance, row = nearest_training(features[:3] + 0.01, features)
test_eq(row, [0, 1, 2])
assert distance.max() < 0.2

# %% [markdown]
# ## From seven measures to one score
#
# Texture is how a window looks from near, distribution how the set looks from afar, variety
# what it leaves out. The parts are joined as a weighted geometric mean: an arithmetic one gives
# twenty repeated windows a good mark, because most things are right about them.
#
# A distance is placed between noise (0) and real training songs (1) on a logarithmic scale; it
# spans at most a factor of a hundred, so that a ceiling near zero does not make it endless.

# %%
#| export judge
SCORE_PARTS = {  # name: (family, weight); the weights add up to 1
    "patch_frechet": ("texture", 0.15),
    "texture_kernel": ("texture", 0.25),
    "frechet": ("distribution", 0.10),
    "kernel": ("distribution", 0.15),
    "coverage": ("variety", 0.05),
    "recall": ("variety", 0.15),
    "diversity": ("variety", 0.15),
}
LOWEST_PART = 0.01  # no part counts less, so that a bad score still tells bad from worse


def place_part(
    name: str,  # of SCORE_PARTS
    value: float,
    floor: float,  # noise
    ceiling: float,  # real training songs
) -> float:  # LOWEST_PART .. 1
    "Place one measure between its floor and its ceiling."
    if SCORE_PARTS[name][0] == "variety":
        part = (value - floor) / max(ceiling - floor, 1e-9)
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
# ## The judge
#
# A judge is made once for a data set and a width: reference windows from held-out songs, the
# floor and the ceiling. It then judges any set of the same size. The embedding decides what is
# near to what; texture is always its own, so that no embedding can be deaf to it.
#
# The floor is noise. The ceiling is what nine of ten draws of real music reach: each takes as
# many training songs, and windows, as were held out. What real songs miss by chance, a generator
# may miss.


# %%
#| export judge
@dataclass(frozen=True)
class Described:
    "What the judge keeps of each window, so that any subset is measured quickly."

    features: np.ndarray  # (n, D) whitened embedding
    texture: np.ndarray  # (n, K) whitened
    patches: np.ndarray  # (n, P, side * side)
    songs: np.ndarray  # (n,) where a window is from; generated: its own number

    def take(self, rows: np.ndarray) -> "Described":
        "Keep some windows."
        kept = (self.features, self.texture, self.patches, self.songs)
        return Described(*(array[rows] for array in kept))


def measure(
    x: Described,
    real: Described,  # as many windows: the distances depend on the number
) -> dict:  # of each measure; 0 is best in distances, 1 in shares
    "Measure one set of windows against real ones."
    patches = (z.patches.reshape(-1, z.patches.shape[2]) for z in (x, real))
    return {
        "patch_frechet": frechet_distance(*patches),
        "texture_kernel": kernel_distance(x.texture, real.texture),
        "frechet": frechet_distance(x.features, real.features),
        "kernel": kernel_distance(x.features, real.features),
    } | measure_variety(x.features, real.features, (x.songs, real.songs))


# %%
#| export judge
@dataclass(frozen=True)
class Judge:
    "Real reference windows with the floor and the ceiling of every measure."

    describe: Callable  # (n, M, T) windows, songs -> Described
    train: Described  # N training windows
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
        "Place the parts of the score between floor and ceiling, 0..1."
        return {
            name: place_part(name, measured[name], self.floor[name], self.ceiling[name])
            for name in SCORE_PARTS
        }

    def score(self, windows: np.ndarray) -> float:
        "Score windows, 0-100."
        return join_parts(self.place(self.measure(windows)))


# %%
#| export judge
CEILING_DRAWS = 10
CEILING_SHARE = 0.9  # of the draws, that reach the ceiling
HIGHER_IS_BETTER = ("precision", "recall", "density", "coverage", "diversity")


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
        found.append(measure(train.take(rows), real))
    table = pd.DataFrame(found)
    return {
        name: float(table[name].quantile(abs(CEILING_SHARE - (name in HIGHER_IS_BETTER))))
        for name in table
    }


# %%
#| export judge
def make_judge(
    train: tuple[np.ndarray, np.ndarray],  # windows (N, M, T) of training songs; song of each
    held: tuple[np.ndarray, np.ndarray],  # windows (n, M, T) of held-out songs; song of each
    *,
    seed: int,
    embed: Callable = window_statistics,  # (n, M, T) -> (n, D)
) -> Judge:
    "Make a judge; raises MusemoError where fewer than two songs are on a side."
    for songs, name in ((train[1], "to train"), (held[1], "held out")):
        if len(np.unique(songs)) < 2:
            raise MusemoError(
                f"{len(np.unique(songs))} song {name}: two or more are needed to judge; "
                "use more songs, or change data.validation and data.test"
            )
    like = check_windows(held[0])
    known = check_windows(train[0], like=like)
    features, texture = check_features(embed(known), len(known)), window_texture(known)
    scale, scale_texture = whiten(features), whiten(texture)
    rng = rng_for(seed, "ceiling")

    def describe(windows, songs=None):
        windows = check_windows(windows, like=like)
        x = scale(check_features(embed(windows), len(windows)))
        patches = cut_patches(windows, rng_for(seed, "patches"))
        songs = np.arange(len(windows)) if songs is None else songs
        return Described(x, scale_texture(window_texture(windows)), patches, songs)

    patches = cut_patches(known, rng_for(seed, "patches"))
    train = Described(scale(features), scale_texture(texture), patches, train[1])
    real = describe(*held)
    floor = measure(describe(noise_like(known[: len(like)], rng)), real)
    return Judge(describe, train, real, floor, find_ceiling(train, real, rng))


# %% [markdown]
# The interval comes from halves: half of the generated windows against half of the songs, many
# times. Their spread is that of the whole (Shao & Wu 1989); ordinary resampling would repeat
# windows, and repetition is just what the score punishes.
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
) -> list[float]:  # points, lower and upper end of the 90 % interval
    "Estimate the score's interval over windows and songs by drawing halves without replacement."
    real, rng = judge.real, rng_for(seed, "b")
    names, scores = np.unique(real.songs), []
    for _ in progress(range(draws), desc="score interval"):
        songs = rng.permutation(names)[: max(len(names) // 2, 2)]
        rows = np.flatnonzero(np.isin(real.songs, songs))
        half = rng.permutation(len(x.songs))[: max(len(rows), 2)]
        with threadpool_limits(1):  # small matrices: threads would only wait for each other
            measured = measure(x.take(half), real.take(rows))
        scores.append(join_parts(judge.place(measured)))
    middle = join_parts(judge.place(measure(x, real)))
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
}
assert scores["real"] > 85 and max(scores["noise"], scores["one repeated"]) < 25
assert scores["blurred"] < 50
scores
low, high = score_interval(judge, judge.describe(fresh), draws=10, seed=0)
assert low <= judge.score(fresh) <= high

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
        parts = [100 * part["part"] for part in record["components"].values()]
        rows = np.arange(len(parts) + 1) + (i - (len(records) - 1) / 2) * height
        label = f"{name}: {record['score']:.0f} ({record['tier']})"
        color = GENERATOR_COLORS[name]
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


def load_samples(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    "Read what a generator drew in section 5, windows and emotions; raises MusemoError."
    asked = run.load(f"{name}_samples.csv")[["valence", "arousal"]].to_numpy()
    return check_windows(run.load(f"{name}_samples.npy")), asked


def choose_embedding(config: Config) -> Callable:  # (n, M, T) -> (n, D)
    "Make the embedding that the configuration names; raises MusemoError."
    if config.quality.embedding == "statistics":
        return window_statistics
    device, rate = pick_device(config.device), config.audio.sample_rate

    def to_wave(windows):
        return invert_log_mel(windows, config, seed=config.seed, device=device)

    return audio_embedding(config.quality.embedding, to_wave, sample_rate=rate, device=device)


# %%
#| export
def score_record(judge: Judge, x: Described, config: Config) -> dict:
    "Score windows: score, tier, interval, and every component with its floor and ceiling."
    measured, tiers = measure(x, judge.real), config.quality
    parts = judge.place(measured)
    score = join_parts(parts)
    table = pd.DataFrame({"value": measured, "floor": judge.floor, "ceiling": judge.ceiling})
    weighted = table.loc[list(SCORE_PARTS)]
    weighted["part"] = pd.Series(parts)
    weighted["weight"] = pd.Series({name: weight for name, (_, weight) in SCORE_PARTS.items()})
    infinity = frechet_infinity(x.features, judge.real.features, rng=rng_for(config.seed, "fd"))
    return {
        "score": score,
        "tier": ["poor", "good", "excellent"][(score >= tiers.good) + (score >= tiers.excellent)],
        "interval": score_interval(judge, x, draws=tiers.bootstrap, seed=config.seed),
        "components": weighted.to_dict("index"),
        "beside": table.drop(index=list(SCORE_PARTS)).to_dict("index"),
        "frechet_infinity": infinity,
    }


def copy_record(
    judge: Judge,
    x: Described,
    config: Config,
) -> tuple[dict, np.ndarray]:  # the record, and the row of the nearest training window (n,)
    "Measure how near windows lie to training songs, as strangers do: held-out songs."
    distance, row = nearest_training(x.features, judge.train.features)
    strangers = np.median(nearest_training(judge.real.features, judge.train.features)[0])
    copied = (distance < config.quality.copied_below * strangers).mean()
    return {"copying": float(np.median(distance)), "copied": float(copied)}, row


# %%
#| export
def read_times(run: Run, names: list[str]) -> dict[str, dict]:  # s of training, s a window
    "Read what generators took; they stay out of the record, which is the same in each run."
    found = {name: f"{name}_times.json" for name in names}
    times = {name: run.load(file) for name, file in found.items() if run.has(file)}
    return {
        name: {"training (s)": x["step"] * x["steps"], "drawing (s a window)": x["drawing"]}
        for name, x in times.items()
    }


def explain_quality(quality: dict) -> str:
    "Say in words what was compared, how far that carries, and who copies."
    low, high = quality["interval"]
    few = " So few songs say little: a generator that repeats a few windows covers them all."
    lines = [
        f"{quality['best']}: score {quality['score']:.0f} of 100 ({quality['tier']}), 90 % "
        f"interval {low:.0f} to {high:.0f}: {quality['windows']} windows against real ones from "
        f"{quality['songs']} held-out songs, as {quality['embedding']} see them."
        + few
        * (quality["songs"] < 20)
    ]
    usual = quality["held_out"]["copied"]
    for name, record in quality["generators"].items():
        if record["copied"] > usual + 0.1:
            lines.append(
                f"WARNING: {name} copies: {record['copied']:.0%} of its windows lie nearer to a "
                f"training song than strangers do ({usual:.0%} of held-out ones). Its score "
                "says how like music they are, not that they are new."
            )
    return "\n".join(lines)


# %%
sure = {"best": "flow", "score": 61.0, "tier": "good", "interval": [40, 80], "windows": 40}
told = sure | {"songs": 4, "embedding": "statistics", "held_out": {"copied": 0.0}}
told["generators"] = {"flow": {"copied": 0.0}}
assert "say little" in explain_quality(told)
assert "say little" not in explain_quality(told | {"songs": 70})
assert "flow copies: 90%" in explain_quality(told | {"generators": {"flow": {"copied": 0.9}}})


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
    "score": "points, 0-100, of the best generator; interval: 90 %",
    "best": "by validation_score, points on validation songs alone",
    "embedding": "statistics, or the audio model that judged",
    "generators": "a record each, in the units of this file",
    "components": "floor: noise; ceiling: real training songs; part: 0-1; weight: share",
    "frechet": "whitened features squared; frechet_infinity: the same, extrapolated",
    "patch_frechet": "[-1, 1] squared; kernel, texture_kernel: squared MMD",
    "coverage": "share, as precision and recall; diversity; density: x",
    "obedience": "Pearson r of asked and read",
    "copying": "median distance to the nearest training window, whitened features",
    "copied": "share of windows nearer than quality.copied_below of held-out ones' median",
    "windows": "count; songs: count, held out",
    "families": "in the name of each row; ratios: x real held-out",
}


# %%
#| export
def real_record(judge: Judge, windows: np.ndarray, labels: tuple, config: Config) -> dict:
    "Measure what real music gets: training songs' score, held-out songs' obedience and copying."
    x, real = judge.describe(windows[: len(judge.real.songs)]), judge.real
    measured = measure(x, real)
    read = fit_reader(judge.train.features, labels[0])(real.features)
    infinity = frechet_infinity(x.features, real.features, rng=rng_for(config.seed, "fd"))
    return {
        "score": join_parts(judge.place(measured)),
        "obedience": correlations(read, labels[1]),
        "coverage": measured["coverage"],
        "frechet_infinity": infinity,
    } | copy_record(judge, real, config)[0]


def choose_generator(
    run: Run,
    config: Config,
    samples: dict[str, np.ndarray],  # generator -> windows (n, M, T)
    embed: Callable,  # (n, M, T) -> (n, D)
) -> dict[str, float | None]:  # generator -> its score on validation songs alone, the best first
    "Rank generators without the test songs; a single one needs no score."
    if len(samples) == 1:
        return dict.fromkeys(samples)
    (train, train_songs, _), (held, songs, _) = (
        real_windows(run, config, split) for split in ("train", "val")
    )
    count = min(len(train), len(held), *map(len, samples.values()))
    held = held[:count], songs[:count]
    judge = make_judge((train, train_songs), held, seed=config.seed, embed=embed)
    scores = {name: judge.score(windows) for name, windows in samples.items()}
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


# %%
#| export
def judge_generators(run: Run, config: Config) -> Compared:
    "Judge the run's generators and write gan_quality.json; raises MusemoError for bad samples."
    samples = {name: load_samples(run, name) for name in config.generators}
    train, train_songs, train_labels = real_windows(run, config, "train")
    held, songs, held_labels = real_windows(run, config, "held")
    count = min(len(train), len(held), *(len(asked) for _, asked in samples.values()))
    held, songs, held_labels = (x[:count] for x in (held, songs, held_labels))
    embed = choose_embedding(config)
    judge = make_judge((train, train_songs), (held, songs), seed=config.seed, embed=embed)
    reader = fit_reader(judge.train.features, train_labels)
    windows = {name: x[:count] for name, (x, _) in samples.items()}
    chosen, records, rows = choose_generator(run, config, windows, embed), {}, {}
    for name, validation in chosen.items():
        x, asked = judge.describe(windows[name]), samples[name][1][:count]
        copying, rows[name] = copy_record(judge, x, config)
        records[name] = score_record(judge, x, config) | copying
        records[name]["obedience"] = correlations(reader(x.features), asked)
        records[name]["validation_score"] = validation
    best = next(iter(chosen))
    generated = {name: windows[name] for name in chosen}
    real = real_record(judge, train, (train_labels, held_labels), config)
    families = family_record(generated, held, train[:count], config)
    quality = records[best] | {"best": best, "embedding": config.quality.embedding}
    quality |= {"generators": records, "windows": count, "songs": len(np.unique(songs))}
    quality |= {"held_out": real} | families | {"units": _quality_units}
    run.save("gan_quality.json", quality)
    return Compared(quality, generated, held, train[rows[best]], read_times(run, list(chosen)))


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
#| export
def compare_generators(
    quality: dict,  # content of gan_quality.json
    times: dict[str, dict],  # as read_times gives it
) -> pd.DataFrame:  # a column a generator, and real music
    "Set the generators side by side, beside what real music gets."
    columns = {}
    for name, x in (quality["generators"] | {"real music": quality["held_out"]}).items():
        covered = x["components"]["coverage"]["value"] if "components" in x else x["coverage"]
        low, high = x.get("interval", (np.nan, np.nan))
        columns[name] = {
            "score (points)": x["score"],
            "tier": x.get("tier"),
            "interval, from (points)": low,
            "interval, to (points)": high,
            "obedience, valence (r)": x["obedience"]["valence"],
            "obedience, arousal (r)": x["obedience"]["arousal"],
            "coverage (share)": covered,
            "Frechet distance, endless samples": x["frechet_infinity"],
            "distance to the nearest training window": x["copying"],
            "copied (share of windows)": x["copied"],
        } | times.get(name, {"training (s)": None, "drawing (s a window)": None})
    numbers = pd.DataFrame(columns, dtype=object)
    return numbers.map(lambda x: "-" if pd.isna(x) else x if isinstance(x, str) else f"{x:.3g}")


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
parts_figure = plot_parts(quality, config)
compare_generators(quality, compared.times)

# %% [markdown]
# Real music: training songs' score, and what held-out songs get elsewhere. No obedience can be
# asked to exceed theirs, and no distance to the training songs should be much smaller. A real
# training song comes near 100; noise comes near 1.
#
# The parts in numbers, and beside them what has no weight: precision and density.
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
families.join(ratios.drop(columns="real"), rsuffix=" / real").astype(float).round(2)

# %% [markdown]
# Real above, the generators below. Look for onsets (upright edges) and partials (level lines).

# %%
pictures = {"held-out real": compared.real, **compared.generated}
figure = plot_side_by_side(pictures, config.audio)
figure = plot_averages(pictures, config.audio)

# %% [markdown]
# Generated windows below the training windows that are nearest to them, as the embedding sees it.

# %%
best = quality["best"]
pictures = {"nearest in training": compared.nearest, best: compared.generated[best]}
figure = plot_side_by_side(pictures, config.audio)
components = quality["generators"][best]["components"]
noise = {k: place_part(k, c["floor"], c["floor"], c["ceiling"]) for k, c in components.items()}
told = [f"{name} {record['score']:.0f}" for name, record in quality["generators"].items()]
real = quality["held_out"]["score"]
run.headline(
    "06_gan_quality",
    f"{', '.join(told)} of 100 points (noise {join_parts(noise):.0f}, real songs {real:.0f})",
    parts_figure,
)
