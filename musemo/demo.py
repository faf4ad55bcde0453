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
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, get_args

import midirenderer
import numpy as np
import pretty_midi
import soundfile
import soxr
from joblib import cpu_count, delayed

from musemo.core import MusemoError
from musemo.jobs import run_jobs

EDITION = 2  # to be raised when a seed would sound or be labelled differently
RATE = 44_100  # Hz, as DEAM's clips
GAIN = 1.6  # the same for every piece, so that soft pieces stay soft; no peak reaches 1
AUDIO = "DEAM_audio/MEMD_audio"
TABLES = "DEAM_Annotations/annotations/annotations averaged per song"
STATIC = "song_level/static_annotations_averaged_songs_1_2000.csv"
STATIC_HEADER = "song_id, valence_mean, valence_std, arousal_mean, arousal_std"

# Happiness (standardised; order after Temperley & Tan), share of the pieces, semitones above the
# tonic, chord before a closing tonic, progressions of four bars (scale degrees from 0, one a bar).
Mode = namedtuple("Mode", "colour odds steps cadence progressions")
MODES = {
    "major": Mode(1.2, 0.30, (0, 2, 4, 5, 7, 9, 11), 4, ("0534", "0314", "0453", "0234")),
    "lydian": Mode(0.7, 0.10, (0, 2, 4, 6, 7, 9, 11), 1, ("0104", "0414", "0151")),
    "mixolydian": Mode(0.7, 0.12, (0, 2, 4, 5, 7, 9, 10), 6, ("0630", "0363", "0463")),
    "dorian": Mode(-0.4, 0.13, (0, 2, 3, 5, 7, 9, 10), 3, ("0306", "0634", "0236")),
    "minor": Mode(-1.0, 0.25, (0, 2, 3, 5, 7, 8, 10), 4, ("0526", "0354", "0654", "0534")),
    "phrygian": Mode(-1.3, 0.10, (0, 1, 3, 5, 7, 8, 10), 1, ("0106", "0121", "0516")),
}
# Standardised spectral centroid as measured, dB that even out loudness at equal velocity, General
# MIDI programs (melody, chords, bass), voices of the chord in eighths (*: all), share with drums.
PAD = "*......."
Ensemble = namedtuple("Ensemble", "brightness trim programs chords drums")
ENSEMBLES = {
    "piano": Ensemble(-0.9, 7.1, (0, 0, 0), "01213121", 0.0),
    "electric piano": Ensemble(-2.0, -1.8, (11, 4, 33), "*.*.*.*.", 0.4),
    "strings": Ensemble(0.6, -1.3, (40, 48, 42), PAD, 0.0),
    "woodwinds": Ensemble(-0.1, -0.1, (73, 71, 70), "*.*.*.*.", 0.0),
    "choir": Ensemble(-0.3, 0.0, (75, 91, 89), PAD, 0.0),
    "folk": Ensemble(-0.9, 1.4, (24, 25, 32), "*.***.*.", 0.2),
    "jazz": Ensemble(0.5, 0.0, (66, 26, 32), "*.*.*.*.", 0.8),
    "rock": Ensemble(1.3, 0.4, (29, 30, 34), "*.***.*.", 1.0),
    "synth": Ensemble(0.8, 0.9, (81, 90, 38), "01213121", 0.8),
    "brass": Ensemble(1.4, 3.0, (56, 61, 58), "*.*.*.*.", 0.5),
}
STYLE_WEIGHTS = {"mode": (0.55, 0.0), "brightness": (0.0, 0.25), "drums": (0.10, 0.20)}
CENTRE, SPREAD = (4.8, 4.75), (1.0, 1.15)  # with rater noise: DEAM's mean and spread (1-9)
GROOVE = {  # a phrase in sixteenths: kick, hat, and a snare that fills; X is accented
    36: "X.......X.x....." * 3 + "X.......X",
    42: "x.x.x.x.x.x.x.x." * 3 + "x.x.x.x.",
    38: "....X.......X..." * 3 + "....X...x.xxxXXX",
}
# Rhythms of half a bar in beats, from calm to busy; steps of a melody in scale degrees.
CELLS = ((2,), (1.5, 0.5), (1, 1), (1, 0.5, 0.5), (0.5,) * 4, (0.5, 0.25, 0.25) * 2)
STEPS = (-4, -2, -1, -1, -1, 0, 1, 1, 1, 2, 4)
BALANCE = {"melody": 6, "chords": -6, "bass": -2, "drums": -4}  # velocity
MIDDLE = {"melody": (69, 1), "chords": (58, 0.5), "bass": (40, 0.3)}  # pitch, share of register
FORM = "AABACCDC"  # phrases of four bars
Event = namedtuple("Event", "role start length pitch accent")  # beats; velocity
Theme = namedtuple("Theme", "chords motif answer")  # degrees; (beat, length, degree); degrees


@dataclass(frozen=True)
class Cues:
    """Hold what a piece is made from: range, weight in valence and arousal, tilt by the mode."""

    mode: str
    ensemble: str
    drums: bool
    tonic: int  # semitones above C
    tempo: Annotated[float, 60, 168, 0.40, 0.50, 0.22]  # beats a minute
    register: Annotated[float, -12, 12, 0.20, 0.10, 0.22]  # semitones from the middle
    dynamics: Annotated[float, 52, 108, 0.20, 0.50, 0.22]  # MIDI velocity
    articulation: Annotated[float, 0.98, 0.35, 0.15, 0.20, 0]  # sounding share: legato to staccato
    density: Annotated[float, 0, 1, 0.15, 0.30, 0]  # calm to busy rhythm
    dissonance: Annotated[float, 0, 1, -0.30, 0.10, 0]  # triads to sevenths, clusters, clashes


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


class Composer:
    """Write and play one piece."""

    def __init__(self, cues: Cues, rng: np.random.Generator) -> None:
        self.cues, self.rng = cues, rng
        self.mode, self.ensemble = MODES[cues.mode], ENSEMBLES[cues.ensemble]
        self.pace = min(int(3 * cues.density), 2)  # calm, middling, busy
        self.middle = {role: pitch + cues.register * k for role, (pitch, k) in MIDDLE.items()}

    def pitch(self, degree: int, chord: int, *, role: str = "") -> int:
        """Return the MIDI pitch of a scale degree, in the octave about a role's middle if named."""
        octave, step = divmod(int(degree), 7)
        leading = self.cues.mode == "minor" and chord == 4 and step == 6
        pitch = 60 + self.cues.tonic + 12 * octave + self.mode.steps[step] + leading
        return pitch + 12 * round((self.middle[role] - pitch) / 12) if role else pitch

    def theme(self) -> Theme:
        """Draw chords and a motif of two bars that walks about the middle of the register."""
        home = round((self.middle["melody"] - 60 - self.cues.tonic) * 7 / 12)
        degree, motif, top = home, [], len(CELLS) - 1
        for start in range(0, 8, 2):
            cell = CELLS[np.clip(round(self.rng.normal(self.cues.density * top, 0.8)), 0, top)]
            for length, onset in zip(cell, np.cumsum((start, *cell)), strict=False):
                motif.append((float(onset), length, degree))
                degree += int(self.rng.choice(STEPS) - np.trunc((degree - home) / 4))
        chords = tuple(map(int, self.rng.choice(self.mode.progressions)))
        return Theme(chords, motif, int(self.rng.choice((-2, -1, 1, 2))))

    def sing(self, theme: Theme) -> Iterator[Event]:
        """Yield the melody: the motif, then its answer, which rests on a long chord tone."""
        answer = [(start + 8, length, d + theme.answer) for start, length, d in theme.motif]
        for start, length, degree in theme.motif + answer:
            chord, strong = theme.chords[int(start // 4)], start % 2 == 0
            if strong:
                tones = (d for d in range(degree - 2, degree + 3) if (d - chord) % 7 in (0, 2, 4))
                degree = min(tones, key=lambda d: abs(d - degree))
            elif self.rng.random() < 0.2:  # a phrase does not come back quite the same
                degree += self.rng.choice((-1, 1))
            clash = strong and self.rng.random() < 0.35 * self.cues.dissonance
            if start <= 14:
                pitch = self.pitch(degree, chord) + clash
                yield Event("melody", start, 2 if start == 14 else length, pitch, 5 * strong)

    def accompany(self, theme: Theme) -> Iterator[Event]:
        """Yield chords, bass and drums, thinner the calmer the rhythm."""
        stride, walk = ((2, 4), (1, 2), (0.5, 0.5))[self.pace]
        for bar, chord in enumerate(theme.chords):
            x = self.cues.dissonance
            odds = ((6, 0.1 + 0.7 * x), (8, 1.4 * x - 0.4))  # of a seventh and a ninth
            added = [degree for degree, odd in odds if self.rng.random() < odd]
            voices = {self.pitch(chord + d, chord, role="chords") for d in (0, 2, 4, *added)}
            clash = {min(voices) + 1} if self.rng.random() < 1.6 * x - 0.6 else set()
            voices, length = sorted(voices | clash), 4 if self.ensemble.chords == PAD else stride
            for k, part in enumerate(self.ensemble.chords):
                if part != "." and k / 2 % stride == 0:
                    played = voices if part == "*" else [voices[int(part) % len(voices)]]
                    yield from (Event("chords", 4 * bar + k / 2, length, p, 0) for p in played)
            for onset in np.arange(0, 4, walk):
                fifth = 4 if walk == onset == 2 else 0
                pitch = self.pitch(chord + fifth, chord, role="bass")
                yield Event("bass", 4 * bar + onset, walk, pitch, 4 * (onset == 0))
        for pitch, tab in GROOVE.items() if self.cues.drums else ():
            hits = [k for k, hit in enumerate(tab) if hit != "." and (self.pace or k % 4 == 0)]
            yield from (Event("drums", k / 4, 0.25, pitch, 6 * (tab[k] == "X")) for k in hits)

    def write(self, seconds: float) -> Iterator[Event]:
        """Yield phrases in FORM and a final chord; under four bars an excerpt without one."""
        bars = seconds * self.cues.tempo / 240
        end = 4 * (int(bars) - 1 if bars >= 4 else int(bars) + 1)
        themes = {letter: self.theme() for letter in sorted(set(FORM))}
        for first in range(0, end, 16):
            theme = themes[FORM[first // 16 % len(FORM)]]
            if first % 32:  # every second phrase closes on the tonic
                theme = theme._replace(chords=(*theme.chords[:2], self.mode.cadence, 0))
            for event in (*self.sing(theme), *self.accompany(theme)):
                if first + event.start < end:
                    yield event._replace(start=first + event.start)
        for role, d in [*((r, 0) for r in MIDDLE), ("chords", 2), ("chords", 4)] * (bars >= 4):
            yield Event(role, end, 4, self.pitch(d, 0, role=role), 4)

    def perform(self, seconds: float) -> pretty_midi.PrettyMIDI:
        """Play the piece with dynamics, articulation, phrase arches and human unevenness."""
        midi, beat = pretty_midi.PrettyMIDI(resolution=480), 60 / self.cues.tempo
        programs = dict(zip(BALANCE, (*self.ensemble.programs, 0), strict=True))
        players = {r: pretty_midi.Instrument(p, r == "drums") for r, p in programs.items()}
        for role, start, length, pitch, accent in self.write(seconds):
            share = max(self.cues.articulation, 0.7 if role == "chords" and length == 4 else 0)
            begin = start * beat + abs(self.rng.normal(0, 0.008))  # late only: none cuts its like
            stop = max((start + length * share) * beat, begin + 0.03)
            swell = accent + 5 * np.sin(np.pi * start / 16 % np.pi) + self.rng.normal(0, 3)
            velocity = int(np.clip(self.cues.dynamics + BALANCE[role] + swell, 1, 127))
            players[role].notes.append(pretty_midi.Note(velocity, pitch, begin, stop))
        # The renderer stops at the last event: a silent one lets the final chord ring.
        players["bass"].control_changes.append(pretty_midi.ControlChange(3, 0, seconds + 1))
        midi.instruments.extend(players.values())
        return midi


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
        found = text.splitlines()[-1] if text else "something else"
        if found != wanted:
            raise MusemoError(f"{folder} holds {found!r}, not {wanted!r}: name a new folder")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        built = Path(scratch) / folder.name
        (built / AUDIO).mkdir(parents=True)
        write_tables(built / TABLES, songs=songs, seconds=seconds, seed=seed)
        jobs = (delayed(write_clip)(built / AUDIO, k, seconds, seed) for k in range(1, songs + 1))
        run_jobs(jobs, workers=workers, desc="demo music", total=songs)
        (built / "README.txt").write_text(f"{__doc__}\n{wanted}\n")
        built.replace(folder)
    return folder
