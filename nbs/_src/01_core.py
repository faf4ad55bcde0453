# %%
#| default_exp core

# %% [markdown]
# # Core
#
# > Seeds, a device, a run folder that is never half-written, one plot style and a player.
#
# Every section stands on this page. It knows nothing of music models: it makes randomness an
# argument, says what machine it runs on, and keeps what a run makes in one folder.
#
# Shapes, here and on every page: B batch, N songs, M mel bands, T frames, S samples, D features.

# %%
#| export
import base64
import hashlib
import html
import io
import json
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import soundfile
import torch
from IPython.display import HTML
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from tqdm import tqdm

from musemo.allocator import reuse_memory

# %%
#| export environment
import platform
from importlib import metadata

import joblib
import torch

from musemo.core import Run, pick_device, pick_precision

# %%
#| export widgets
import io

import matplotlib.pyplot as plt
import numpy as np
from ipywidgets import Audio, Image

from musemo.core import wav_bytes

# %%
#| hide
import tempfile
from contextlib import redirect_stdout

from fastcore.test import test_close, test_eq, test_fail


# %% [markdown]
# ## One error for users
#
# What a user can mend is a `MusemoError`: its message names the value, the rule and the way out.
# The command line prints that line alone; anything else is a bug and keeps its traceback.


# %%
#| export
class MusemoError(ValueError):
    "Something that the user can mend: the message names the value, the rule and the way out."


# %% [markdown]
# ## Randomness is an argument
#
# One seed in the configuration grows a seed for each use. Naming the use keeps sections apart:
# drawing one more number in the generator does not change the split of the songs. Layers and
# dropout draw from torch's global generator: a stage seeds that one, never an import.


# %%
#| export
def seed_for(
    seed: int,  # the run's seed
    *names: object,  # what the randomness is for, e.g. "split" or ("window", 3)
) -> int:  # 32 bits, the same on every machine
    "Derive the seed of one use from the seed of the run."
    text = ":".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def rng_for(seed: int, *names: object) -> np.random.Generator:
    "Make numpy's generator for one use."
    return np.random.default_rng(seed_for(seed, *names))


def torch_rng_for(seed: int, *names: object) -> torch.Generator:
    "Make torch's generator (on the CPU) for one use."
    return torch.Generator().manual_seed(seed_for(seed, *names))


# %%
test_eq(seed_for(0, "split"), seed_for(0, "split"))
assert seed_for(0, "split") != seed_for(0, "noise") != seed_for(1, "noise")
test_eq(rng_for(3, "x").normal(size=4), rng_for(3, "x").normal(size=4))


# %% [markdown]
# ## Device and precision
#
# "auto" takes a GPU where there is one. Full precision is right on a CPU: half-precision
# arithmetic is emulated there, about ten times slower. A GPU gets bfloat16 where it has it.


# %%
#| export
def pick_device(
    name: str = "auto",  # auto, cpu, cuda or mps
) -> torch.device:
    "Choose the device, or raise MusemoError where the named one is not there."
    there = {"cuda": torch.cuda.is_available(), "mps": torch.mps.is_available(), "cpu": True}
    usable = [device for device, is_there in there.items() if is_there]
    if name not in ("auto", *usable):
        raise MusemoError(f"device = {name!r}: not on this machine; use auto or {usable}")
    return torch.device(usable[0] if name == "auto" else name)


def pick_precision(
    device: torch.device,
    name: str = "auto",  # auto, float32, bfloat16 or float16
) -> torch.dtype:
    "Choose the arithmetic of forward passes: full on a CPU, half on a GPU."
    if name != "auto":
        return getattr(torch, name)
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16


def autocast(device: torch.device, dtype: torch.dtype):
    "Run the forward pass in `dtype`; nothing at all in full precision."
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


# %%
test_eq(pick_precision(torch.device("cpu")), torch.float32)
test_fail(lambda: pick_device("tpu"), contains="device = 'tpu'")
pick_device()

# %% [markdown]
# ## Memory that was let go
#
# On a CPU, musemo works on arrays of some ten megabytes that live for a moment. glibc fetches each
# of them from the system and hands it back at once; the system has to empty every page of it
# before it comes again. That takes a sixth of the time of a generator's training, of decoding, and
# of turning a spectrogram into sound. Here memory that was let go waits in the process for the
# next array, as torch keeps a GPU's. A process holds a few per cent more at its peak for it, and
# keeps holding it.

# %%
#| export allocator
import ctypes
from contextlib import suppress


def reuse_memory() -> None:
    "Let glibc keep what is given back to it; other C libraries stay as they are."
    with suppress(OSError, AttributeError):
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallopt(-4, 0)  # M_MMAP_MAX: no array is fetched alone
        glibc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing is handed back


# %%
#| export
reuse_memory()


# %% [markdown]
# ## The run folder
#
# A run is a folder of plain files: .json, .csv, .npy, .safetensors, .wav, .png. `save` writes
# beside the target and renames, so that a reader sees the old file or the new one, never half
# of one. The suffix chooses the format, and each format has one writer and one reader.


# %%
#| export
def _write_json(file, value):
    if "units" not in value:
        raise MusemoError("a .json artifact must say its units; add the key 'units'")
    file.write(json.dumps(value, indent=1, allow_nan=False).encode() + b"\n")


def _write_wav(file, value):
    soundfile.write(file, np.clip(value[0], -1, 1), value[1], format="WAV", subtype="PCM_16")


_odd = "backslashreplace"  # letters of a file name in another encoding
_writers = {
    ".json": _write_json,
    ".csv": lambda file, table: table.to_csv(file, index=False, lineterminator="\n", errors=_odd),
    ".npy": lambda file, array: np.save(file, array, allow_pickle=False),
    ".wav": _write_wav,
    ".png": lambda file, figure: figure.savefig(file, format="png", dpi=110),
    ".html": lambda file, text: file.write(text.encode(errors=_odd)),
    ".safetensors": lambda file, weights: file.write(save(weights)),
}


def _read_json(path):
    value = json.loads(path.read_text())
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


_readers = {
    ".json": _read_json,
    ".csv": pd.read_csv,
    # np.load would take an archive or a pickle for an array, too.
    ".npy": lambda path: np.lib.format.open_memmap(path, mode="r"),
    ".wav": lambda path: soundfile.read(path, dtype="float32"),
    ".safetensors": load_file,
}
_unreadable = (SafetensorError, soundfile.LibsndfileError, ValueError, EOFError)
_unreadable += (OverflowError, RecursionError)  # of shapes and nesting that somebody made up


# %% [markdown]
# A full disk or a read-only folder is the user's to mend, so it ends in one line; the
# temporary file is removed whatever happens.


# %%
#| export
def write_atomic(
    path: Path,  # the file to make or replace
    value: object,  # what the suffix asks for: dict, table, array, (wave, rate), figure, text
) -> Path:
    "Write a file whole or not at all; raise MusemoError where the disk will not take it."
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            _writers[path.suffix](file, value)
        os.replace(temporary, path)
    except (OSError, SafetensorError, soundfile.LibsndfileError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MusemoError(f"cannot write {path}: {reason}; free the disk or move it") from error
    finally:
        if temporary.exists():
            temporary.unlink()
    return path


# %%
#| export
@dataclass(frozen=True)
class Run:
    "A folder of artifacts, each written whole or not at all."

    folder: Path

    def path(self, name: str) -> Path:
        "Say where an artifact lies; raises MusemoError for a name that leads out of the run."
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise MusemoError(f"{name!r}: an artifact's name must stay inside {self.folder}")
        return Path(self.folder) / name

    def has(self, *names: str) -> bool:
        "Say whether all these artifacts are there."
        return all(self.path(name).exists() for name in names)

    def save(self, name: str, value: object) -> Path:
        "Write an artifact in the format of its suffix."
        return write_atomic(self.path(name), value)

    def load(self, name: str):
        "Read an artifact, arrays memory-mapped; raises MusemoError where it is missing or broken."
        path = self.path(name)
        if not path.exists():
            raise MusemoError(f"{path} is missing: run the section that makes it first")
        try:
            return _readers[path.suffix](path)
        except _unreadable as error:
            rule = f"is no whole {path.suffix} file ({error})"
            raise MusemoError(f"{path} {rule}: delete it, and make its section again") from error

    def headline(self, section: str, number: str, figure: plt.Figure) -> None:
        "Leave a section's main number (text with its unit) and main figure for the index page."
        self.save(f"figures/{section}.png", figure)
        gpu = round(torch.cuda.max_memory_allocated() / 1e6)  # 0 where none is used
        units = {"number": "text", "gpu_memory": "MB of this process's tensors, at most"}
        self.save(f"figures/{section}.json", {"number": number, "gpu_memory": gpu, "units": units})


# %% [markdown]
# The round trip is exact, a failed write leaves the old file, and a file that is missing or was
# copied in part says what to do. No name, whoever made it up, leads out of the run.

# %%
with tempfile.TemporaryDirectory() as folder:
    run = Run(Path(folder))
    run.save("a.npy", np.arange(6).reshape(2, 3))
    test_eq(run.load("a.npy"), np.arange(6).reshape(2, 3))
    run.save("b.json", {"x": 1, "units": {"x": "songs"}})
    test_fail(lambda: run.save("b.json", {"x": 2}), contains="units")
    test_eq(run.load("b.json")["x"], 1)
    test_fail(lambda: run.load("c.csv"), contains="c.csv is missing")
    test_fail(lambda: run.save("../e.json", {"units": {}}), contains="must stay inside")
    test_eq(sorted(p.name for p in Path(folder).iterdir()), ["a.npy", "b.json"])
    weights = run.save("d.safetensors", {"w": torch.ones(9)})
    for path in (weights, run.path("a.npy"), run.path("b.json")):
        path.write_bytes(path.read_bytes()[:-8])
        test_fail(lambda name=path.name: run.load(name), contains="delete it, and make its section")


# %% [markdown]
# ## Songs and windows
#
# Section 3 leaves a table of songs and their spectrograms; everyone else takes a part of it.


# %%
#| export
def take_rows(
    array: np.ndarray,  # (N, ...), memory-mapped
    rows: np.ndarray,  # (K,) of it
) -> np.ndarray:  # (K, ...)
    "Take rows of a mapped array; a single stretch of them stays on the disk until it is read."
    in_one_piece = len(rows) and (np.diff(rows) == 1).all()
    return array[rows[0] : rows[-1] + 1] if in_one_piece else array[rows]


def load_part(
    run: Run,
    split: str,  # train, val or test
) -> tuple[pd.DataFrame, np.ndarray]:  # the songs, and their log-mels (N, M, T) in [-1, 1]
    "Read the songs of one part and map their spectrograms, in the same order."
    songs = run.load("songs.csv")
    songs = songs[songs["split"] == split].reset_index(drop=True)
    return songs, take_rows(run.load("logmel.npy"), songs["row"].to_numpy())


# %%
mapped = np.arange(12).reshape(4, 3)
assert np.shares_memory(take_rows(mapped, np.array([1, 2])), mapped)
test_eq(take_rows(mapped, np.array([1, 2])), mapped[1:3])
test_eq(take_rows(mapped, np.array([2, 0])), mapped[[2, 0]])
test_eq(take_rows(mapped, np.array([], int)).shape, (0, 3))


# %% [markdown]
# Songs are kept whole and differ in length; models see windows of one width. All of them cut
# here. With a generator the windows are drawn at random, for training; without one they are
# evenly spaced, the same each time, for judging. A song shorter than the window is padded
# with silence, which is -1 on our scale.


# %%
#| export
def cut_windows(
    log_mel: np.ndarray,  # (N, M, T) in [-1, 1]
    frames: np.ndarray,  # (N,) valid frames of each song
    width: int,  # frames of a window
    *,
    per_song: int = 1,
    rng: np.random.Generator | None = None,  # None: evenly spaced
) -> tuple[np.ndarray, np.ndarray]:  # windows (N * per_song, M, width) float32, song index of each
    "Cut windows out of whole songs, at random or evenly spaced."
    room = np.maximum(np.asarray(frames) - width, 0)[:, None]
    if rng is None:
        starts = np.round((np.linspace(0, 1, per_song) if per_song > 1 else 0.5) * room)
    else:
        starts = np.floor(rng.random((len(room), per_song)) * (room + 1))
    songs = np.repeat(np.arange(len(room)), per_song)
    windows = np.full((len(songs), log_mel.shape[1], width), -1.0, dtype=np.float32)
    for i, (song, start) in enumerate(zip(songs, starts.astype(int).ravel(), strict=True)):
        stop = min(start + width, int(frames[song]))
        windows[i, :, : stop - start] = log_mel[song, :, start:stop]
    return windows, songs


# %%
ramp = np.tile(np.linspace(0, 0.9, 10), (2, 3, 1))
windows, songs = cut_windows(ramp, np.array([10, 3]), 4, per_song=3)
test_eq(windows.shape, (6, 3, 4))
test_eq(songs, [0, 0, 0, 1, 1, 1])
test_close(windows[:3, 0, 0], [0.0, 0.3, 0.6])
test_eq(windows[3, 0, 3], -1)
test_eq(cut_windows(ramp, [10, 10], 10)[0], ramp.astype(np.float32))


# %% [markdown]
# ## One bar for every long step
#
# The bar goes to stderr, where `musemo run` folds it into its own; reports leave it out.


# %%
#| export
def progress(iterable, *, desc: str, total: int | None = None):
    "Wrap an iterable in a progress bar named `desc`; silent where MUSEMO_QUIET or CI is set."
    quiet = bool(os.environ.get("MUSEMO_QUIET") or os.environ.get("CI"))
    return tqdm(iterable, desc=desc, total=total, leave=False, disable=quiet, file=sys.stderr)


# %%
test_eq(list(progress(range(3), desc="three")), [0, 1, 2])

# %% [markdown]
# ## Curves while a training runs
#
# `musemo run --log tensorboard` (or `wandb`) sends each row that a training logs to accelerate's
# tracker as well, a curve for each number. Trackers only watch: no figure of a run comes from them.

# %%
#| export tracking
import importlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from musemo.core import MusemoError

# %%
#| export tracking
TRACKERS = ("tensorboard", "wandb")


def follow_with(
    kind: str,  # of TRACKERS
    run_folder: Path,
) -> None:
    "Let trainings of this process and of those that it starts log to `run_folder`/logs as well."
    if kind not in TRACKERS:
        raise MusemoError(f"--log {kind}: must be one of {', '.join(TRACKERS)}")
    try:
        importlib.import_module(kind)
    except ImportError as error:
        raise MusemoError(f"--log {kind}: is not installed; pip install {kind}") from error
    os.environ["MUSEMO_LOG"] = f"{kind}:{Path(run_folder).resolve() / 'logs'}"


@contextmanager
def follow_part(name: str) -> Iterator[None]:
    "Keep the curves of a part of the work, a fold for example, apart from those of the others."
    before = os.environ.get("MUSEMO_LOG_PART", "")
    os.environ["MUSEMO_LOG_PART"] = f"{before}{name}/"
    try:
        yield
    finally:
        os.environ["MUSEMO_LOG_PART"] = before


# %%
#| export tracking
_trackers = {}  # not functools.cache: what it wraps cannot be sent to another process


def _open_tracker(kind: str, folder: Path, name: str) -> GeneralTracker:
    "Start the tracker of one training; raises MusemoError where it does not start."
    PartialState()  # accelerate's trackers want to know the processes, be it only one
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "tensorboard":
        tracker = TensorBoardTracker(name, folder)
    else:
        group = folder.parent.name
        where = {"dir": str(folder), "group": group, "name": f"{group}: {name}"}
        tracker = WandBTracker("musemo", reinit="create_new", **where)
    try:
        tracker.start()
    except Exception as error:  # each tracker raises its own
        raise MusemoError(
            f"--log {kind}: does not start ({str(error).splitlines()[0]}); log in to it, "
            "set WANDB_MODE=offline, or leave --log out"
        ) from error
    return tracker


def track(
    name: str,  # of the training: gan, flow, vit, ...
    row: dict[str, float | None],  # what it logged
    step: int,
) -> None:
    "Send numbers to the tracker that `follow_with` chose, if one was; the first process does."
    chosen = os.environ.get("MUSEMO_LOG")
    if not chosen or os.environ.get("RANK", "0") != "0":
        return
    kind, _, folder = chosen.partition(":")
    values = {k: v for k, v in row.items() if v is not None and math.isfinite(v)}
    name = os.environ.get("MUSEMO_LOG_PART", "") + name
    if (kind, folder, name) not in _trackers:
        _trackers[kind, folder, name] = _open_tracker(kind, Path(folder), name)
    _trackers[kind, folder, name].log(values, step=step)


# %% [markdown]
# Without `--log` a row goes nowhere and nothing is written.

# %%
#| hide
from musemo.tracking import follow_with, track

# %%
track("flow", {"loss": 0.5}, 1)
test_fail(lambda: follow_with("paper", Path(".")), contains="one of tensorboard, wandb")

# %% [markdown]
# ## When a GPU's memory runs out
#
# How much a batch needs is known when it is tried. A training that does not fit is begun once
# more with half the batch, and says so; what does not fit then is for its user to decide.

# %%
#| export memory
import errno
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from musemo.core import MusemoError

T = TypeVar("T")


def with_half_batch(
    work: Callable[..., T],  # called with a configuration
    config,  # the run's configuration
    section: str,  # of the configuration; its batch_size is halved
) -> T:
    "Do the work, where memory runs out with half the batch; raises MusemoError the second time."
    size = getattr(config, section).batch_size
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1  # the others would not know
    # One window alone is no batch.
    sizes = (size, size // 2) if size >= 4 and not together else (size,)
    for attempt in sizes:
        part = getattr(config, section).model_copy(update={"batch_size": attempt})
        try:
            return work(config.model_copy(update={section: part}))
        except torch.OutOfMemoryError:
            pass  # in here the traceback would hold on to the memory
        torch.cuda.empty_cache()
        print(f"memory ran out with {section}.batch_size = {attempt}")
    raise MusemoError(
        f"memory ran out with {section}.batch_size = {' and '.join(map(str, sizes))}: lower it "
        "further, or take a smaller model"
    )


def map_new(
    path: str | Path,
    shape: tuple[int, ...],
    dtype: str | type,
) -> np.ndarray:  # memory-mapped, zeros
    "Make an .npy file to be filled through memory; raises MusemoError where there is no room."
    mapped = None
    try:
        mapped = np.lib.format.open_memmap(path, "w+", dtype, shape)
        # Without its room, a map that meets a full disk kills its process without a word.
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
    except OSError as error:
        if mapped is not None and error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return mapped  # the file system cannot promise room
        size = math.prod(shape) * np.dtype(dtype).itemsize / 1e6
        raise MusemoError(
            f"{path}: needs {size:.0f} MB ({error.strerror}); free the disk, or ask for less"
        ) from error
    return mapped


# %%
#| hide
from types import SimpleNamespace

from musemo.memory import map_new, with_half_batch


# %%
class Part(SimpleNamespace):
    def model_copy(self, update):
        return Part(**vars(self) | update)


def needs(most):
    def work(config):
        if config.gan.batch_size > most:
            raise torch.OutOfMemoryError
        return config.gan.batch_size

    return work


whole = Part(gan=Part(batch_size=8))
with redirect_stdout(io.StringIO()) as told:
    test_eq([with_half_batch(needs(most), whole, "gan") for most in (9, 5)], [8, 4])
    test_fail(lambda: with_half_batch(needs(3), whole, "gan"), contains="batch_size = 8 and 4:")
    few = Part(gan=Part(batch_size=2))
    test_fail(lambda: with_half_batch(needs(1), few, "gan"), contains="gan.batch_size = 2:")
test_eq(told.getvalue().count("memory ran out"), 4)

with tempfile.TemporaryDirectory() as folder:
    mapped = map_new(f"{folder}/x.npy", (3, 5), "float16")
    mapped[:] = 2
    mapped.flush()
    test_eq(np.load(f"{folder}/x.npy").sum(), 30)
    test_fail(
        lambda: map_new(f"{folder}/y.npy", (2**24, 2**26), "float16"), contains="free the disk"
    )

# %% [markdown]
# ## Plots that read alike
#
# Real data is blue, what a model makes is orange, floors and chance are grey; the three differ
# in lightness too, so that they read without colour.

# %%
#| export
COLORS = {"real": "#1f5a94", "model": "#e8862e", "floor": "#9a9a9a", "third": "#5b9e6f"}
_style = {
    **dict.fromkeys(("figure.constrained_layout.use", "axes.grid"), True),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "grid.alpha": 0.25,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8),
}


# %%
#| export
def subplots(
    rows: int = 1,
    columns: int = 1,
    *,
    size: tuple[float, float] = (4.0, 2.8),  # inches of one panel, width and height
    **options,  # for plt.subplots
) -> tuple[plt.Figure, np.ndarray | plt.Axes]:
    "Open a figure in musemo's style; `size` is that of one panel."
    plt.draw_if_interactive()  # loads the backend: inside rc_context its settings would be undone
    with plt.rc_context(_style):
        return plt.subplots(rows, columns, figsize=(size[0] * columns, size[1] * rows), **options)


def plot_log_mel(
    axes: plt.Axes,
    decibels: np.ndarray,  # (M, T) dB
    *,
    sample_rate: int,  # Hz
    hop: int,  # samples
    bands: np.ndarray,  # (M,) centre frequencies, Hz
    limits: tuple[float, float],  # dB
    title: str = "",
):
    "Draw a log-mel spectrogram with seconds, hertz and decibels on its axes."
    image = axes.imshow(decibels, origin="lower", aspect="auto", cmap="magma", clim=limits)
    image.set_extent((0, decibels.shape[1] * hop / sample_rate, 0, len(bands)))
    ticks = np.linspace(0, len(bands) - 1, 5).astype(int)
    axes.set_yticks(ticks + 0.5, [f"{bands[t]:.0f}" for t in ticks])
    axes.set(title=title, xlabel="time (s)", ylabel="frequency (Hz)")
    axes.grid(False)
    return image


# %%
figure, axes = subplots(1, 2)
axes[0].plot([0, 1], [0, 1], color=COLORS["real"])
axes[0].set(title="A line", xlabel="time (s)", ylabel="level (dB)")
sweep = np.add.outer(-np.arange(40), np.arange(80)) / 2.0
plot_log_mel(
    axes[1], sweep, sample_rate=80, hop=4, bands=np.arange(40) * 100.0, limits=(-20, 40), title="A"
)


# %% [markdown]
# ## A player in the page
#
# The sound travels inside the HTML as a data address, so an exported report plays without
# files or network. Level is kept: a quiet clip sounds quiet.


# %%
#| export
def wav_bytes(wave: np.ndarray, sample_rate: int) -> bytes:
    "Make the content of a .wav file, 16 bits, of a wave (S,) in [-1, 1]."
    buffer = io.BytesIO()
    _write_wav(buffer, (np.asarray(wave, dtype=np.float32), sample_rate))
    return buffer.getvalue()


def player(
    wave: np.ndarray,  # (S,) in [-1, 1]
    sample_rate: int,  # Hz
    *,
    label: str,  # shown and read aloud
) -> HTML:
    "Make an audio player that survives HTML export."
    data = base64.b64encode(wav_bytes(wave, sample_rate)).decode()
    text = html.escape(label, quote=True)
    sound = f'<audio controls aria-label="{text}" src="data:audio/wav;base64,{data}"></audio>'
    return HTML(f"<figure><figcaption>{text}</figcaption>{sound}</figure>")


# %%
tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
assert "a &lt;b&gt; tone" in player(tone, 16000, label="a <b> tone").data
player(tone, 16000, label="440 Hz, half a second")


# %% [markdown]
# A widget shows pictures and plays sound as well, as bytes that the kernel hands it. It must not
# sound because a cell is shown, only after a click; and a second click must be heard, though the
# sound is the same.


# %%
#| export widgets
def png_bytes(figure: plt.Figure) -> bytes:
    "Make the content of a .png file of a figure, and close the figure."
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    plt.close(figure)
    return file.getvalue()


def empty_picture() -> Image:
    "Open a picture without a content, no wider than the page and never blown up."
    return Image(format="png", layout={"max_width": "100%", "align_self": "flex-start"})


def silent_player() -> Audio:
    "Open a player without a sound."
    return Audio(format="wav", autoplay=False, loop=False, layout={"max_width": "100%"})


def put_sound(
    sound: Audio,
    wave: np.ndarray,  # (S,) in [-1, 1]
    sample_rate: int,  # Hz
    *,
    play: bool,  # at once: the answer to a click
) -> None:
    "Give a player another sound."
    if play:
        sound.value = b""  # the same sound again would be no change, and stay silent
    # One message for both: autoplay alone would start the old sound.
    with sound.hold_sync():
        sound.autoplay = play
        sound.value = wav_bytes(wave, sample_rate)


# %%
sound = silent_player()
heard = []
sound.observe(lambda change: heard.append(change["new"][:4]), "value")
put_sound(sound, tone, 16000, play=False)
test_eq((sound.autoplay, heard), (False, [b"RIFF"]))
put_sound(sound, tone, 16000, play=True)
test_eq((sound.autoplay, heard), (True, [b"RIFF", b"", b"RIFF"]))
test_eq(png_bytes(subplots()[0])[1:4], b"PNG")

# %% [markdown]
# ## What a run ran on
#
# `environment.json` holds the versions and the machine: with `config.json` it is enough to
# repeat a run. It names neither user nor folder.

# %%
#| export environment
_packages = "musemo torch accelerate transformers librosa soundfile soxr numpy scipy pandas"
_packages += " scikit-learn matplotlib"


def version_of(package: str) -> str:
    "Say a package's version; in the Kaggle notebook musemo itself is not installed."
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def start_run(run: Run, config) -> dict:  # versions, machine, device
    "Write what the run depends on beside its configuration into environment.json."
    device = pick_device(config.device)
    environment = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": joblib.cpu_count(),  # that this process may use
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "precision": str(pick_precision(device, config.precision)).removeprefix("torch."),
        "packages": {package: version_of(package) for package in _packages.split()},
        "units": {"cores": "count", "torch_threads": "count", "packages": "version"},
    }
    run.save("environment.json", environment)
    return environment


# %% [markdown]
# ## On the run
#
# The report of this section says where the run's numbers come from.

# %% tags=["parameters"]
run_folder = None  # a run's folder; None: a run at the smoke size, made on the spot

# %%
#| hide
from musemo.environment import start_run
from musemo.opening import open_run

run, config = open_run(run_folder, before=1)

# %%
environment = start_run(run, config)
told = {key: value for key, value in environment.items() if key not in ("packages", "units")}
pd.Series(told).to_frame("this machine")

# %%
figure, axes = subplots(size=(6, 2.4))
versions = environment["packages"]
axes.axis("off")
axes.set_title("What this run ran on")
axes.text(0, 0.9, f"Python {environment['python']}, {environment['device']}", va="top")
axes.text(0, 0.7, "\n".join(f"{k} {v}" for k, v in list(versions.items())[:6]), va="top")
axes.text(0.5, 0.7, "\n".join(f"{k} {v}" for k, v in list(versions.items())[6:]), va="top")
run.headline("01_core", f"{environment['device']}, {environment['cores']} cores", figure)
