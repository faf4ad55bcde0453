# %%
#| default_exp synthesis

# %% [markdown]
# # Synthesis
#
# > Songs that nobody played, each with the valence and arousal that were asked for.
#
# In comes the better of the trained generators; out come windows and a table of their labels.
# They are drawn where real songs lie on the valence-arousal plane, because a generator knows
# nothing of corners that it never saw, and a predictor trained there learns its guesses.
#
# Shapes: K synthetic songs, M mel bands, T frames, B batch.

# %%
#| export
import tempfile
from functools import partial

import librosa
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from musemo.config import EMOTIONS, Config
from musemo.core import (
    COLORS,
    MusemoError,
    Run,
    load_part,
    pick_device,
    pick_precision,
    plot_log_mel,
    rng_for,
    seed_for,
    subplots,
)
from musemo.drawing import check_conditions, generate, load_generator
from musemo.memory import map_new, with_half_batch
from musemo.pieces import window_starts

# %%
#| hide
from pathlib import Path

from fastcore.test import test_close, test_eq, test_fail
from musemo.core import cut_windows
import torch

from musemo.drawing import build_generator
from musemo.pieces import blend_windows
from musemo.presets import make_config


# %% [markdown]
# ## What is asked for
#
# Conditions come from a smoothed density of the real training labels: around each label lies a
# bell as wide as Scott's rule says and as slanted as the cloud itself. Bells widen a cloud, so
# the labels are first drawn towards their mean by as much (Silverman & Young 1987). What passes
# the border comes back by as much: nothing piles up at the ends of the scale.
#
# Song and move come from two streams, so that row k stays the same when more rows are drawn.


# %%
#| export
def reflect(values: np.ndarray) -> np.ndarray:  # [-1, 1]
    "Fold values back at both ends of [-1, 1]."
    return 1 - np.abs((values + 1) % 4 - 2)


def draw_conditions(
    labels: np.ndarray,  # (N, 2) of the training songs, [-1, 1]
    count: int,  # K
    *,
    bandwidth: float,  # x Scott's rule; 0: the labels themselves
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:  # (K, 2) float32 in [-1, 1]; (K,) the label each lies around
    "Draw conditions from the smoothed density of real labels; raises MusemoError for others."
    labels = check_conditions(labels).astype(float)
    if not len(labels):
        raise MusemoError(
            "no training labels: give some; conditions are drawn where real songs lie"
        )
    width = bandwidth * len(labels) ** (-1 / 6)  # Scott 1992, two dimensions
    near = rng_for(seed, "condition song").integers(0, len(labels), count)
    # Square root of the cloud's covariance; labels on a line or in one point are allowed.
    size, axes = np.linalg.eigh(np.cov(labels.T, bias=True))
    moves = rng_for(seed, "condition move").normal(size=(count, 2))
    moves = moves @ (axes * np.sqrt(size.clip(min=0))).T
    centre = labels.mean(0)
    drawn = centre + (labels[near] - centre + width * moves) / np.sqrt(1 + width**2)
    return reflect(drawn).astype(np.float32), near


# %%
labels = np.array([[0.9, 0.8], [-0.5, -0.4], [-0.6, 0.1]])
drawn, near = draw_conditions(labels, 4000, bandwidth=1.0, seed=0)
test_eq(drawn[:7], draw_conditions(labels, 7, bandwidth=1.0, seed=0)[0])
assert np.abs(drawn).max() <= 1 and (np.abs(drawn) == 1).sum() == 0
inside = np.array([[0.3, 0.4], [-0.5, -0.4], [0.1, -0.1]])
test_close(
    np.cov(draw_conditions(inside, 4000, bandwidth=0.5, seed=0)[0].T, bias=True).ravel(),
    np.cov(inside.T, bias=True).ravel(),
    eps=0.01,
)
still, near = draw_conditions(labels, 9, bandwidth=0, seed=0)
test_close(still, labels[near], eps=1e-6)
test_close(reflect(np.array([-1.2, -1.0, 0.3, 1.0, 1.1])), [-0.8, -1.0, 0.3, 1.0, 0.9])
test_fail(lambda: draw_conditions([[0, 7]], 2, bandwidth=1.0, seed=0), contains="arousal 7")
test_fail(lambda: draw_conditions(labels[:0], 3, bandwidth=1.0, seed=0), contains="no training")


# %% [markdown]
# ## Which generator draws
#
# Of several the best one of section 6, which validation songs chose.


# %%
#| export
def pick_generator(run: Run, config: Config) -> str:
    "Name the generator asked for; best: the one that section 6 ranks first."
    name, names = config.synthesis.generator, config.generators
    if name != "best":
        return name
    return run.load("gan_quality.json")["best"] if len(names) > 1 else names[0]


# %%
with tempfile.TemporaryDirectory() as folder:
    run, several = Run(Path(folder)), make_config("smoke")
    test_eq(pick_generator(run, make_config("full")), "gan")
    test_fail(lambda: pick_generator(run, several), contains="gan_quality.json")


# %% [markdown]
# ## Two pictures
#
# Where the conditions lie against real labels, and what the generator makes of the plane. With
# one noise for all panels, only the emotion differs.


# %%
#| export
def plot_conditions(
    real: np.ndarray,  # (N, 2) labels of the training songs, [-1, 1]
    table: pd.DataFrame,  # synthetic.csv
    *,
    bandwidth: float,
) -> plt.Figure:
    "Draw the density, what was drawn from it, real labels and the named emotions."
    figure, axes = subplots(size=(5.6, 4.4))
    # The density is that of a large draw: what happens at the border is in it.
    many, _ = draw_conditions(real, 40_000, bandwidth=bandwidth, seed=0)
    edges = np.linspace(-1, 1, 41)
    share, *_ = np.histogram2d(*many.T, bins=(edges, edges), density=True)
    axes.pcolormesh(edges, edges, share.T, cmap="Greys", vmax=1.6 * share.max())
    asked = table[table["emotion"].isna()]
    style = {"s": 14, "alpha": 0.7, "linewidths": 0}
    axes.scatter(asked["valence"], asked["arousal"], color=COLORS["model"], label="asked", **style)
    axes.scatter(*real.T, color=COLORS["real"], marker="^", label="real, training", **style)
    for name, point in EMOTIONS.items():
        axes.scatter(*point, color="black", marker="x")
        side = {"ha": "right" if point[0] > 0.4 else "left", "size": 8}
        axes.annotate(name.replace("_", ", "), point, (0, 5), textcoords="offset points", **side)
    axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
    axes.set(xlabel="valence ([-1, 1])", ylabel="arousal ([-1, 1])")
    axes.set_title("Asked where real songs lie (grey: the density)")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


# %%
table = pd.DataFrame(drawn[:60], columns=["valence", "arousal"]).assign(emotion=None)
figure = plot_conditions(labels, table, bandwidth=1.0)


# %%
#| export
def plane_points(config: Config) -> np.ndarray:  # (side * side, 2) float32
    "List the points of the valence-arousal grid, as one reads: arousal falls, valence rises."
    ends = config.synthesis.plane_reach * np.linspace(-1, 1, config.synthesis.plane_side)
    return np.array([(v, a) for a in ends[::-1] for v in ends], dtype=np.float32)


def plot_plane(
    windows: np.ndarray,  # (side * side, M, T) in [-1, 1]
    points: np.ndarray,  # (side * side, 2), as plane_points gives them
    config: Config,
) -> plt.Figure:
    "Draw what one noise becomes over the valence-arousal plane."
    audio, side = config.audio, config.synthesis.plane_side
    bands = librosa.mel_frequencies(audio.n_mels, fmin=audio.f_min, fmax=audio.f_max)
    figure, axes = subplots(side, side, size=(2.1, 1.6))
    for panel, window, (valence, arousal) in zip(axes.flat, windows, points, strict=True):
        image = plot_log_mel(
            panel,
            audio.to_db(window),
            sample_rate=audio.sample_rate,
            hop=audio.hop,
            bands=bands,
            limits=(audio.db_min, audio.db_max),
            title=f"V {valence:+.1f}, A {arousal:+.1f}",
        )
        panel.label_outer()
    figure.suptitle("One noise, each valence (V) and arousal (A)")
    figure.colorbar(image, ax=axes, label="level (dB)")
    return figure


# %%
values = {"gan.channels": 16, "gan.narrowest": 8, "audio.n_mels": 32, "synthesis.plane_side": 3}
config = make_config("smoke", values)
points, untrained = plane_points(config), build_generator(config, "gan")
test_eq(points.shape, (9, 2))
test_close(points[[0, 4, 8]], [[-0.8, 0.8], [0, 0], [0.8, -0.8]], eps=1e-6)
pieces = generate(untrained, points, seeds=[3] * 9, frames=64)
figure = plot_plane(pieces, points, config)


# %% [markdown]
# ## Where windows meet
#
# A piece longer than what the generator learnt is several windows in one, and section 6 judged
# single ones. Where two meet half way, each counts half: if they did not agree, their mean would be
# flatter than either, which smooth steps would never show. So stretches around the meeting places
# are compared with stretches around the windows' own middles.


# %%
#| export
def meeting_places(
    length: int,  # frames of a piece
    width: int,  # frames of a window
) -> tuple[list[int], list[int]]:  # where two windows count alike; where one stands alone
    "Find the frames half way between the middles of neighbouring windows, and these middles."
    middles = [start + width // 2 for start in window_starts(length, width)]
    return [(a + b) // 2 for a, b in zip(middles, middles[1:], strict=False)], middles


def describe_stretches(
    pieces: np.ndarray,  # (K, M, T) in [-1, 1]
    places: list[int],  # middle frames
    size: int,  # frames of a stretch
    scale: float,  # dB of 1 on the scale
) -> dict[str, float]:  # dB
    "Measure stretches of pieces: level, spread in time, step from frame to frame."
    starts = [place - size // 2 for place in places]
    cuts = np.stack([pieces[..., a : a + size] for a in starts]).astype(np.float32) * scale
    steps = np.abs(np.diff(cuts, axis=3))
    return {"level": cuts.mean(), "spread": cuts.std(axis=3).mean(), "step": steps.mean()}


# %%
#| export
def seam_table(
    sets: dict[str, np.ndarray],  # name -> pieces (K, M, T) in [-1, 1], all of one length
    config: Config,
) -> pd.DataFrame | None:  # a row a set; None: pieces of one window have no seam
    "Set what lies where windows meet against what lies inside a window."
    scale, rows = (config.audio.db_max - config.audio.db_min) / 2, {}
    for name, pieces in sets.items():
        meets, middles = meeting_places(pieces.shape[2], config.gan.frames)
        if not meets:
            return None
        size = config.gan.frames // 4
        at, inside = (describe_stretches(pieces, x, size, scale) for x in (meets, middles))
        rows[name] = {"level, difference (dB)": at["level"] - inside["level"]}
        rows[name] |= {f"{key}, ratio": at[key] / inside[key] for key in ("spread", "step")}
    return pd.DataFrame(rows).T


# %% [markdown]
# Noise has no seam, and the table says so. Windows drawn apart and laid over each other do: their
# mean spreads less, though from frame to frame it is as smooth as ever.

# %%
test_eq(meeting_places(256, 128), ([96, 160], [64, 128, 192]))
test_eq(meeting_places(128, 128)[0], [])
apart = 0.3 * torch.randn(8, 3, 1, 32, 64, generator=torch.Generator().manual_seed(0))
whole = 0.3 * torch.randn(8, 32, 128, generator=torch.Generator().manual_seed(1))
seams = seam_table({"one piece": whole.numpy(), "apart": blend_windows(apart, 128)[:, 0]}, config)
test_close(seams.loc["one piece", "spread, ratio"], 1, eps=0.05)
assert seams.loc["apart", "spread, ratio"] < 0.85
assert seam_table({"short": whole[..., :64].numpy()}, config) is None
seams.round(2)

# %% [markdown]
# ## The stage
#
# Songs for training, then one window for each of the five named emotions. The array is written
# to disk batch by batch: 3200 songs of 30 s are a gigabyte. A synthetic song keeps how far
# raters were apart on the real song that it lies around; of a named emotion nobody knows.

# %%
#| export
SPREADS = ["valence_std", "arousal_std"]


def synthetic_table(
    conditions: np.ndarray,  # (K, 2)
    seeds: list[int],  # (K,) of each row's noise
    *,
    emotions: list[str] | None = None,  # (K,) names; None: songs meant for training
    spread: np.ndarray | None = None,  # (K, 2) of raters on [-1, 1]; None: not known
) -> pd.DataFrame:
    "Tabulate what was asked of each row, how sure raters are there, and the seed of its noise."
    table = pd.DataFrame(conditions.astype(float).round(6), columns=["valence", "arousal"])
    table[SPREADS] = np.nan if spread is None else spread
    table["emotion"] = emotions
    table["seed"] = np.asarray(seeds, dtype=np.int64)
    return table


def _drawing(config: Config) -> dict:
    "Say how the generator draws: pieces as wide as the predictor's window; batch, device."
    device = pick_device(config.device)
    options = {"frames": config.window, "batch_size": config.gan.batch_size, "device": device}
    return options | {"precision": pick_precision(device, config.precision)}


def synthesize(run: Run, config: Config) -> pd.DataFrame:
    "Write synthetic.npy and synthetic.csv; the five named emotions are the last rows."
    return with_half_batch(partial(_synthesize, run), config, "gan")  # of which songs are drawn


def _synthesize(run: Run, config: Config) -> pd.DataFrame:
    songs, _ = load_part(run, "train")
    asked, near = draw_conditions(
        songs[["valence", "arousal"]].to_numpy(),
        config.synthesis.songs,
        bandwidth=config.synthesis.bandwidth,
        seed=config.seed,
    )
    spread = songs.reindex(columns=SPREADS).to_numpy()[near]
    named = np.array(list(EMOTIONS.values()), dtype=np.float32)
    jobs = {
        "songs": (asked, {"spread": spread}),
        "emotions": (named, {"emotions": list(EMOTIONS)}),
    }
    chosen, options = pick_generator(run, config), _drawing(config)
    generator, tables, done = load_generator(run, config, chosen), [], 0
    shape = (len(asked) + len(named), config.audio.n_mels, options["frames"])
    with tempfile.TemporaryDirectory(
        dir=run.folder, prefix=".synthetic.npy.", suffix=".tmp"
    ) as folder:
        windows = map_new(f"{folder}/synthetic.npy", shape, np.float16)
        for name, (conditions, facts) in jobs.items():
            seed = seed_for(config.seed, "synthesis", name)
            seeds = [seed_for(seed, row) for row in range(len(conditions))]
            rows = windows[done : done + len(conditions)]
            generate(generator, conditions, seeds=seeds, out=rows, **options)
            tables.append(synthetic_table(conditions, seeds, **facts))
            done += len(conditions)
        run.save("synthetic.npy", windows)
        del windows, rows
    table = pd.concat(tables, ignore_index=True).assign(generator=chosen)
    run.save("synthetic.csv", table)
    return table


# %%
#| export
def draw_plane(run: Run, config: Config) -> pd.DataFrame:
    "Write plane.npy and plane.csv: one noise at each point of the valence-arousal grid."
    return with_half_batch(partial(_draw_plane, run), config, "gan")


def _draw_plane(run: Run, config: Config) -> pd.DataFrame:
    chosen, seed = pick_generator(run, config), seed_for(config.seed, "synthesis", "plane")
    generator, points = load_generator(run, config, chosen), plane_points(config)
    seeds = [seed] * len(points)
    run.save("plane.npy", generate(generator, points, seeds=seeds, **_drawing(config)))
    table = synthetic_table(points, seeds).drop(columns="emotion")
    table = table.drop(columns=SPREADS).assign(generator=chosen)
    run.save("plane.csv", table)
    return table


# %% [markdown]
# ## On the run
#
# The last five rows are the named emotions; section 8 turns them into sound. The rest trains
# the predictor, and nothing else: it is judged on real songs.

# %% tags=["parameters"]
run_folder = None  # a run's folder; None: a run at the smoke size, made on the spot

# %%
#| hide
from IPython.display import display
from musemo.opening import open_run

run, config = open_run(run_folder, before=7)

# %%
synthetic = synthesize(run, config)
display(synthetic.tail(7).round(2))

# %% [markdown]
# Conditions should cover the cloud of real labels and not the empty corners. A named emotion far
# from every triangle is a guess: no training song sounded like that.

# %%
training_labels = load_part(run, "train")[0][["valence", "arousal"]].to_numpy()
bandwidth = config.synthesis.bandwidth
conditions_figure = plot_conditions(training_labels, synthetic, bandwidth=bandwidth)

# %% [markdown]
# The draw beside the real labels, in numbers: mean and spread of each, their correlation, and
# how far raters were apart.

# %%
learnt, _ = load_part(run, "train")
compared = {"real, training": learnt, "asked": synthetic[synthetic["emotion"].isna()]}
pd.DataFrame(
    {
        name: {
            "songs": len(part),
            "valence, mean": part["valence"].mean(),
            "valence, spread": part["valence"].std(),
            "arousal, mean": part["arousal"].mean(),
            "arousal, spread": part["arousal"].std(),
            "correlation": part["valence"].corr(part["arousal"]),
            "raters' spread, valence": part["valence_std"].mean(),
            "raters' spread, arousal": part["arousal_std"].mean(),
        }
        for name, part in compared.items()
    }
).T.round(2)

# %% [markdown]
# Is there a seam? Real songs have none, so their row says how far from 1 (and from 0 dB) chance
# alone leads. A generator's spread well below theirs means windows that do not agree.

# %%
drawn_pieces = run.load("synthetic.npy")[: config.synthesis.songs]
longer, real_log_mel = learnt["frames"] >= config.window, load_part(run, "train")[1]
real_pieces = real_log_mel[longer.to_numpy()]
real_pieces, _ = cut_windows(real_pieces, learnt["frames"][longer], config.window)
pieces = {synthetic["generator"][0]: drawn_pieces, "real, training": real_pieces}
seams = seam_table({name: x for name, x in pieces.items() if len(x)}, config)
if seams is None:
    print(f"{config.window} frames are one window: there is no seam.")
else:
    display(seams.round(2))

# %% [markdown]
# One noise, the whole plane; section 8 plays it. If all panels look alike, the generator does
# not hear its condition.

# %%
plane = draw_plane(run, config)
plane_figure = plot_plane(run.load("plane.npy"), plane[["valence", "arousal"]].to_numpy(), config)
chosen = plane["generator"][0]
run.headline(
    "07_synthesis",
    f"{len(synthetic) - len(EMOTIONS)} synthetic songs, {len(EMOTIONS)} named emotions ({chosen})",
    plane_figure,
)
