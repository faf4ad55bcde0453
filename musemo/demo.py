"""Demo music composed by musemo in the layout of the DEAM data set. NO HUMAN RATED IT.

A score on it says nothing about real music. Labels (1-9) are a weighted sum of a piece's cues plus
the noise of ten simulated raters. Signs and order of the weights follow these sources; sizes are
rounded by us; density, drums and noise are our choice:
- mode first, then tempo, register, dynamics, articulation and timbre, linear and additive:
  Eerola, Friberg & Bresin (2013), Frontiers in Psychology 4:487
- modes in order of happiness: Temperley & Tan (2013), Music Perception 30(3), 237-257
- loud is energetic and pleasant: Ilie & Thompson (2006), Music Perception 23(4), 319-330
- consonance is pleasant: McDermott, Lehr & Oxenham (2010), Current Biology 20(11), 1035-1041
- minor is slower and lower: Poon & Schutz (2015), Frontiers in Psychology 6:1419; and softer:
  Turner & Huron (2008), Empirical Musicology Review 3(2), 64-68
Annotations over time are the label and a wander that the music does not cause. Licence: musemo's;
the sound is Tim Brechbill's TimGM6mb.sf2 (GNU General Public License 2), which pretty_midi ships.
"""

import io
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import midirenderer
import numpy as np
import pretty_midi
import soundfile
import soxr
from joblib import cpu_count, delayed

from musemo.composer import ENSEMBLES, MODES, Composer, Cues
from musemo.core import MusemoError
from musemo.jobs import run_jobs

EDITION = 2  # to be raised when a seed would sound or be labelled differently
RATE = 44_100  # Hz, as DEAM's clips
GAIN = 1.6  # the same for every piece, so that soft pieces stay soft; no peak reaches 1
AUDIO = "DEAM_audio/MEMD_audio"
TABLES = "DEAM_Annotations/annotations/annotations averaged per song"
STATIC = "song_level/static_annotations_averaged_songs_1_2000.csv"
STATIC_HEADER = "song_id, valence_mean, valence_std, arousal_mean, arousal_std"

STYLE_WEIGHTS = {"mode": (0.55, 0.0), "brightness": (0.0, 0.25), "drums": (0.10, 0.20)}
CENTRE, SPREAD = (4.8, 4.75), (1.0, 1.15)  # with rater noise: DEAM's mean and spread (1-9)
LEVELS = {name: h.__metadata__ for name, h in Cues.__annotations__.items() if get_args(h)}


def draw_cues(seed: int, song_id: int) -> Cues:
    """Draw the cues of a piece, the same in a demo of any size."""
    rng = np.random.default_rng([seed, song_id, 0])
    mode = str(rng.choice(list(MODES), p=[mode.odds for mode in MODES.values()]))
    levels = {}
    for name, (low, high, _, _, tilt) in LEVELS.items():
        tilt *= MODES[mode].colour
        levels[name] = low + (high - low) * rng.beta(1.2 + tilt, 1.2 - tilt)
    ensemble = str(rng.choice(list(ENSEMBLES)))
    drums = bool(rng.random() < ENSEMBLES[ensemble].drums)
    return Cues(mode, ensemble, drums, int(rng.integers(12)), **levels)


def expected_emotion(cues: Cues) -> np.ndarray:
    """Return the valence and arousal (1-9) that the cues express."""
    z = [MODES[cues.mode].colour, ENSEMBLES[cues.ensemble].brightness, 2 * cues.drums - 0.7]
    for name, (low, high, *_) in LEVELS.items():
        z.append(12**0.5 * ((getattr(cues, name) - low) / (high - low) - 0.5))
    weights = np.array([*STYLE_WEIGHTS.values(), *(row[2:4] for row in LEVELS.values())])
    sums = np.array(z) @ weights / np.linalg.norm(weights, axis=0)
    return 5 + 4 * np.tanh((np.array(CENTRE) - 5 + SPREAD * sums) / 4)


def rate(cues: Cues, seed: int, song_id: int) -> np.ndarray:
    """Return whole ratings (1-9) by ten simulated raters, shape (10, 2)."""
    rng = np.random.default_rng([seed, song_id, 1])
    spread = np.clip(rng.normal(1.5, 0.35, 2), 0.5, 2.6)  # DEAM's own: mean 1.5, sd 0.4
    return np.clip(np.round(expected_emotion(cues) + spread * rng.normal(size=(10, 2))), 1, 9)


def write_clip(folder: Path, k: int, seconds: float, seed: int, **cues: object) -> None:
    """Compose, play and write piece k, with some cues changed if they are named: mono MP3."""
    composer = Composer(replace(draw_cues(seed, k), **cues), np.random.default_rng([seed, k, 2]))
    composer.perform(seconds).write(midi := io.BytesIO())
    font = Path(pretty_midi.__file__).with_name("TimGM6mb.sf2").read_bytes()
    wave = io.BytesIO(midirenderer.render_wave_from(font, midi.getvalue()))
    stereo, rate = soundfile.read(wave, dtype="float32")  # (S, 2)
    samples = soxr.resample(stereo.mean(axis=1), rate, RATE)[: round(seconds * RATE)]
    samples[-RATE // 4 :] *= np.linspace(1, 0, RATE // 4, dtype="float32")
    gain = GAIN * 10 ** (composer.ensemble.trim / 20)
    soundfile.write(folder / f"{k}.mp3", gain * samples, RATE, format="MP3")


def write_tables(folder: Path, *, songs: int, seconds: float, seed: int) -> None:
    """Write labels (1-9) and, twice a second from 15 s or half way, annotations in [-1, 1]."""
    ids = np.arange(1, songs + 1)
    ratings = np.stack([rate(draw_cues(seed, k), seed, k) for k in ids])  # (songs, 10, 2)
    labels = np.stack([ratings.mean(axis=1), ratings.std(axis=1, ddof=1)], axis=2)  # (songs, 2, 2)
    times = np.arange(15.0 if seconds > 16 else seconds // 2, seconds, 0.5)
    header = ",".join(["song_id", *(f"sample_{round(1000 * time)}ms" for time in times)])
    wander = np.random.default_rng([seed, 0, 3]).normal(0, 0.015, (songs, 2, len(times)))
    wander = wander.cumsum(axis=2) - wander.cumsum(axis=2).mean(axis=2, keepdims=True) / 2
    curves = np.clip((labels[:, :, :1] - 5) / 4 + wander, -1, 1)  # (songs, 2, times)
    tables = {STATIC: (STATIC_HEADER, labels.reshape(songs, 4), "\r\n")}
    for name, curve in (("valence", curves[:, 0]), ("arousal", curves[:, 1])):
        tables[f"dynamic (per second annotations)/{name}.csv"] = (header, curve, "\n")
    for path, (header, values, newline) in tables.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        form, rows = "%d" + ",%.3f" * values.shape[1], np.column_stack([ids, values])
        with (folder / path).open("w", newline="") as file:
            np.savetxt(file, rows, form, header=header, comments="", newline=newline)


def compose_demo(
    folder: Path,
    *,
    songs: int = 160,
    seconds: float = 30,
    seed: int = 0,
    workers: int | None = None,  # None: one a core; the files do not depend on it
) -> Path:
    """Write a demo in DEAM's layout, whole or not at all; raise MusemoError if it cannot be."""
    folder, workers = Path(folder).resolve(), cpu_count() if workers is None else workers
    spec = {"songs": songs, "seconds": seconds, "seed": seed, "workers": workers}
    limits = ((1, 1744), (3, 600), (0, 2**32), (1, 1024))
    for (name, value), (low, high) in zip(spec.items(), limits, strict=True):
        if not low <= value <= high:
            raise MusemoError(f"{name} is {value}: it must lie in {low}-{high}")
    wanted = f"Edition {EDITION}: {songs} songs of {seconds:g} s, seed {seed}."
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        notice = folder / "README.txt"
        text = notice.read_text() if notice.is_file() else ""
        found = text.splitlines()[-1] if text else "files that are no demo music."
        if found != wanted:
            raise MusemoError(f"name another folder: {folder} has {found} Wanted is {wanted}")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        built = Path(scratch) / folder.name
        (built / AUDIO).mkdir(parents=True)
        write_tables(built / TABLES, songs=songs, seconds=seconds, seed=seed)
        jobs = (delayed(write_clip)(built / AUDIO, k, seconds, seed) for k in range(1, songs + 1))
        run_jobs(jobs, workers=workers, desc="demo music", total=songs)
        (built / "README.txt").write_text(f"{__doc__}\n{wanted}\n")
        try:
            built.replace(folder)
        except OSError:
            if not (folder.is_dir() and any(folder.iterdir())):
                raise
            return compose_demo(folder, **spec)  # another process was faster: what has it made?
    return folder
