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

import librosa
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from torch import nn

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
from musemo.drawing import build_generator, check_conditions, generate

# %%
#| hide
from pathlib import Path

from fastcore.test import test_close, test_eq, test_fail
from safetensors.torch import save_file

from musemo.presets import make_config


# %% [markdown]
# ## What is asked for
#
# A condition is a real training label, moved a little. Song and move come from two streams, so
# that row k stays the same when more rows are drawn.


# %%
#| export
def draw_conditions(
    labels: np.ndarray,  # (N, 2) of the training songs, [-1, 1]
    count: int,  # K
    *,
    jitter: float,  # standard deviation of the move, on [-1, 1]
    seed: int,
) -> np.ndarray:  # (K, 2) float32, [-1, 1]
    "Draw conditions where real labels lie; raises MusemoError for labels off the scale."
    labels = check_conditions(labels)
    songs = rng_for(seed, "condition song").integers(0, len(labels), count)
    moves = rng_for(seed, "condition move").normal(scale=jitter, size=(count, 2))
    return np.clip(labels[songs] + moves, -1, 1).astype(np.float32)


# %%
labels = np.array([[0.9, 0.8], [-0.5, -0.4]])
drawn = draw_conditions(labels, 400, jitter=0.1, seed=0)
test_eq(drawn[:7], draw_conditions(labels, 7, jitter=0.1, seed=0))
test_eq(np.abs(drawn).max(), 1)
test_close(drawn[drawn[:, 0] < 0].mean(0), labels[1], eps=0.03)
test_fail(lambda: draw_conditions([[0, 7]], 2, jitter=0.1, seed=0), contains="arousal 7")


# %% [markdown]
# ## The trained generator
#
# Weights of another configuration would load in part, or not at all. Either way the error says
# what does not fit and what to do.


# %%
#| export
def pick_generator(run: Run, config: Config) -> str:
    "Name the generator asked for; best: the one with the highest score in section 6."
    name, names = config.synthesis.generator, config.generators
    if name != "best":
        return name
    return run.load("gan_quality.json")["best"] if len(names) > 1 else names[0]


def synthetic_frames(config: Config) -> int:
    "Say how many frames a synthetic song has: as many as the predictor's window."
    return config.dataset.window_frames or config.audio.frames


def load_generator(
    run: Run,
    config: Config,
    name: str,  # one of config.generators
) -> nn.Module:
    "Load a generator; raises MusemoError where the checkpoint is of another configuration."
    weights = run.load(f"{name}.safetensors")
    weights = {k.removeprefix("generator."): v for k, v in weights.items() if k[:3] == "gen"}
    generator = build_generator(config, name)
    wanted = generator.state_dict()
    missing = sorted(wanted.keys() ^ weights.keys())
    wrong = [k for k in wanted if k in weights and weights[k].shape != wanted[k].shape]
    if missing or wrong:
        key = (wrong or missing)[0]
        found, needed = (tuple(w[key].shape) if key in w else None for w in (weights, wanted))
        raise MusemoError(
            f"{name}.safetensors is of another configuration: {key} is {found}, this one needs "
            f"{needed}; train again (--from 5), or set {name}.* and audio.n_mels back"
        )
    generator.load_state_dict(weights)
    return generator


# %%
with tempfile.TemporaryDirectory() as folder:
    config, other = (
        make_config("smoke", {"gan.channels": n, "gan.narrowest": 8, "audio.n_mels": 32})
        for n in (16, 32)
    )
    weights = build_generator(config, "gan").state_dict()
    save_file(
        {f"generator.{k}": v.contiguous() for k, v in weights.items()},
        Path(folder) / "gan.safetensors",
    )
    trained = load_generator(Run(Path(folder)), config, "gan")
    test_eq(generate(trained, [[0.8, 0.7]], seeds=[0], frames=100).shape, (1, 32, 100))
    test_fail(lambda: load_generator(Run(Path(folder)), other, "gan"), contains="another config")
    test_eq(pick_generator(Run(Path(folder)), make_config("full")), "gan")
    test_fail(lambda: pick_generator(Run(Path(folder)), config), contains="gan_quality.json")


# %% [markdown]
# ## Two pictures
#
# Where the conditions lie against real labels, and what the generator makes of the plane. With
# one noise for all nine panels, only the emotion differs.


# %%
#| export
def plot_conditions(
    real: np.ndarray,  # (N, 2) labels of the training songs, [-1, 1]
    table: pd.DataFrame,  # synthetic.csv
) -> plt.Figure:
    "Draw conditions, real labels and the named emotions on the valence-arousal plane."
    figure, axes = subplots(size=(5.6, 4.4))
    asked = table[table["emotion"].isna()]
    style = {"s": 14, "alpha": 0.5, "linewidths": 0}
    axes.scatter(asked["valence"], asked["arousal"], color=COLORS["model"], label="asked", **style)
    axes.scatter(*real.T, color=COLORS["real"], marker="^", label="real, training", **style)
    for name, point in EMOTIONS.items():
        axes.scatter(*point, color="black", marker="x")
        side = {"ha": "right" if point[0] > 0.4 else "left", "size": 8}
        axes.annotate(name.replace("_", ", "), point, (0, 5), textcoords="offset points", **side)
    axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
    axes.set(xlabel="valence ([-1, 1])", ylabel="arousal ([-1, 1])")
    axes.set_title("Asked where real songs lie")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


# %%
table = pd.DataFrame(drawn, columns=["valence", "arousal"]).assign(emotion=None)
figure = plot_conditions(labels, table)


# %%
#| export
def plot_plane(
    generator: nn.Module,
    config: Config,
    *,
    points: tuple[float, ...] = (-0.7, 0.0, 0.7),  # valence and arousal of the panels
) -> plt.Figure:
    "Draw what one noise becomes over the valence-arousal plane."
    audio, count = config.audio, len(points)
    grid = [(valence, arousal) for arousal in reversed(points) for valence in points]
    seeds = [seed_for(config.seed, "plane")] * len(grid)
    windows = generate(generator, grid, seeds=seeds, frames=synthetic_frames(config))
    bands = librosa.mel_frequencies(audio.n_mels, fmin=audio.f_min, fmax=audio.f_max)
    figure, axes = subplots(count, count, size=(2.9, 2.1))
    for panel, window, (valence, arousal) in zip(axes.flat, windows, grid, strict=True):
        image = plot_log_mel(
            panel,
            audio.to_db(window),
            sample_rate=audio.sample_rate,
            hop=audio.hop,
            bands=bands,
            limits=(audio.db_min, audio.db_max),
            title=f"valence {valence:+.1f}, arousal {arousal:+.1f}",
        )
        panel.label_outer()
    figure.colorbar(image, ax=axes, label="level (dB)")
    return figure


# %%
figure = plot_plane(trained, config)


# %% [markdown]
# ## The stage
#
# Songs for training, then one window for each of the five named emotions. The array is written
# to disk batch by batch: 3200 songs of 30 s are a gigabyte.


# %%
#| export
def synthetic_table(
    conditions: np.ndarray,  # (K, 2)
    seed: int,
    emotions: list[str] | None = None,  # (K,) names; None: songs meant for training
) -> pd.DataFrame:
    "Tabulate what was asked of each row, and the seed of its noise."
    table = pd.DataFrame(conditions.astype(float).round(6), columns=["valence", "arousal"])
    table["emotion"] = emotions
    table["seed"] = [seed_for(seed, row) for row in range(len(table))]
    return table


def synthesize(run: Run, config: Config) -> pd.DataFrame:
    "Write synthetic.npy and synthetic.csv; the five named emotions are the last rows."
    songs, _ = load_part(run, "train")
    device, count = pick_device(config.device), config.synthesis.songs
    jobs = {"songs": None, "emotions": np.array(list(EMOTIONS.values()), dtype=np.float32)}
    jobs["songs"] = draw_conditions(
        songs[["valence", "arousal"]].to_numpy(),
        count,
        jitter=config.synthesis.jitter,
        seed=config.seed,
    )
    options = {"batch_size": config.gan.batch_size, "device": device}
    options["precision"] = pick_precision(device, config.precision)
    chosen = pick_generator(run, config)
    generator, tables = load_generator(run, config, chosen), []
    options["frames"] = synthetic_frames(config)
    shape = (count + len(EMOTIONS), config.audio.n_mels, options["frames"])
    with tempfile.TemporaryDirectory(dir=run.folder) as folder:
        windows = np.lib.format.open_memmap(f"{folder}/x.npy", "w+", np.float16, shape)
        for name, conditions, rows in zip(
            jobs, jobs.values(), (windows[:count], windows[count:]), strict=True
        ):
            names = list(EMOTIONS) if name == "emotions" else None
            table = synthetic_table(conditions, seed_for(config.seed, "synthesis", name), names)
            generate(generator, conditions, seeds=table["seed"].tolist(), out=rows, **options)
            tables.append(table)
        run.save("synthetic.npy", windows)
        del windows, rows
    table = pd.concat(tables, ignore_index=True).assign(generator=chosen)
    run.save("synthetic.csv", table)
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
from musemo.pipeline import open_run

run, config = open_run(run_folder, before=7)

# %%
synthetic = synthesize(run, config)
display(synthetic.tail(7).round(2))

# %% [markdown]
# Conditions should cover the cloud of real labels and not the empty corners. A named emotion far
# from every triangle is a guess: no training song sounded like that.

# %%
training_labels = load_part(run, "train")[0][["valence", "arousal"]].to_numpy()
conditions_figure = plot_conditions(training_labels, synthetic)

# %% [markdown]
# One noise, nine emotions. If all panels look alike, the generator does not hear its condition.

# %%
chosen = pick_generator(run, config)
plane_figure = plot_plane(load_generator(run, config, chosen), config)
run.headline(
    "07_synthesis",
    f"{len(synthetic) - len(EMOTIONS)} synthetic songs, {len(EMOTIONS)} named emotions ({chosen})",
    plane_figure,
)
