"""How a piece of demo music is composed and played: from its cues to MIDI."""

from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pretty_midi

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
