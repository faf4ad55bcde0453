# %%
#| default_exp data

# %% [markdown]
# # Data
#
# > DEAM, or any songs of yours: found, audited, split by artist, decoded once.
#
# In comes a folder in DEAM's layout, or a table of files. Out come `songs.csv`, which lists every
# song with its part or the reason why it is left out, the log-mel spectrograms of all usable
# songs, and an audit of the labels. Nothing that a model sees is decided anywhere else.

# %%
#| export annotations
import csv
import re
from pathlib import Path

import numpy as np
import pandas as pd

from musemo.core import MusemoError

# %%
#| export sound_files
import math
import os
import stat
from collections.abc import Iterable, Iterator
from os import PathLike

import numpy as np
import soundfile
import soxr

from musemo.core import MusemoError

# %%
#| export spectrum
from collections.abc import Iterable, Iterator
from itertools import chain

import librosa
import numpy as np
import torch
from scipy.fft import rfft
from scipy.sparse import csr_array

from musemo.config import AudioConfig
from musemo.sound_files import resample

# %%
#| export splitting
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from musemo.core import MusemoError

# %%
#| export
import filecmp
import hashlib
import os
import re
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import xxhash
from joblib import cpu_count, delayed

from musemo.annotations import (
    LABELS,
    SCALES,
    plain_name,
    read_annotations,
    read_artists,
    read_dynamic,
    read_own_table,
    settle_labels,
)
from musemo.config import AudioConfig, Config
from musemo.core import MusemoError, Run, rng_for, write_atomic
from musemo.jobs import run_jobs
from musemo.sound_files import CONVERT, open_sound, read_blocks, resample
from musemo.spectrum import log_mel_of
from musemo.splitting import group_songs, split_songs

# %%
#| export song_browser
import html
from pathlib import Path

import ipywidgets
import librosa
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from musemo.config import AudioConfig, Config
from musemo.core import COLORS, MusemoError, Run, plot_log_mel, subplots
from musemo.data import decode, list_songs
from musemo.spectrum import sounding_wave
from musemo.widgets import empty_picture, png_bytes, put_sound, silent_player

# %%
#| hide
import tempfile

import librosa
import soxr
from fastcore.test import test_close, test_eq, test_fail
from IPython.display import display

from musemo.core import COLORS, player, plot_log_mel, subplots

# %% [markdown]
# ## Reading the tables
#
# DEAM's headers are odd: a blank after each comma, one inside a name. A value off the 1-9 scale
# is refused with its song, since a silent clip would be a wrong label.

# %%
#| export annotations
LABELS = ["valence", "arousal"]
SCALES = {"1-9": (1, 9), "-1-1": (-1, 1), "0-1": (0, 1)}


def plain_name(name: str) -> str:
    "Lower a name and make its blanks and hyphens underscores."
    return re.sub(r"[\s_-]+", "_", name.strip().lower())


def _read_cells(path: Path) -> dict[int, list[str]]:  # line of the file -> cells
    "Read the rows that are not blank, separated by commas or by semicolons."
    with open(path, encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        # A spreadsheet whose decimals have commas separates by semicolons.
        mark = ";" if first.count(";") > first.count(",") else ","
        lines = csv.reader(file, delimiter=mark, skipinitialspace=True, strict=True)
        cells = [(lines.line_num, [cell.strip() for cell in row]) for row in lines]
    if mark == ";":
        cells = [
            (line, [re.sub(r"^(-?\d*),(\d+)$", r"\1.\2", cell) for cell in row])
            for line, row in cells
        ]
    return {line: row for line, row in cells if any(row)}


_WELCOME = ("artist", "valence_std", "arousal_std")  # columns that may be missing


def _read_table(
    path: Path,
    needed: list[str],
    *,
    ragged: bool = False,  # rows may end early
) -> pd.DataFrame:  # cells by line of the file
    "Read a table with plain column names; raises MusemoError for odd columns or rows."
    try:
        rows = _read_cells(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise MusemoError(
            f"{path}: is no readable table ({error}); save it as CSV in UTF-8"
        ) from error
    names = [plain_name(name) for name in rows.pop(min(rows))] if rows else []
    for name in (*needed, *_WELCOME):
        if names.count(name) > 1 or name in needed and name not in names:
            many = f"{names.count(name)} columns" if name in names else "no column"
            there = ", ".join(names) or "no row"
            raise MusemoError(f"{path}: has {many} {name}; give one that name, of {there}")
    width = len(names)
    for line, cells in rows.items():
        if len(cells) > width or len(cells) < width and not ragged:
            raise MusemoError(
                f"{path}, row {line}: has {len(cells)} cells and the header {width}; "
                "mend the row or remove it"
            )
    rows = {line: cells + [""] * (width - len(cells)) for line, cells in rows.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=names, dtype=str)


def _numbers(table: pd.DataFrame, column: str, path: Path, low: float, high: float) -> pd.Series:
    "Read a column as numbers within bounds; raises MusemoError with the first bad row."
    values = pd.to_numeric(table[column], errors="coerce")
    bad = ~values.between(low, high)
    if bad.any():
        row = bad.idxmax()
        raise MusemoError(
            f"{path}, row {row}: {column} = {table[column][row]!r} must be a number from "
            f"{low} to {high}; mend the row or remove it"
        )
    return values


def _spreads(table: pd.DataFrame, column: str, path: Path) -> pd.Series:
    "Read the raters' spread, on 1-9, where the table tells it; blanks stay unknown."
    told = table[[column]][table[column] != ""] if column in table else table.iloc[:0]
    known = _numbers(told, column, path, 0, 8) if len(told) else pd.Series(dtype=float)
    return known.reindex(table.index)


# %%
#| export annotations
def read_annotations(
    path: Path,  # a static table of DEAM, 1-9
) -> pd.DataFrame:  # song_id; valence and arousal with _std, still 1-9
    "Read one of DEAM's tables of song-level labels."
    raw = _read_table(path, ["song_id", "valence_mean", "arousal_mean"])
    ids = _numbers(raw, "song_id", path, 0, 1e9)
    if (ids % 1).any():
        row = (ids % 1).idxmax()
        raise MusemoError(f"{path}, row {row}: song_id {ids[row]} must be a whole number; mend it")
    songs = pd.DataFrame({"song_id": ids.astype(int)})
    for label in LABELS:
        songs[label] = _numbers(raw, f"{label}_mean", path, 1, 9)
        songs[f"{label}_std"] = _spreads(raw, f"{label}_std", path)
    twice = songs["song_id"].duplicated()
    if twice.any():
        row = twice.idxmax()
        raise MusemoError(
            f"{path}, row {row}: song_id {songs['song_id'][row]} stands there twice; "
            "remove one of the rows"
        )
    return songs.reset_index(drop=True)


def read_own_table(
    path: Path,  # columns file (beside the table), valence, arousal; artist if known
    scale: str,  # a key of SCALES
) -> pd.DataFrame:  # song_id, file, artist; labels still on `scale`
    "Read a user's own table of songs."
    raw = _read_table(path, ["file", *LABELS])
    twice = raw["file"].duplicated()
    if twice.any():
        row = twice.idxmax()
        raise MusemoError(
            f"{path}, row {row}: file {raw['file'][row]} stands there twice; remove one of the rows"
        )
    songs = pd.DataFrame({"song_id": raw.index - 1, "file": raw["file"]})
    songs["artist"] = raw.get("artist", pd.Series("", raw.index))
    for label in LABELS:
        songs[label] = _numbers(raw, label, path, *SCALES[scale])
        songs[f"{label}_std"] = np.nan
    return songs.reset_index(drop=True)


# %%
#| export annotations
def read_artists(paths: list[Path]) -> dict[int, str]:
    "Read who made which song, from DEAM's metadata tables where they are there."
    artists = {}
    for path in paths:
        # Artists are welcome, not needed: an odd letter or row must not end a run.
        options = {"encoding_errors": "replace", "on_bad_lines": "skip"}
        try:
            table = pd.read_csv(path, dtype=str, **options)
        except (ValueError, OSError) as error:
            raise MusemoError(
                f"{path}: is no readable table of artists ({error}); mend it or remove it"
            ) from error
        table.columns = [plain_name(name) for name in table.columns]
        table = table.loc[:, ~table.columns.duplicated()]
        keys = [name for name in ("song_id", "id") if name in table]
        if keys and "artist" in table:
            ids = pd.to_numeric(table[keys[0]], errors="coerce")
            names = table["artist"].fillna("").str.strip()
            artists |= {int(i): x for i, x in zip(ids, names, strict=True) if np.isfinite(i)}
    return artists


# %%
with tempfile.TemporaryDirectory() as folder:
    table = Path(folder) / "t.csv"
    table.write_text("song_id, valence_mean, valence_ std, arousal_mean\r\n7, 5.8, 1.5, 6.4\r\n")
    test_eq(read_annotations(table).iloc[0].to_list()[:3], [7, 5.8, 1.5])
    table.write_text("song_id,valence_mean,arousal_mean\n7,12,6\n")
    test_fail(lambda: read_annotations(table), contains="row 2: valence_mean = '12'")
    table.write_text("song_id,valence\n7,5\n")
    test_fail(lambda: read_annotations(table), contains="has no column valence_mean")

# %% [markdown]
# ## The label audit
#
# The published table exchanges valence and arousal in its first 744 songs. Two witnesses say so:
# its content, by which the table is known, and the songs' own second-by-second annotations,
# whose mean goes with the *other* column. Another data set may use the same ids; it differs in
# content and stays as it is.

# %%
#| export annotations
# Valence and arousal as published (1-9) for the first songs of the 2013 edition.
_published = {
    2: (3.1, 3.0),
    3: (3.5, 3.3),
    4: (5.7, 5.5),
    5: (4.4, 5.3),
    7: (5.8, 6.4),
    8: (3.2, 4.8),
    10: (4.0, 4.7),
    12: (5.5, 5.8),
    13: (3.2, 4.0),
    17: (4.4, 6.0),
}
EXCHANGED_UP_TO = 1000  # ids of the 2013 edition


def is_published_deam(
    songs: pd.DataFrame,  # song_id, valence, arousal on 1-9
) -> bool:
    "Recognise DEAM's published table by its content."
    known = songs[songs["song_id"].isin(_published)]
    pairs = zip(known["song_id"], known["valence"], known["arousal"], strict=True)
    return len(known) >= 5 and all(_published[i] == (v, a) for i, v, a in pairs)


def read_dynamic(
    paths: dict[str, Path],  # "valence" and "arousal" -> table of samples in [-1, 1]
) -> pd.DataFrame:  # index song_id; mean of each song's samples
    "Average the dynamic annotations of each song; no rows where a table is missing."
    if set(paths) != set(LABELS):
        return pd.DataFrame(columns=LABELS, dtype=float)
    tables = {label: _read_table(paths[label], ["song_id"], ragged=True) for label in LABELS}
    tables = {k: table.apply(pd.to_numeric, errors="coerce") for k, table in tables.items()}
    for label, table in tables.items():
        twice = table["song_id"].duplicated()
        if twice.any():
            raise MusemoError(
                f"{paths[label]}: song_id {table['song_id'][twice].iloc[0]:g} stands there twice; "
                "remove one of the rows"
            )
    means = {k: table.set_index("song_id").mean(axis=1) for k, table in tables.items()}
    return pd.DataFrame(means)


def _correlations(songs: pd.DataFrame, dynamic: pd.DataFrame) -> dict:
    "Correlate each static column with both dynamic ones."
    both = songs.set_index("song_id").join(dynamic.add_suffix("_dynamic"), how="inner")
    result = {"songs": len(both)}
    for label in LABELS:
        for other in LABELS:
            r = both[label].corr(both[f"{other}_dynamic"]) if len(both) > 2 else np.nan
            result[f"{label}_with_dynamic_{other}"] = None if np.isnan(r) else round(float(r), 3)
    return result


# %%
#| export annotations
ENOUGH = 30  # songs with dynamic annotations, to judge labels by


def _witness(block: dict) -> str:
    "Say what the dynamic annotations tell of a block: exchanged, as named, or cannot tell."
    if block["songs"] < ENOUGH:
        return "cannot tell"
    if None in block.values():  # a column without spread goes with nothing
        return "cannot tell"
    crossed = [
        block[f"{label}_with_dynamic_{other}"] - block[f"{label}_with_dynamic_{label}"]
        for label, other in zip(LABELS, LABELS[::-1], strict=True)
    ]
    return "exchanged" if min(crossed) > 0.2 else "as named" if max(crossed) < 0 else "cannot tell"


def audit_labels(
    songs: pd.DataFrame,  # song_id, valence, arousal on 1-9
    dynamic: pd.DataFrame,  # as read_dynamic gives it
) -> dict:  # known by content, what the dynamic annotations say, exchanged ids, evidence by block
    "Find songs whose labels are exchanged, with the evidence of both witnesses."
    ids, known = songs["song_id"], is_published_deam(songs)
    witness = _witness(_correlations(songs[ids <= EXCHANGED_UP_TO], dynamic))
    found = witness == "exchanged" or (known and witness == "cannot tell")
    edges = [0, EXCHANGED_UP_TO, 2000, ids.max()] if found else [-1, ids.max()]
    blocks = []
    for low, high in zip(edges, edges[1:], strict=False):
        block = songs[ids.between(low + 1, high)]
        if len(block):
            span = f"{block['song_id'].min()}-{block['song_id'].max()}"
            blocks.append({"ids": span, **_correlations(block, dynamic)})
    exchanged = ids[ids <= EXCHANGED_UP_TO].tolist() if found else []
    return {"known": known, "witness": witness, "exchanged": exchanged, "blocks": blocks}


def exchange_labels(songs: pd.DataFrame, ids: list[int]) -> pd.DataFrame:
    "Exchange valence and arousal, and their spreads, in the named songs."
    songs = songs.copy()
    rows = songs["song_id"].isin(ids)
    for suffix in ("", "_std"):
        pair = [f"valence{suffix}", f"arousal{suffix}"]
        songs.loc[rows, pair] = songs.loc[rows, pair[::-1]].to_numpy(copy=True)
    return songs


# %%
#| export annotations
def settle_labels(
    songs: pd.DataFrame,
    dynamic: pd.DataFrame,
    labels: str,  # corrected or published
) -> tuple[pd.DataFrame, dict]:  # songs, audit
    "Exchange back what is exchanged; raises MusemoError where the two witnesses disagree."
    audit = audit_labels(songs, dynamic)
    if labels == "published":
        return songs, audit
    if audit["known"] and audit["witness"] == "as named":
        raise MusemoError(
            "the table is DEAM's published one, whose first 744 labels are exchanged, yet its "
            "dynamic annotations say otherwise; set data.labels=published to take it as it is"
        )
    return exchange_labels(songs, audit["exchanged"]), audit


def say_labels(
    audit: dict,  # as audit_labels gives it, and whether it was applied
) -> str:
    "Say in a sentence what the audit of the labels found."
    if n := len(audit["exchanged"]):
        done = "exchanged back" if audit["applied"] else "left as published (data.labels)"
        return f"{n} song{'s' * (n > 1)} had valence and arousal exchanged: {done}."
    if audit["witness"] == "as named":
        return "Each label goes with the second-by-second ratings of its own name."
    rated = sum(block["songs"] for block in audit["blocks"])
    if rated < ENOUGH:
        return (
            f"Nothing to check the labels by: {rated} of the {ENOUGH} songs with second-by-second "
            "ratings that it takes."
        )
    return (
        f"The second-by-second ratings of {rated} songs do not tell whether labels are exchanged."
    )


# %% [markdown]
# The exchange undoes itself, a table with DEAM's values is recognised, and one with DEAM's ids
# but other values is not.

# %%
songs = pd.DataFrame(_published, index=LABELS).T.rename_axis("song_id").reset_index()
songs = songs.assign(valence_std=1.0, arousal_std=2.0)
audit = audit_labels(songs, read_dynamic({}))
test_eq((audit["known"], audit["witness"], len(audit["exchanged"])), (True, "cannot tell", 10))
mended = exchange_labels(songs, audit["exchanged"])
test_eq(mended.loc[0, ["valence", "arousal", "valence_std"]].tolist(), [3.0, 3.1, 2.0])
test_eq(exchange_labels(mended, audit["exchanged"]), songs)
test_eq(audit_labels(mended, read_dynamic({}))["exchanged"], [])
test_eq(say_labels(audit | {"applied": True})[:42], "10 songs had valence and arousal exchanged")


# %% [markdown]
# ## Finding the files
#
# DEAM travels under many roofs: the official archives, old and new Kaggle mounts, folders with
# spaces or underscores. The names of its annotation files are the same everywhere, so those are
# searched for, and nothing else about the layout is assumed.


# %%
#| export
@dataclass(frozen=True)
class Sources:
    "Where the tables and the sound of a data set lie."

    tables: list[Path]
    dynamic: dict[str, Path] = field(default_factory=dict)  # "valence", "arousal"
    metadata: list[Path] = field(default_factory=list)
    audio: dict[str, Path] = field(default_factory=dict)  # file stem -> path
    twins: list[tuple[Path, Path]] = field(default_factory=list)  # sound of one stem


AUDIO_SUFFIXES = {".mp3", ".wav", ".flac", ".ogg", ".oga", ".opus", ".aif", ".aiff"}


def _refuse_two(one: Path, other: Path, root: Path) -> None:
    "Raise MusemoError where two files of one name are not the same."
    if not filecmp.cmp(one, other, shallow=False):
        raise MusemoError(
            f"data.path = {str(root)!r}: {one} and {other} have one name and are not the same; "
            "name a folder that holds one of them"
        )


def find_deam(
    root: Path,  # anywhere above the annotation files
) -> Sources:
    "Find DEAM's files by name; raises MusemoError where there is no annotation table."
    tables, dynamic, metadata, audio, twins = {}, {}, {}, {}, []
    for folder, folders, names in os.walk(root):
        folders.sort()
        if "run.json" in names:  # a run of the suite's: its songs are none of the data set
            folders.clear()
            continue
        for name in sorted(names):
            path, plain = Path(folder) / name, plain_name(name)
            if plain.startswith("static_annotations_averaged_songs") and path.suffix == ".csv":
                if (known := tables.setdefault(plain, path)) != path:
                    _refuse_two(known, path, root)
            elif plain in ("valence.csv", "arousal.csv") and "dynamic" in plain_name(
                path.parent.name
            ):
                dynamic.setdefault(path.stem.lower(), path)
            elif re.fullmatch(r"(metadata.*|songs_info)\.csv", plain):
                metadata.setdefault(plain, path)
            elif path.suffix.lower() in AUDIO_SUFFIXES and path.is_file():  # a pipe never ends
                known = audio.setdefault(path.stem, path)
                if known != path:
                    twins.append((known, path))
    if not tables:
        raise MusemoError(
            f"data.path = {str(root)!r}: holds no static_annotations_averaged_songs*.csv; "
            "name a folder above DEAM's annotations, or a .csv with file, valence, arousal"
        )
    return Sources(list(tables.values()), dynamic, list(metadata.values()), audio, twins)


def find_data(config: Config) -> Sources:
    "Find what data.path names: a folder in DEAM's layout, or a table of files."
    path = Path(config.data.path).expanduser()
    if not path.exists():
        raise MusemoError(
            f"data.path = {config.data.path!r}: there is no such folder or table; "
            "name DEAM's folder or a .csv of your songs"
        )
    if path.is_dir():
        sources = find_deam(path)
        for table in sources.tables:
            read_annotations(table)
        return sources
    read_own_table(path, config.data.scale)
    return Sources([path])


# %% [markdown]
# A made-up DEAM with underscores in its names, as one Kaggle copy has it, is found all the same.

# %%
with tempfile.TemporaryDirectory() as folder:
    table = Path(folder) / "x/song_level/static_annotations_averaged_songs_1_2000.csv"
    table.parent.mkdir(parents=True)
    table.write_text("song_id, valence_mean, arousal_mean\r\n2, 3.1, 3.0\r\n")
    (Path(folder) / "2.mp3").touch()
    found = find_deam(Path(folder))
    test_eq((found.tables, list(found.audio)), ([table], ["2"]))
    test_fail(lambda: find_deam(Path(folder) / "none"), contains="holds no static_annotations")

# %% [markdown]
# ## The split
#
# Songs of one artist sound alike, and a file may lie there twice under two names. What belongs
# together forms a group, and a group belongs to one part. Shuffled groups fill the test part, then
# validation; the rest trains. Neither names nor settings of the sound move a song to another part.

# %%
#| export splitting
MIN_SONGS = 6


def group_songs(
    artists: pd.Series,  # (N,) of text; empty: not known
    contents: pd.Series,  # (N,) of text, the same for files of the same bytes
) -> np.ndarray:  # (N,) groups, numbered as they appear
    "Group songs that share an artist or a file's content, directly or through other songs."
    codes = [pd.factorize(artists.where(artists != "", "\0" + contents))[0]]
    codes += [pd.factorize(contents)[0]]
    n = len(artists)
    # Songs are the first n nodes of a graph; artists and contents, which link them, the others.
    links = np.tile(np.arange(n), 2), np.concatenate([n + codes[0], 2 * n + codes[1]])
    graph = coo_array((np.ones(2 * n), links), shape=(3 * n, 3 * n))
    return connected_components(graph, directed=False)[1][:n]


def split_songs(
    groups: Sequence,  # (N,) of each song
    *,
    validation: float,  # share of songs
    test: float,  # share of songs
    rng: np.random.Generator,
) -> list[str]:  # train, val or test of each song
    "Split songs, keeping groups together; raises MusemoError for fewer than MIN_SONGS."
    n = len(groups)
    if n < MIN_SONGS:
        raise MusemoError(f"{n} usable songs: the split needs at least {MIN_SONGS}; give more")
    size = Counter(groups)
    names = sorted(size)
    if len(names) < 3:
        raise MusemoError(
            f"{len(names)} artists (or other songs without one): three parts need at least 3; "
            "give songs of others, or leave the artists out"
        )
    rng.shuffle(names)
    part = {}
    for split, share, left in (("test", test, 2), ("val", validation, 1)):  # parts to fill after it
        room, chosen = max(1, round(share * n)), []
        for name in names:
            if size[name] <= room and len(chosen) + left < len(names):
                chosen.append(name)
                room -= size[name]
        # Where nobody fits, the smallest goes in: a part is never empty.
        part |= dict.fromkeys(chosen or [min(names, key=size.get)], split)
        names = [name for name in names if name not in part]
    return [part.get(group, "train") for group in groups]


# %%
artists = pd.Series([f"artist {i % 20}" for i in range(60)] + [""] * 40)
contents = pd.Series(range(100)).astype(str)
contents[99] = "0"  # the first artist's first song once more, by nobody known
groups = group_songs(artists, contents)
parts = split_songs(groups, validation=0.15, test=0.2, rng=rng_for(0, "split"))
test_eq(pd.Series(parts).groupby(groups).nunique().max(), 1)
test_eq((groups.max() + 1, parts[99]), (20 + 39, parts[0]))
test_fail(
    lambda: split_songs([1, 2], validation=0.2, test=0.2, rng=rng_for(0)), contains="at least 6"
)
pd.Series(parts, name="part").value_counts().to_frame("songs")

# %% [markdown]
# ## From file to log-mel
#
# libsndfile reads, soxr resamples, scipy transforms: the same picture as librosa's, in less
# time. Loudness stays in it.

# %%
#| export sound_files
BLOCK = 2**16  # values that are read at once
CONVERT = "convert it to .wav or .flac, or leave it out"
LOUDEST = 4.0  # a float recording may pass 1; whole numbers of 16 bits pass this at once
RATES = (4000, 768_000)  # Hz; outside, a header is damaged or what it tells is no music


def check_rate(rate: int, name: str) -> None:
    "Raise MusemoError for a sample rate that no music has."
    if not RATES[0] <= rate <= RATES[1]:
        low, high = RATES
        raise MusemoError(
            f"{name}: sample rate {rate} Hz, must be from {low} to {high} Hz; resample it"
        )


class ForwardFile(soundfile.SoundFile):
    "A sound file that is read from its beginning to its end."

    @property
    def name(self) -> str:
        "Say the file's name, which libsndfile is given in bytes."
        return os.fsdecode(super().name)

    def seekable(self) -> bool:
        "Say no: else soundfile seeks after each block, and .mp3 below 32 kHz breaks there."
        return False


def open_sound(path: str | PathLike) -> ForwardFile:
    "Open a sound file; raises MusemoError where it is none."
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise MusemoError(f"{path}: there is no such file; name one that is there") from error
    except (OSError, ValueError) as error:  # too long a name, say, or a folder that is closed
        reason = getattr(error, "strerror", None) or error
        raise MusemoError(f"{path}: cannot be looked at ({reason}); name another file") from error
    if stat.S_ISDIR(mode):
        raise MusemoError(f"{path}: is a folder; name its files")
    if not stat.S_ISREG(mode):
        raise MusemoError(f"{path}: is no regular file; save it as one, and name that")
    try:
        file = ForwardFile(os.fsencode(path))  # a name in any encoding
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        reason = getattr(error, "error_string", str(error))
        if "not a regular file" in reason:  # said of a text that is named .mp3
            reason = "no format that libsndfile knows"
        raise MusemoError(f"{path}: cannot be read as sound ({reason}); {CONVERT}") from error
    try:
        if file.format == "RAW":  # libsndfile takes anything named .au, .vox or .gsm for sound
            raise MusemoError(
                f"{path}: cannot be read as sound (no header says what it is); {CONVERT}"
            )
        check_rate(file.samplerate, str(path))
    except MusemoError:
        file.close()
        raise
    return file


def to_mono(
    block: np.ndarray,  # (S, channels)
) -> np.ndarray:  # (S,)
    "Average the channels."
    channels = block.T  # summed one by one: a mean over rows this short takes seven times longer
    return sum(channels[1:], channels[0]) / len(channels) if len(channels) > 1 else channels[0]


def read_blocks(
    file: ForwardFile,
    most: float = math.inf,  # samples
) -> Iterator[np.ndarray]:  # (S,) mono
    "Read a file block by block; raises MusemoError for samples that are no sound."
    rows = max(1, BLOCK // file.channels)
    while len(block := file.read(min(rows, most), "float32", always_2d=True)):
        most -= len(block)
        peak = np.abs(block).max()
        if not np.isfinite(peak):
            raise MusemoError(f"{file.name}: holds samples that are no numbers; {CONVERT}")
        if peak > LOUDEST:
            raise MusemoError(f"{file.name}: peak {peak:g}, must be in [-1, 1]; {CONVERT}")
        yield to_mono(block)


def resample(
    blocks: Iterable[np.ndarray],  # (S,) float32 mono each, one after the other
    rate: int,  # Hz, of the blocks
    to: int,  # Hz
) -> Iterator[np.ndarray]:  # (S,)
    "Resample block by block; together they are what the whole would give."
    resampler = soxr.ResampleStream(rate, to, 1, "float32")
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


# %% [markdown]
# A header may claim anything: a rate of one sample a second would be blown up to gigabytes. What is
# no music is refused by name, and reading in blocks keeps eight channels from filling the memory.


# %%
#| export
def decode(
    path: str | Path,
    audio: AudioConfig,
) -> np.ndarray:  # (S,) float32 mono at audio.sample_rate, at most clip_seconds long
    "Decode a file to mono; raises MusemoError where it is no sound that can be read."
    with closing(open_sound(path)) as file:
        # A little more than is kept: a resampler rings where its sound ends.
        blocks = read_blocks(file, int((audio.clip_seconds + 0.1) * file.samplerate))
        try:
            wave = np.concatenate(list(resample(blocks, file.samplerate, audio.sample_rate)))
        except soundfile.LibsndfileError as error:
            raise MusemoError(
                f"{path}: cannot be decoded ({error.error_string}); {CONVERT}"
            ) from error
    return wave[: int(audio.clip_seconds * audio.sample_rate)]


# %%
with tempfile.TemporaryDirectory() as folder:
    path, noise = Path(folder) / "noise.wav", rng_for(0, "noise").normal(0, 0.1, (9000, 2))
    soundfile.write(path, noise, 22050, subtype="FLOAT")
    test_close(decode(path, AudioConfig()), noise.mean(axis=1), eps=1e-6)
    test_eq(len(decode(path, AudioConfig(clip_seconds=0.1))), 2205)
    soundfile.write(path, 1e20 * noise, 22050, subtype="FLOAT")
    test_fail(lambda: decode(path, AudioConfig()), contains="must be in [-1, 1]")
    soundfile.write(path, noise, 1)
    test_fail(lambda: decode(path, AudioConfig()), contains="sample rate 1 Hz")


# %%
#| export spectrum
class _Kept(dict):
    "What a process makes once. Sent to another it is empty; what functools.cache wraps cannot go."

    def __reduce__(self):
        return _Kept, ()


_banks = _Kept()


def mel_bank(audio: AudioConfig) -> torch.Tensor:
    "Make librosa's mel filters (Slaney), (M, n_fft / 2 + 1)."
    if ("dense", audio) not in _banks:
        _banks["dense", audio] = torch.from_numpy(librosa.filters.mel(**audio.mel))
    return _banks["dense", audio]


def short_time(
    wave: torch.Tensor,  # (B, S)
    audio: AudioConfig,
) -> torch.Tensor:  # (B, n_fft / 2 + 1, T) complex
    "Take the centred short-time Fourier transform with a Hann window; silence beyond the ends."
    window = torch.hann_window(audio.n_fft, device=wave.device)
    return torch.stft(
        wave, audio.n_fft, audio.hop, window=window, pad_mode="constant", return_complex=True
    )


def squared(values: torch.Tensor) -> torch.Tensor:
    "Square the magnitude of complex values."
    return values.real.square().addcmul_(values.imag, values.imag)


# %% [markdown]
# Songs are transformed a few frames at a time, which then stay in the processor's cache. A mel
# band hears some ten of a thousand bins: the filters are kept sparse, and nothing above the
# highest band is looked at.

# %%
#| export spectrum
FEW_FRAMES = 64  # transformed at once: sets the time, not the result


def sparse_bank(audio: AudioConfig) -> csr_array:
    "Make the mel filters without their zeros, (M, bins up to the highest that is heard)."
    if ("sparse", audio) not in _banks:
        bank = mel_bank(audio).numpy()
        _banks["sparse", audio] = csr_array(bank[:, : np.flatnonzero(bank.any(axis=0))[-1] + 1])
    return _banks["sparse", audio]


def mel_power(
    wave: np.ndarray,  # (S,) float32
    audio: AudioConfig,
) -> np.ndarray:  # (M, T)
    "Compute the mel spectrogram of what `short_time` gives, piece by piece."
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, audio.n_fft // 2), audio.n_fft)
    # Nothing of torch: its threads, once woken, wait busily beside those that decode.
    frames, window = frames[:: audio.hop], np.hanning(audio.n_fft + 1)[:-1].astype(np.float32)
    bank, pieces = sparse_bank(audio), []
    for i in range(0, len(frames), FEW_FRAMES):
        values = rfft(frames[i : i + FEW_FRAMES] * window)[:, : bank.shape[1]]
        pieces.append(bank @ (values.real**2 + values.imag**2).T)
    return np.concatenate(pieces, axis=1)


def wave_log_mel(
    waves: np.ndarray,  # (B, S) float32 in [-1, 1]
    audio: AudioConfig,
) -> np.ndarray:  # (B, M, T) float32 in [-1, 1]
    "Compute log-mel spectrograms on the fixed decibel scale of the configuration."
    power = np.stack([mel_power(wave, audio) for wave in waves])
    return audio.to_unit(10 * np.log10(np.maximum(power, 1e-10)))


# %%
noise = rng_for(0, "noise").normal(0, 0.1, 9000).astype(np.float32)
whole = squared(short_time(torch.from_numpy(noise)[None], AudioConfig()))[0]
test_close(mel_power(noise, AudioConfig()), (mel_bank(AudioConfig()) @ whole).numpy(), eps=1e-4)

# %%
#| export spectrum


def sounding_part(
    log_mel: np.ndarray,  # (M, T) in [-1, 1], or the loudest of the bands (1, T)
    audio: AudioConfig,
    *,
    quiet: float = -40.0,  # dB; music lies some 50 dB above
) -> slice:  # of the frames; an empty one where all is silent
    "Find what lies between silence at both ends, frames in which no band is above `quiet`."
    sounding = np.flatnonzero(log_mel.max(axis=0) > audio.to_unit(np.float32(quiet)))
    return slice(sounding[0], sounding[-1] + 1) if len(sounding) else slice(0, 0)


def trim_silence(
    log_mel: np.ndarray,  # (M, T) in [-1, 1]
    audio: AudioConfig,
) -> np.ndarray:  # (M, at most T); (M, 0) where all is silent
    "Cut off silence at both ends."
    return log_mel[:, sounding_part(log_mel, audio)]


def log_mel_of(
    wave: np.ndarray,  # (S,) mono at audio.sample_rate
    audio: AudioConfig,
) -> np.ndarray:  # (M, T) float16 in [-1, 1]
    "Compute one song's log-mel spectrogram, without silence at its ends, as it is kept."
    one = wave_log_mel(np.asarray(wave, np.float32)[None], audio)[0]
    return trim_silence(one, audio).astype(np.float16)


def sounding_wave(
    wave: np.ndarray,  # (S,) mono at audio.sample_rate
    audio: AudioConfig,
) -> np.ndarray:  # (at most S,)
    "Cut off what `log_mel_of` leaves out, to be heard beside its picture."
    part = sounding_part(wave_log_mel(np.asarray(wave, np.float32)[None], audio)[0], audio)
    return wave[part.start * audio.hop : part.stop * audio.hop]


# %% [markdown]
# Silence at the ends goes: a window of nothing has no emotion, and a generator would learn to
# draw it. Rests inside a song stay. librosa is the reference: the two agree to the precision
# that half-precision storage has.

# %%
audio = AudioConfig(clip_seconds=3.0)
seconds = np.arange(3 * 22050) / 22050
wave = (0.3 * np.sin(2 * np.pi * 440 * seconds**1.2)).astype(np.float32)
reference = librosa.feature.melspectrogram(y=wave, hop_length=512, **audio.mel)
reference = np.clip(librosa.power_to_db(reference, ref=1.0, amin=1e-10, top_db=None), -60, 40)
ours = audio.to_db(log_mel_of(wave, audio))
test_eq(ours.shape, (128, audio.frames))
ringing = np.pad(wave[:22050], 22050)  # a second of silence, of sound, of silence
test_close(log_mel_of(ringing, audio).shape[1], 22050 / 512, eps=5)
test_eq(len(sounding_wave(ringing, audio)), log_mel_of(ringing, audio).shape[1] * 512)
test_eq(log_mel_of(0 * wave, audio).shape, (128, 0))
test_close(ours, reference, eps=0.05)

# %% [markdown]
# A song of an hour is not held whole. Resampler and transform take it piece by piece, with enough
# of the last piece kept for frames at a cut to see both of their sides. What comes out is what the
# whole would have given.

# %%
#| export spectrum
STRETCH = 2**18  # samples transformed at once: sets the memory, not the result


def stream_log_mel(
    blocks: Iterable[np.ndarray],  # (S,) mono each, one after the other
    rate: int,  # Hz, of the blocks
    audio: AudioConfig,
) -> Iterator[np.ndarray]:  # (M, T) each, one after the other
    "Compute the log-mel spectrogram of a sound of any length, piece by piece."
    side = -(-audio.n_fft // (2 * audio.hop))  # frames at a cut whose window reaches beyond it
    wave, skip = np.zeros(0, np.float32), 0
    for more in chain(resample(blocks, rate, audio.sample_rate), [None]):
        last = more is None
        if not last:
            wave = np.concatenate([wave, more])
        if not len(wave) or len(wave) < STRETCH and not last:
            continue
        stop = (len(wave) if last else len(wave) - audio.n_fft // 2) // audio.hop + 1
        yield wave_log_mel(wave[None], audio)[0][:, skip:stop]
        wave, skip = wave[(stop - side) * audio.hop :], side


# %%
noise = rng_for(0).normal(0, 0.1, 15 * 44100).astype(np.float32)
pieces = list(stream_log_mel(np.array_split(noise, 100), 44100, audio))
whole = soxr.resample(noise, 44100, audio.sample_rate)[None]
test_eq(len(pieces), 2)
test_close(np.concatenate(pieces, axis=1), wave_log_mel(whole, audio)[0], eps=1e-5)

# %% [markdown]
# ## Decoding once
#
# A song's spectrogram is kept under a key made of the file's bytes and the sound settings. A
# second run decodes nothing; a changed file or setting has another key. What cannot be used is
# a reason, not an error: one bad file must not end a run.

# %%
#| export jobs
import importlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from joblib import Parallel, parallel_config
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from musemo.core import MusemoError, progress


# %%
#| export jobs
@contextmanager
def _backend(name: str) -> Iterator[None]:
    "Let joblib's jobs run in threads, processes (loky) or a cluster; raises MusemoError without."
    with ExitStack() as stack:
        try:
            if name == "dask":  # the scheduler that DASK_SCHEDULER_ADDRESS names, or one made here
                stack.enter_context(importlib.import_module("distributed").Client())
            elif name == "ray":
                importlib.import_module("ray.util.joblib").register_ray()
            stack.enter_context(parallel_config(backend=name))
        except ImportError as error:
            needed = {"dask": "distributed", "ray": "ray"}[name]
            raise MusemoError(
                f"data.backend = {name!r}: is not installed; pip install {needed}"
            ) from error
        except OSError as error:
            raise MusemoError(
                f"data.backend = {name!r}: no cluster answers ({error}); start one, or set "
                "data.backend=threading"
            ) from error
        yield


def run_jobs(
    jobs: Iterable,  # of joblib's delayed calls
    *,
    workers: int,  # processes or threads; -1: all that there are
    desc: str,
    total: int,
    backend: str = "loky",  # or threading, dask, ray: joblib's names
) -> list:  # results in order
    "Run jobs beside each other, with a progress bar; raises MusemoError where a process dies."
    try:
        with _backend(backend):
            form = "list" if backend == "ray" else "generator"  # ray's joblib has lists only
            # To hand a job to a thread costs as much as a look into the cache: many go in fours.
            size = 4 if backend == "threading" and total > 100 else "auto"
            options = {"n_jobs": workers, "batch_size": size, "max_nbytes": None}
            results = Parallel(return_as=form, **options)(jobs)
            return list(progress(results, desc=desc, total=total))
    except TerminatedWorkerError as error:
        raise MusemoError(
            f"a process died while {desc}, most likely for want of memory: lower data.workers, "
            "training.processes or --workers of musemo evaluate; what is done is kept"
        ) from error
    finally:
        if backend == "loky":  # idle processes would keep their memory, and their parent waiting
            get_reusable_executor().shutdown()


# %%
#| export
def _recall(path: Path, audio: AudioConfig) -> np.ndarray | None:  # (M, T)
    "Map a spectrogram of the cache; None where it is not there, or is none."
    try:
        log_mel = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, OverflowError):
        return None
    whole = log_mel.dtype == np.float16 and log_mel.ndim == 2 and len(log_mel) == audio.n_mels
    return log_mel if whole else None


def mark_file(path: Path) -> str:
    "Name the content of a file, in a few bytes."
    # xxHash tells files apart as well as a cryptographic hash and reads them at memory's speed.
    with open(path, "rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def cached_log_mel(
    path: Path,
    audio: AudioConfig,
    cache: Path,  # folder of spectrograms by key
    min_seconds: float,
) -> tuple[str, str]:  # "ok" and the cached file, or another status and its reason
    "Make sure that a song's log-mel lies in the cache, or say why it cannot be used."
    try:
        content = mark_file(path)
    except OSError as error:
        return "unreadable", f"{path.name}: {error.strerror}"
    settings = hashlib.blake2b(b"log-mel 4" + audio.model_dump_json().encode(), digest_size=8)
    target = cache / content[:2] / f"{content}-{settings.hexdigest()}.npy"
    log_mel = _recall(target, audio)
    if log_mel is None:
        try:
            wave = decode(path, audio)
        except MusemoError as error:
            return "unreadable", str(error).replace(str(path), path.name)
        write_atomic(target, log_mel_of(wave, audio))
        log_mel = _recall(target, audio)
    seconds = log_mel.shape[1] * audio.hop / audio.sample_rate
    if not seconds:
        return "silent", "no sound above -40 dB"
    if seconds < min_seconds:
        return "too_short", f"{seconds:.1f} s of at least {min_seconds:g} s"
    return "ok", str(target)


def extract_log_mels(
    paths: list[Path], config: Config
) -> list[tuple[str, str]]:  # as cached_log_mel gives it, in the order of paths
    "Bring the log-mels of many songs into the cache, side by side, with a progress bar."
    cache = Path(config.data.cache).expanduser()
    # A process takes seconds to start: with fewer songs for each it costs more than it gives.
    least = {"threading": 1, "loky": 256}.get(config.data.backend)
    workers = -1  # a cluster knows itself how many it has
    if least:
        workers = config.data.workers or max(1, min(cpu_count(), len(paths) // least))
    jobs = (
        delayed(cached_log_mel)(path, config.audio, cache, config.data.min_seconds)
        for path in paths
    )
    options = {"workers": workers, "backend": config.data.backend}
    return run_jobs(jobs, desc="decoding", total=len(paths), **options)


# %%
with tempfile.TemporaryDirectory() as folder:
    good, bad = Path(folder) / "good.wav", Path(folder) / "bad.wav"
    soundfile.write(good, wave, 22050)
    bad.write_text("this is no music")
    settings = [audio, Path(folder) / "cache", 2.0]
    status, where = cached_log_mel(good, *settings)
    before = os.stat(where).st_mtime_ns
    test_eq(cached_log_mel(good, *settings), ("ok", where))
    test_eq(os.stat(where).st_mtime_ns, before)
    test_eq(cached_log_mel(bad, *settings)[0], "unreadable")
    test_eq(cached_log_mel(good, *settings[:2], 5.0), ("too_short", "3.0 s of at least 5 s"))


# %% [markdown]
# ## The stage
#
# Tables, audit and sound come together in one list. Every song of it has a status; the usable
# ones have a part and a row in `logmel.npy`.


# %%
#| export
def _list_deam(path: Path, labels: str) -> tuple[pd.DataFrame, dict, list[Path | None]]:
    "List the songs of a folder in DEAM's layout; files without a label stand at the end."
    sources = find_deam(path)
    songs = pd.concat(map(read_annotations, sources.tables), ignore_index=True)
    songs = songs.drop_duplicates(["song_id", *LABELS])
    if (twice := songs["song_id"].duplicated()).any():
        tables = " and ".join(map(str, sources.tables))
        raise MusemoError(
            f"{tables}: song_id {songs['song_id'][twice].iloc[0]} has other labels in another "
            "table; leave one of the tables out"
        )
    songs = songs.sort_values("song_id", ignore_index=True)
    labelled = set(songs["song_id"].astype(str))
    for one, other in sources.twins:
        if one.stem in labelled:
            _refuse_two(one, other, path)
    songs, audit = settle_labels(songs, read_dynamic(sources.dynamic), labels)
    artists = read_artists(sources.metadata)
    songs["artist"] = [artists.get(i, "") for i in songs["song_id"]]
    files = [sources.audio.get(str(i)) for i in songs["song_id"]]
    extra = sorted(set(sources.audio) - labelled)
    unlabelled = pd.DataFrame(
        {"song_id": [int(s) if s.isdecimal() and len(s) < 10 else -1 for s in extra]}, dtype=int
    )
    files += [sources.audio[stem] for stem in extra]
    return pd.concat([songs, unlabelled], ignore_index=True), audit, files


def list_songs(
    config: Config,
) -> tuple[pd.DataFrame, dict, list[Path | None]]:  # labels in [-1, 1]; audit; each song's file
    "List every song that has a label or a file, with what is missing of it."
    path = Path(config.data.path).expanduser()
    find_data(config)
    if path.is_dir():
        songs, audit, files = _list_deam(path, config.data.labels)
        low, high = SCALES["1-9"]
    else:
        songs = read_own_table(path, config.data.scale)
        files = [f if os.path.isfile(f := path.parent / name) else None for name in songs["file"]]
        audit = {"known": False, "witness": "cannot tell", "exchanged": [], "blocks": []}
        low, high = SCALES[config.data.scale]
    for label in LABELS:
        songs[label] = (songs[label] - low) / (high - low) * 2 - 1
        songs[f"{label}_std"] *= 2 / (high - low)
    songs["file"] = [file.name if file else "" for file in files]
    songs["status"] = np.where(songs["valence"].isna(), "no_label", "ok")
    songs.loc[songs["file"] == "", "status"] = "no_audio"
    return songs, audit, files


# %%
#| export
def about_data(config: Config) -> str:  # "" where it says nothing
    "Read what a data set says of itself, in its README.txt."
    path = Path(config.data.path).expanduser() / "README.txt"
    return path.read_text(errors="replace") if path.is_file() else ""


REASONS = {"no_audio": "no file of this name", "no_label": "no row in the tables", "ok": ""}


def _split_usable(songs: pd.DataFrame, contents: dict[int, str], config: Config) -> pd.DataFrame:
    "Give each usable song its part; raises MusemoError with all counts where they are too few."
    usable, data = songs["status"] == "ok", config.data
    shares = {"validation": data.validation, "test": data.test}
    files = songs[usable].index
    groups = group_songs(songs["artist"][usable], pd.Series({i: contents[i] for i in files}, files))
    try:
        parts = split_songs(groups, **shares, rng=rng_for(config.seed, "split"))
    except MusemoError as error:
        counts = ", ".join(f"{n} {status}" for status, n in songs["status"].value_counts().items())
        raise MusemoError(f"{error}; data.path = {data.path!r} has {counts}") from error
    songs["split"], songs["group"] = "", -1
    songs.loc[usable, "split"], songs.loc[usable, "group"] = parts, groups
    return songs


def prepare_data(run: Run, config: Config) -> tuple[pd.DataFrame, dict]:
    "Leave songs.csv, logmel.npy and label_audit.json in the run; returns songs and audit."
    songs, audit, files = list_songs(config)
    songs["reason"] = songs["status"].map(REASONS)
    there = songs.index[songs["status"] == "ok"]
    found = dict(zip(there, extract_log_mels([files[i] for i in there], config), strict=True))
    for i, (status, where) in found.items():
        songs.loc[i, ["status", "reason"]] = status, "" if status == "ok" else where
    contents = {i: Path(where).stem.partition("-")[0] for i, (_, where) in found.items()}
    songs["content"] = pd.Series(contents, dtype=str).where(songs["status"] == "ok", "")
    songs = _split_usable(songs, contents, config)
    # A part lies in one piece, so that it can be read without a copy.
    usable = songs[songs["status"] == "ok"].sort_values("split", kind="stable").index
    log_mel = np.full((len(usable), config.audio.n_mels, config.audio.frames), -1, np.float16)
    songs["frames"], songs["row"] = 0, -1
    for row, i in enumerate(usable):
        one = np.load(found[i][1])
        log_mel[row, :, : one.shape[1]] = one
        songs.loc[i, ["frames", "row"]] = one.shape[1], row
    audit["applied"] = config.data.labels == "corrected"
    audit["units"] = {"exchanged": "song_id", "blocks": "Pearson r of the table as published"}
    run.save("label_audit.json", audit)
    run.save("logmel.npy", log_mel)
    run.save("songs.csv", songs)
    return songs, audit


# %% [markdown]
# ## Songs to look through
#
# Labels are means over people who disagree. So a song is shown with its raters' spread: as a cross
# on the plane, and in words.


# %%
#| export song_browser
def song_label(song) -> str:  # song: a row of songs.csv
    "Say a song's number, part and labels, each with the spread over its raters."
    told = []
    for axis in ("valence", "arousal"):
        spread = getattr(song, f"{axis}_std")
        ends = "spread not known" if np.isnan(spread) else f"raters +- {spread:.2f}"
        told.append(f"{axis} {getattr(song, axis):+.2f} ({ends})")
    return f"song {song.song_id} ({song.split}): {', '.join(told)}"


_parts = {"train": ("real", "o"), "val": ("third", "^"), "test": ("model", "s")}


def plot_songs(
    axes: plt.Axes,
    songs: pd.DataFrame,  # usable rows of songs.csv
    *,
    chosen: int | None = None,  # index of a song to mark, with its raters' spread
) -> None:
    "Draw songs on the valence-arousal plane, a colour and a mark for each part."
    for split, (color, mark) in _parts.items():
        part, options = songs[songs["split"] == split], {"s": 14, "marker": mark, "label": split}
        axes.scatter(part["valence"], part["arousal"], color=COLORS[color], **options)
    if chosen is not None:
        at = songs.loc[chosen, ["valence", "arousal", "valence_std", "arousal_std"]].astype(float)
        spread = {"xerr": at["valence_std"], "yerr": at["arousal_std"]}
        axes.errorbar(at["valence"], at["arousal"], **spread, fmt="o", ms=9, mfc="none", color="k")
    axes.set(xlabel="valence [-1, 1]", ylabel="arousal [-1, 1]")
    axes.legend(loc="upper left")


def plot_song(
    log_mel: np.ndarray,  # (M, T) in [-1, 1]
    audio: AudioConfig,
    *,
    title: str = "",
) -> plt.Figure:
    "Draw a song's spectrogram as wide as a page."
    figure, axes = subplots(size=(7, 2.4))
    bands = librosa.mel_frequencies(audio.n_mels, fmin=audio.f_min, fmax=audio.f_max)
    grid = {"sample_rate": audio.sample_rate, "hop": audio.hop, "bands": bands, "title": title}
    image = plot_log_mel(axes, audio.to_db(log_mel), **grid, limits=(audio.db_min, audio.db_max))
    figure.colorbar(image, label="level (dB)")
    return figure


# %%
rated = pd.DataFrame({"song_id": range(4), "split": ["train", "train", "val", "test"]})
rated["valence"], rated["arousal"] = [-0.5, 0.5, 0.4, 0.0], [-0.5, 0.5, 0.6, 0.0]
rated["valence_std"], rated["arousal_std"] = [0.2, np.nan, 0.3, 0.2], 0.1
labels = [song_label(song) for song in rated.itertuples()]
assert labels[0].startswith("song 0 (train): valence -0.50 (raters +- 0.20), arousal -0.50")
assert "valence +0.50 (spread not known)" in labels[1]
figure, axes = subplots()
plot_songs(axes, rated, chosen=2)


# %% [markdown]
# A click on the plane goes to the nearest song, a second click at the same place to the next one
# there. The plane is a picture under a grid of buttons without colour: every notebook shows that,
# and a grid does not grow with the songs. By keyboard, the list leads to each of them.


# %%
#| export song_browser
def click_plane(
    picture: ipywidgets.Image,
    go,  # called with valence and arousal
    *,
    side: int = 15,  # buttons
) -> tuple[ipywidgets.GridBox, list[ipywidgets.Button]]:  # buttons row by row, the top one first
    "Lay buttons over a picture of the plane."
    each = ipywidgets.Layout(width="auto", height="auto", margin="0", padding="0", border="none")
    style, buttons = ipywidgets.ButtonStyle(button_color="transparent"), []
    middles = (2 * np.arange(side) + 1) / side - 1
    for arousal in middles[::-1]:
        for valence in middles:
            tip = f"valence {valence:+.1f}, arousal {arousal:+.1f}"
            button = ipywidgets.Button(tooltip=tip, layout=each, style=style, tabbable=False)
            button.on_click(lambda _, at=(float(valence), float(arousal)): go(*at))
            buttons.append(button)
    same = {"grid_area": "1 / 1 / 2 / 2", "width": "100%", "height": "100%", "margin": "0"}
    picture.layout = same
    repeat = f"repeat({side}, minmax(0, 1fr))"
    tracks = {"grid_template_columns": repeat, "grid_template_rows": repeat, "grid_gap": "0"}
    over = ipywidgets.GridBox(buttons, layout=same | tracks)
    one = {"grid_template_columns": "minmax(0, 1fr)", "grid_template_rows": "20rem"}
    one |= {"width": "20rem", "max_width": "100%", "overflow": "hidden"}
    return ipywidgets.GridBox([picture, over], layout=one), buttons


# %%
asked = []
plane, buttons = click_plane(ipywidgets.Image(), lambda *at: asked.append(at), side=3)
for place in (0, 4, 8):
    buttons[place].click()
test_close(asked, [(-2 / 3, 2 / 3), (0, 0), (2 / 3, -2 / 3)], eps=1e-9)


# %%
#| export song_browser
def song_files(config: Config) -> dict[int, Path | None]:  # song_id -> file
    "Find each song's sound."
    songs, _, files = list_songs(config)
    return dict(zip(songs["song_id"], files, strict=True))


class SongBrowser:
    "The usable songs of a run: plane, list, spectrogram, player; `box` is the widget."

    def __init__(
        self,
        run: Run,
        config: Config,
        files: dict[int, Path | None] | None = None,  # from song_files; None: found here
    ):
        songs = run.load("songs.csv")
        self.songs = songs[songs["status"] == "ok"].reset_index(drop=True)
        self.files = song_files(config) if files is None else files
        self.log_mel, self.audio = run.load("logmel.npy"), config.audio
        self.shown, self.filling, self.last, self.again = -1, False, None, 0
        parts = [("all parts", ""), *((part, part) for part in _parts)]
        self.part = ipywidgets.Dropdown(options=parts, description="part")
        words = {"placeholder": "number, artist or file", "continuous_update": False}
        self.search = ipywidgets.Text(description="search", **words)
        self.list = ipywidgets.Select(rows=14, layout={"width": "20rem", "max_width": "100%"})
        self.picture, self.sound = empty_picture(), silent_player()
        self.label, self.plane = ipywidgets.HTML(), ipywidgets.Image(format="png")
        plane, self.buttons = click_plane(self.plane, self.go)
        chooser = ipywidgets.VBox([self.part, self.search, self.list], layout={"max_width": "100%"})
        top = ipywidgets.HBox([plane, chooser], layout={"flex_flow": "row wrap"})
        self.box = ipywidgets.VBox([top, self.label, self.picture, self.sound])
        self.part.observe(lambda _: self.fill(), "value")
        self.search.observe(lambda _: self.fill(), "value")
        self.list.observe(self._choose, "value")
        self.fill()

    def fill(self) -> None:
        "List the songs that part and search let through, and show the first."
        text, songs = self.search.value.strip().lower(), self.songs
        words = songs[["song_id", "artist", "file"]].astype(object).fillna("").astype(str)
        kept = words.agg(" ".join, axis=1).str.lower().str.contains(text, regex=False)
        kept &= songs["split"].isin([self.part.value] if self.part.value else [*_parts])
        self.listed, self.last = songs[kept], None
        self.filling = True  # the list follows, and must not answer
        self.list.options = [
            (f"{x.song_id}  V {x.valence:+.2f}  A {x.arousal:+.2f}  {x.file}", x.Index)
            for x in self.listed.itertuples()
        ]
        self.filling = False
        if len(self.listed):
            self.show(self.listed.index[0], play=False)
        else:
            self.label.value = f"No song has {html.escape(self.search.value)!r} in this part."
            self.picture.value, self.sound.value, self.shown = b"", b"", -1

    def go(self, valence: float, arousal: float) -> None:
        "Answer a click on the plane: the nearest song, or the next one there."
        if not len(self.listed):
            return
        away = np.hypot(self.listed["valence"] - valence, self.listed["arousal"] - arousal)
        there = away.sort_values(kind="stable").index
        there = there[: max(1, int((away < 0.1).sum()))]
        self.again = self.again + 1 if self.last == (valence, arousal) else 0
        self.last = (valence, arousal)
        self.show(there[self.again % len(there)], play=True)

    def show(self, index: int, *, play: bool) -> None:
        "Show a listed song by its row; `play` answers a click."
        song, self.shown = self.songs.loc[index], int(index)
        self.filling, self.list.value = True, self.shown
        self.filling = False
        told, log_mel = song_label(song), self.log_mel[song["row"], :, : song["frames"]]
        self.picture.value = png_bytes(plot_song(log_mel, self.audio))
        self.plane.value = _plane_png(self.listed, self.shown)
        try:
            wave = decode(self.files.get(song["song_id"]) or song["file"], self.audio)
            wave = sounding_wave(wave, self.audio)
            put_sound(self.sound, wave, self.audio.sample_rate, play=play)
        except MusemoError as error:
            self.sound.value, told = b"", f"{told}. {error}"
        self.label.value = html.escape(told)

    def _choose(self, change) -> None:
        if not self.filling and change["new"] is not None:
            self.show(change["new"], play=True)


def _plane_png(songs: pd.DataFrame, chosen: int) -> bytes:
    "Draw the plane from edge to edge, so that a place in the picture is a place on it."
    figure, axes = subplots(size=(5, 5))
    plot_songs(axes, songs, chosen=chosen)
    figure.set_layout_engine("none")
    axes.set(xlim=(-1, 1), ylim=(-1, 1), position=(0, 0, 1, 1))
    axes.text(0.98, 0, "valence", va="bottom", ha="right")
    axes.text(0, 0.98, "arousal", va="top", ha="right", rotation=90)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.axvline(0, color="black", linewidth=0.6)
    return png_bytes(figure)


# %% [markdown]
# ## On the run
#
# What the data set says of itself, what this run has of it, and what was left out.

# %% tags=["parameters"]
run_folder = None  # a run's folder; None: a run at the smoke size, made on the spot

# %%
#| hide
from musemo.opening import open_run

run, config = open_run(run_folder, before=3)

# %%
if about := about_data(config):
    print(about)

# %%
songs, audit = prepare_data(run, config)
display(songs["status"].value_counts().rename("songs").to_frame())
display(
    songs.query("status == 'ok'")
    .groupby("split")[["valence", "arousal"]]
    .agg(["count", "mean", "std"])
    .round(2)
)

# %% [markdown]
# The audit of the labels: each static column should go with the dynamic column of its own name.
# Where it goes with the other one instead, the table has them exchanged.

# %%
print(say_labels(audit))
if audit["blocks"]:
    display(pd.DataFrame(audit["blocks"]).set_index("ids").astype(object).T)

# %% [markdown]
# Songs on the valence-arousal plane, and three of them as the models see them: from low to high
# arousal, loudness and density rise.

# %%
usable = songs[songs["status"] == "ok"]
figure, axes = subplots(1, 4, size=(3.4, 3))
plot_songs(axes[0], usable)
axes[0].set_title("Songs")
by_arousal = usable.sort_values("arousal", ignore_index=True)
shown = by_arousal.iloc[[0, len(by_arousal) // 2, len(by_arousal) - 1]]
log_mel = run.load("logmel.npy")
bands = librosa.mel_frequencies(
    config.audio.n_mels, fmin=config.audio.f_min, fmax=config.audio.f_max
)
for panel, song in zip(axes[1:], shown.itertuples(), strict=True):
    image = plot_log_mel(
        panel,
        config.audio.to_db(log_mel[song.row, :, : song.frames]),
        sample_rate=config.audio.sample_rate,
        hop=config.audio.hop,
        bands=bands,
        limits=(config.audio.db_min, config.audio.db_max),
        title=f"song {song.song_id}: V {song.valence:+.2f}, A {song.arousal:+.2f}",
    )
figure.colorbar(image, ax=axes[-1], label="level (dB)")
counts = ", ".join(f"{n} {split}" for split, n in usable["split"].value_counts().items())
corrected = len(audit["exchanged"]) if audit["applied"] else 0
number = f"{len(usable)} songs ({counts}), {corrected} labels corrected"
run.headline("03_data", number, figure)

# %% [markdown]
# The same three songs to hear, the first 8 s of each.

# %%
files, most = song_files(config), 8 * config.audio.sample_rate
for song in shown.itertuples():
    sound = sounding_wave(decode(files[song.song_id], config.audio), config.audio)[:most]
    display(player(sound, config.audio.sample_rate, label=song_label(song)))

# %% [markdown]
# In a notebook, any song: a click on the plane, or the list. Listen for how far a song is from
# others with its labels; the cross is as wide as its raters disagreed.

# %%
browser = SongBrowser(run, config, files)
browser.box
