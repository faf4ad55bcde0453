# %%
#| default_exp config

# %% [markdown]
# # Config
#
# > Every number of a run in one place: validated, frozen, with its unit and its source.
#
# No other section holds a number of its own. A value that cannot work is refused here, before
# anything is decoded or trained, with the field, the value and the rule.

# %%
#| export settings
import re
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

# %%
#| export vit_settings
from typing import Annotated, Literal

from pydantic import Field, model_validator

from musemo.settings import ORIGINAL, SPEC, Fraction, Section, setting

# %%
#| export
from typing import Literal

from pydantic import model_validator

from musemo.settings import (
    ORIGINAL,
    SPEC,
    AudioConfig,
    DataConfig,
    Fraction,
    Section,
    Width,
    setting,
)
from musemo.vit_settings import (
    AugmentationConfig,
    DatasetConfig,
    JudgementConfig,
    SmallConfig,
    TrainingConfig,
    VitConfig,
)

# %%
#| export presets
import json
import shlex

import pandas as pd
from pydantic import BaseModel, ValidationError

from musemo.config import Config

# %%
#| export weights
import json
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from musemo.config import Config
from musemo.core import MusemoError

# %%
#| export form
import html
from typing import Literal, get_args, get_origin

import ipywidgets
from IPython.display import HTML

from musemo.config import Config
from musemo.presets import (
    PRESETS,
    as_setting,
    changed_values,
    config_call,
    config_command,
    field_info,
    field_table,
    find_faults,
    flatten,
    look_up,
    make_config,
)

# %%
#| hide
import tempfile

import numpy as np
from fastcore.test import test_close, test_eq, test_fail

from musemo.core import COLORS, subplots


# %% [markdown]
# ## A field knows its unit and its source
#
# "specification" is the list of improvements that this suite makes good, "original notebook" what
# they improve on; "musemo" is our own choice. The table of this page is made from these.


# %%
#| export settings
def setting(default, unit: str, text: str, source: str = "musemo", **rules):
    "Declare a field of the configuration with its unit, meaning, source and bounds."
    return Field(
        default, description=text, json_schema_extra={"unit": unit, "source": source}, **rules
    )


# A run tells its configuration to everybody who opens its pages.
_SECRET = re.compile(
    r"\bhf_[a-z0-9]{30,}\b|\w\w:/+[^/\s]+@|[?&]\w*(token|key|secret|password)=", re.IGNORECASE
)


class Section(BaseModel):
    "A part of the configuration: frozen, refusing names that it does not know, and secrets."

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    @field_validator("*")
    @staticmethod  # a notebook's class method cannot be sent to another process
    def _hold_no_secret(value):
        if isinstance(value, str) and _SECRET.search(value):
            text = "looks like a password or a token, and pages show it; keep it in HF_TOKEN"
            raise PydanticCustomError("secret", text)
        return value


Fraction = Annotated[float, Field(gt=0, lt=1)]
Width = Annotated[int, Field(ge=8, multiple_of=8)]
SPEC, ORIGINAL = "specification", "original notebook"


# %% [markdown]
# ## Sound
#
# Loudness is the strongest cue of arousal, so it must survive: one fixed decibel range for all
# songs, mapped to [-1, 1] and back exactly. No song is normalised by itself.


# %%
#| export settings
class AudioConfig(Section):
    "How sound becomes a log-mel spectrogram."

    sample_rate: int = setting(22050, "Hz", "rate after resampling", "librosa", ge=4000, le=48000)
    n_fft: int = setting(
        2048, "samples", "window of the Fourier transform", "librosa", ge=256, le=2**16
    )
    hop: int = setting(512, "samples", "step between frames", "librosa", ge=64)
    n_mels: int = setting(
        128, "bands", "mel bands; a multiple of 16", ORIGINAL, ge=16, multiple_of=16
    )
    f_min: float = setting(20.0, "Hz", "lowest mel edge", ge=0)
    f_max: float = setting(8000.0, "Hz", "highest mel edge", gt=0)
    db_min: float = setting(-60.0, "dB", "maps to -1; quieter is clipped (re 1 in mel power)")
    db_max: float = setting(40.0, "dB", "maps to 1; a loud full-scale master peaks at 37")
    clip_seconds: float = setting(
        30.0, "s", "longest part of a song that is kept", ORIGINAL, gt=0, le=7200
    )

    @model_validator(mode="after")
    def _check(self):
        if not self.f_min < self.f_max <= self.sample_rate / 2:
            raise ValueError("f_min < f_max <= sample_rate / 2 must hold")
        if self.hop > self.n_fft // 2 or self.db_min >= self.db_max:  # no frame may end in silence
            raise ValueError("hop <= n_fft / 2 and db_min < db_max must hold")
        return self

    @property
    def frames(self) -> int:
        "Frames of a whole clip (1292 for 30 s)."
        return int(self.clip_seconds * self.sample_rate) // self.hop + 1

    @property
    def mel(self) -> dict:
        "The arguments of librosa's mel filter bank and mel frequencies."
        keys = {"sr": self.sample_rate, "n_fft": self.n_fft, "n_mels": self.n_mels}
        return keys | {"fmin": self.f_min, "fmax": self.f_max}

    def to_unit(self, decibels: np.ndarray) -> np.ndarray:
        "Map decibels to [-1, 1], clipping outside db_min..db_max."
        scaled = (decibels - self.db_min) / (self.db_max - self.db_min) * 2 - 1
        return np.clip(scaled, -1, 1)

    def to_db(self, unit: np.ndarray) -> np.ndarray:
        "Map [-1, 1] back to decibels."
        return (np.asarray(unit, dtype=np.float32) + 1) / 2 * (self.db_max - self.db_min) + (
            self.db_min
        )


# %% [markdown]
# Thirty seconds give the specification's 128 x 1292, and the map is its own round trip.

# %%
test_eq((AudioConfig().n_mels, AudioConfig().frames), (128, 1292))
decibels = np.linspace(-60, 40, 11)
test_close(AudioConfig().to_db(AudioConfig().to_unit(decibels)), decibels, eps=1e-4)
test_eq(AudioConfig().to_unit(np.array([-200.0, 90.0])), [-1, 1])


# %% [markdown]
# ## Songs
#
# A song belongs to one part for good. `labels="corrected"` mends DEAM's exchanged columns;
# section 3 shows the evidence, and `"published"` leaves the table as it is.


# %%
#| export settings
class DataConfig(Section):
    "Which songs, which labels, which split."

    path: str = setting("", "path", "folder in DEAM's layout, or a table of files; empty: demo")
    scale: Literal["1-9", "-1-1", "0-1"] = setting("1-9", "scale", "scale of a user's own table")
    labels: Literal["corrected", "published"] = setting("corrected", "-", "DEAM's exchanged labels")
    validation: Fraction = setting(0.15, "share", "songs that choose the best epoch")
    test: Fraction = setting(0.2, "share", "songs that judge", SPEC)
    raters: int = setting(10, "people", "who rated each song, for the noise ceiling", "DEAM", ge=1)
    min_seconds: float = setting(3.0, "s", "shorter songs are left out", gt=0)
    workers: int = setting(
        0, "count", "of threads or processes that decode; 0: as many as pay", ge=0
    )
    backend: Literal["threading", "loky", "dask", "ray"] = setting(
        "threading", "-", "who decodes: threads, processes (loky), a cluster (dask, ray)"
    )
    cache: str = setting("~/.cache/musemo", "path", "decoded log-mels, by content and settings")
    demo_songs: int = setting(160, "songs", "composed where no data is given", ge=12, le=1744)
    demo_seconds: float = setting(20.0, "s", "length of a composed song", ge=3, le=600)

    @model_validator(mode="after")
    def _check(self):
        if self.validation + self.test > 0.8:
            raise ValueError("validation + test must leave at least 0.2 for training")
        return self


# %% [markdown]
# ## Generator
#
# The balance rule and its numbers are the specification's: a discriminator below 60 % gets up
# to three steps, above 95 % at least one, otherwise they take turns.


# %%
#| export
class GanConfig(Section):
    "The conditional GAN: size, schedule and balance rule."

    frames: int = setting(128, "frames", "width of what it draws; 1292 is 30 s", ORIGINAL, ge=16)
    latent: int = setting(128, "numbers", "noise vector", ge=1)
    condition: int = setting(64, "numbers", "embedding of valence and arousal", ge=2)
    channels: int = setting(256, "channels", "of both networks; a multiple of 16", ge=16)
    narrowest: int = setting(
        32, "channels", "of the discriminator's finest layers", ge=8, multiple_of=8
    )
    attention_after: int = setting(
        1, "layer", "up-sampling layers before self-attention", ge=0, le=3
    )
    steepest_fall: float = setting(430.0, "dB/s", "at which what it draws can fade", gt=0)
    first_fall: float = setting(195.0, "dB/s", "at which it fades before training", gt=0)
    zoom: float = setting(2.0, "x", "at which the discriminator sees notes and steps", gt=0)
    epochs: int = setting(10, "epochs", "passes over the training songs", SPEC, ge=1)
    windows_per_song: int = setting(1, "windows", "random windows of a song in an epoch", ge=1)
    batch_size: int = setting(16, "windows", "lower it where memory is short", SPEC, ge=2)
    learning_rate: float = setting(2e-4, "-", "Adam, generator", "Radford 2016", gt=0)
    discriminator_rate: float = setting(0.5, "x", "discriminator's share of it", SPEC, gt=0)
    beta1: float = setting(0.5, "-", "Adam's first moment", "Radford 2016", ge=0, lt=1)
    decay: float = setting(0.99, "an epoch", "exponential decay of both rates", SPEC, gt=0, le=1)
    clip_norm: float = setting(1.0, "norm", "gradient clipping", SPEC, gt=0)
    weak_below: Fraction = setting(0.60, "accuracy", "train the discriminator more", SPEC)
    strong_above: Fraction = setting(0.95, "accuracy", "train the discriminator less", SPEC)
    max_steps: int = setting(3, "steps", "of the discriminator a generator step", SPEC, ge=1)
    min_steps: int = setting(1, "steps", "of the discriminator a generator step", SPEC, ge=1)
    swapped: float = setting(
        1.0, "x", "weight of real windows with another song's label", "Reed 2016", ge=0
    )
    instance_noise: float = setting(
        0.0, "[-1, 1]", "on what the discriminator sees, fading to 0", "Sonderby 2017", ge=0, le=1
    )
    averaging: float = setting(
        0.99, "-", "kept by the generator's average in a step", "Karras 2018", ge=0, lt=1
    )
    samples: int = setting(
        200, "windows", "drawn at the end for section 6 to judge", ORIGINAL, ge=8
    )

    @model_validator(mode="after")
    def _check(self):
        if self.weak_below >= self.strong_above or self.min_steps > self.max_steps:
            raise ValueError("weak_below < strong_above and min_steps <= max_steps must hold")
        if self.channels % 16 or self.narrowest > self.channels:
            raise ValueError("channels must be a multiple of 16, and narrowest no more")
        if self.first_fall >= self.steepest_fall:
            raise ValueError("first_fall must be below steepest_fall")
        return self


# %%
#| export
class ResidualConfig(Section):
    "The residual GAN: what it has of its own; size and schedule are those of `gan`."

    learning_rate: float = setting(2e-4, "-", "Adam, generator", "Huang 2024", gt=0)
    discriminator_rate: float = setting(
        1.7, "x", "discriminator's share of it: the generator starts from much", "Heusel 2017", gt=0
    )
    averaging: float = setting(0.995, "-", "kept by the generator's average", ge=0, lt=1)
    penalty: float = setting(1.0, "x", "gradient penalty, real and drawn", gt=0)
    penalty_every: int = setting(4, "steps", "between penalties", "Karras 2020", ge=1)
    augment: float = setting(0.3, "share", "of windows for each change", "Karras 2020", ge=0, lt=1)


# %% [markdown]
# The flow shares the window's width and the number of samples with the GAN. Its numbers are for
# thousands of steps; after hundreds it is drawn in fewer steps that crowd more, as the demo does
# (section 4 says why).


# %%
#| export
class FlowConfig(Section):
    "The rectified flow: size, training and drawing."

    steps: int = setting(4000, "steps", "of training", ge=1)
    channels: tuple[Width, Width, Width] = setting(
        (64, 96, 128), "channels", "of the three sizes, fine to coarse"
    )
    batch_size: int = setting(8, "windows", "lower it where memory is short", ge=1)
    learning_rate: float = setting(1e-3, "-", "AdamW", gt=0)
    warm_up: int = setting(30, "steps", "in which the rate rises; then it falls as a cosine", ge=1)
    clip_norm: float = setting(1.0, "norm", "gradient clipping", gt=0)
    averaging: float = setting(0.999, "-", "kept by the average in a step", ge=0, lt=1)
    unasked: float = setting(0.1, "share", "trained without the emotion", "Ho 2022", ge=0, lt=1)
    jitter: float = setting(0.05, "[-1, 1]", "spread of the labels in training", ge=0, le=1)
    middle: float = setting(0.3, "logit", "of the places learnt from; 0: half way", ge=-3, le=3)
    spread: float = setting(1.0, "logit", "of these places", "Esser 2024", gt=0, le=3)
    draw_steps: int = setting(24, "steps", "from noise to picture", ge=1)
    crowding: float = setting(3.0, "x", "how much denser the first steps lie", ge=1)
    guidance: float = setting(3.0, "x", "how far the emotion is exaggerated", "Ho 2022", ge=0)
    guidance_until: float = setting(0.6, "of the line", "from noise, where that ends", ge=0, le=1)


# %%
#| export
class QualityConfig(Section):
    "How generated windows are judged."

    excellent: float = setting(70.0, "points", "from here: excellent", SPEC, gt=0, lt=100)
    good: float = setting(50.0, "points", "from here: good; below: poor", SPEC, gt=0, lt=100)
    bootstrap: int = setting(200, "draws", "for the score's interval", ge=20)
    embedding: str = setting(
        "statistics", "-", "or vit, or an audio model's folder or hub name", min_length=1
    )
    copied_below: Fraction = setting(
        0.5, "x", "of held-out windows' distance to the training songs: nearer is a copy"
    )

    @model_validator(mode="after")
    def _check(self):
        if self.good >= self.excellent:
            raise ValueError("good must be below excellent")
        return self


# %% [markdown]
# ## Synthesis and sound
#
# The five emotions are the specification's, as (valence, arousal) on [-1, 1].

# %%
#| export
EMOTIONS = {
    "sad_calm": (-0.8, -0.6),
    "happy_energetic": (0.8, 0.7),
    "angry_tense": (-0.3, 0.8),
    "content_relaxed": (0.5, -0.5),
    "neutral": (0.0, 0.0),
}


class SynthesisConfig(Section):
    "How many songs are made, and for which emotions."

    songs: int = setting(3200, "songs", "synthetic songs for the training part", ORIGINAL, ge=0)
    bandwidth: float = setting(
        1.0, "x Scott's rule", "smoothing of the real labels' density", "Scott 1992", ge=0, le=4
    )
    jitter: float = setting(
        0.1,
        "[-1, 1]",
        "spread around a real label where generators train and are judged",
        ge=0,
        le=1,
    )
    plane_side: int = setting(5, "points", "a side of the valence-arousal grid", ge=2, le=9)
    plane_reach: float = setting(0.8, "[-1, 1]", "where the grid ends", gt=0, le=1)
    generator: Literal["best", "gan", "residual", "flow"] = setting(
        "best", "-", "best: by section 6's score on the validation songs"
    )


class InversionConfig(Section):
    "How a log-mel spectrogram becomes sound."

    iterations: int = setting(32, "rounds", "Griffin-Lim", SPEC, ge=1)
    refits: int = setting(16, "rounds", "the last ones, which put the mel bands right", ge=0)
    mel_iterations: int = setting(20, "rounds", "non-negative inversion of the mel bands", ge=1)
    momentum: float = setting(0.99, "-", "of fast Griffin-Lim", "Perraudin 2013", ge=0, lt=1)
    page_seconds: float = setting(8.0, "s", "of a longer clip, its middle, on the page", gt=0)
    plane_seconds: float = setting(3.0, "s", "of a clip of the grid, its middle", gt=0)


# %% [markdown]
# ## Predictor
#
# A ViT sees windows as square pictures. With pretrained weights: the whole clip, 224 x 224, in
# the pretraining's own normalisation. From scratch: small windows and a small network.


# %%
#| export vit_settings
class DatasetConfig(Section):
    "How windows become the pictures that the ViT sees."

    image_size: int = setting(
        224, "pixels", "side of the picture; 0: the window itself, in one channel", SPEC, ge=0
    )
    window_frames: int = setting(0, "frames", "of a window; 0: the whole clip", ge=0)
    windows_per_song: int = setting(1, "windows", "averaged in a song's prediction", ge=1, le=1000)
    batch_size: int = setting(16, "pictures", "lower it where memory is short", SPEC, ge=1)
    workers: int = setting(0, "processes", "for loading; 0: in the training process", ge=0)


class AugmentationConfig(Section):
    "How training windows are changed; each is off at 0."

    time_masks: int = setting(0, "masks", "over stretches of time", "Park 2019", ge=0)
    time_width: Fraction = setting(0.1, "share", "of the frames, widest time mask")
    band_masks: int = setting(0, "masks", "over mel bands", "Park 2019", ge=0)
    band_width: Fraction = setting(0.1, "share", "of the bands, widest band mask")
    stretch: float = setting(0.0, "share", "faster or slower by at most this", ge=0, le=1)
    shift: int = setting(0, "bands", "higher or lower by at most this", ge=0)
    mixup: float = setting(0.0, "-", "alpha of the mixing shares", "Zhang 2018", ge=0)

    @property
    def changes_windows(self) -> bool:
        "Say whether single windows are changed; mixup changes batches."
        return bool(self.time_masks or self.band_masks or self.stretch or self.shift)


class VitConfig(Section):
    "The network and where its weights come from."

    weights: str = setting(
        "google/vit-base-patch16-224-in21k", "-", "hub name, local folder or scratch", ORIGINAL
    )
    hidden: int = setting(192, "numbers", "token width, scratch only", ge=8)
    layers: int = setting(4, "blocks", "depth, scratch only", ge=1)
    heads: int = setting(3, "heads", "of attention, scratch only", ge=1)
    patch: int = setting(
        16, "pixels", "side of a patch, scratch only; image_size 0: frames of a column", ge=2
    )
    dropout: float = setting(0.1, "share", "in the regression head", ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self):
        if self.hidden % self.heads:
            raise ValueError("hidden must be a multiple of heads")
        return self


class SmallConfig(Section):
    "The recipe for small data: a warm-up without labels, then a line and trees."

    steps: int = setting(450, "steps", "of the warm-up", ge=1)
    batch_size: int = setting(64, "windows", "of the warm-up", ge=2)
    learning_rate: float = setting(1.5e-3, "-", "AdamW, highest of one cycle", gt=0)
    weight_decay: float = setting(0.05, "-", "AdamW", "He 2022", ge=0)
    warm_up: Fraction = setting(0.1, "share", "of the steps, in which the rate rises")
    clip_norm: float = setting(1.0, "norm", "gradient clipping", gt=0)
    hidden_share: Fraction = setting(0.6, "share", "of a window's patches, to be guessed")
    tempi: int = setting(16, "tempi", "at which onsets may repeat", ge=1)
    slowest: float = setting(40.0, "beats a minute", "of the tempi", gt=0)
    fastest: float = setting(240.0, "beats a minute", "of the tempi", gt=0)
    lowest_pitch: float = setting(180.0, "Hz", "of the harmony's partials", gt=0)
    highest_pitch: float = setting(3000.0, "Hz", "of the harmony's partials", gt=0)
    trees: int = setting(300, "trees", "boosted, for each of valence and arousal", ge=1)
    tree_rate: float = setting(0.05, "x", "what a tree adds", "Friedman 2001", gt=0, le=1)
    tree_depth: int = setting(3, "levels", "of a tree", ge=1, le=8)
    tree_songs: float = setting(0.7, "share", "of the songs, for a tree", gt=0, le=1)
    tree_leaf: int = setting(5, "songs", "at least, in a leaf", ge=1)
    synthetic_weight: float = setting(0.1, "x", "of a synthetic window, a real song is 1", ge=0)
    thaw: bool = setting(
        False, "-", "run training's schedule from the line; kept where validation songs gain"
    )

    @model_validator(mode="after")
    def _check(self):
        if self.slowest > self.fastest or self.lowest_pitch >= self.highest_pitch:
            raise ValueError("slowest <= fastest and lowest_pitch < highest_pitch must hold")
        return self


class TrainingConfig(Section):
    "Recipe, loss, unfreezing schedule and stopping."

    recipe: Literal["spec", "small"] = setting(
        "spec", "-", "spec: thaw by the schedule; small: for few songs, without pretrained weights"
    )
    epochs: int = setting(24, "epochs", "at most", SPEC, ge=1)
    unfreeze: tuple[tuple[int, int], ...] = setting(
        ((8, 1), (12, 2), (16, 3)), "(epoch, blocks)", "last blocks trainable from an epoch", SPEC
    )
    learning_rate: float = setting(1e-4, "-", "AdamW, regression head", SPEC, gt=0)
    backbone_rate: float = setting(0.1, "x", "the backbone's share of it", SPEC, gt=0)
    min_rate: float = setting(1e-6, "-", "end of each cosine", SPEC, gt=0)
    weight_decay: float = setting(0.01, "-", "AdamW", "PyTorch", ge=0)
    valence_weight: float = setting(0.6, "share", "in the squared error", SPEC, ge=0, le=1)
    arousal_weight: float = setting(0.4, "share", "in the squared error", SPEC, ge=0, le=1)
    clip_norm: float = setting(1.0, "norm", "gradient clipping", SPEC, gt=0)
    patience: int = setting(5, "epochs", "without gain on validation", SPEC, ge=1)
    views: int = setting(
        1,
        "windows",
        "taken in turn, an epoch each, while blocks are frozen; 1: always the same",
        ge=1,
    )
    cache: bool = setting(True, "-", "run frozen blocks once for each window, not each epoch")
    cache_precision: Literal["float16", "float32"] = setting(
        "float16", "-", "of cached tokens; float16 moves predictions by less than 2e-3"
    )
    processes: int = setting(
        0, "processes", "that train the run's model together; 0: one for each GPU", ge=0
    )
    cache_mb: float = setting(1000, "MB", "of memory for them; a larger cache lies on disk", ge=0)

    @model_validator(mode="after")
    def _check(self):
        epochs, blocks = zip(*self.unfreeze, strict=True) if self.unfreeze else ((), ())
        rising = list(epochs) == sorted(set(epochs)) and min(epochs, default=1) >= 1
        if not rising or min(blocks, default=0) < 0:
            raise ValueError("unfreeze must rise in epochs, from 1 on, with blocks >= 0")
        if self.min_rate > self.learning_rate:
            raise ValueError("min_rate must be at most learning_rate")
        if abs(self.valence_weight + self.arousal_weight - 1) > 1e-6:
            raise ValueError("valence_weight + arousal_weight must be 1")
        return self


# %% [markdown]
# The last section judges: how wide intervals are, and how predictions are explained.


# %%
#| export vit_settings
class JudgementConfig(Section):
    "How sure a prediction is, and what it rests on."

    coverage: Fraction = setting(0.9, "share", "of songs whose rating an interval is to hold")
    spread_folds: int = setting(5, "folds", "of the training songs, to learn what widens it", ge=2)
    spread_powers: tuple[Annotated[float, Field(ge=0, le=1)], ...] = setting(
        (0, 0.25, 0.5, 0.75, 1),
        "-",
        "of the raters' spread, to choose from; 0: all alike",
        min_length=1,
    )
    judged_generated: Fraction = setting(
        0.2, "share", "of a fold's generated songs, kept from training to show how they flatter"
    )
    worst_songs: int = setting(4, "songs", "with players on the page", ge=1, le=12)
    explained_songs: int = setting(12, "songs", "of the test part, for the deletion test", ge=1)
    masked_shares: tuple[Fraction, ...] = setting(
        (0.1, 0.2, 0.3, 0.4, 0.5),
        "share",
        "of a window's patches, masked step by step",
        min_length=1,
    )
    random_masks: int = setting(3, "masks", "at random, beside the relevant ones", ge=1)
    kept_share: Fraction = setting(0.2, "share", "of a song's time, the most relevant, to hear")
    turned_down: float = setting(30.0, "dB", "the rest of the song", gt=0)


# %% [markdown]
# ## The whole
#
# `make_config` starts from a preset and sets single fields by their dotted name. Values may
# come as text from the command line; nothing in them is ever evaluated.


# %%
#| export
class Config(Section):
    "Everything that a run depends on."

    preset: Literal["smoke", "demo", "kaggle", "full"] = setting(
        "full", "-", "where the numbers started from"
    )
    seed: int = setting(0, "-", "grows the seed of every use", ge=0)
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "-", "where models run")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "-", "of forward passes; auto: half on a GPU", SPEC
    )
    generators: tuple[Literal["gan", "residual", "flow"], ...] = setting(
        ("gan",), "-", "trained and judged side by side", min_length=1
    )
    checkpoint: float = setting(
        60, "s", "between states kept of a generator's training; 0: none", ge=0
    )
    audio: AudioConfig = AudioConfig()
    data: DataConfig = DataConfig()
    gan: GanConfig = GanConfig()
    residual: ResidualConfig = ResidualConfig()
    flow: FlowConfig = FlowConfig()
    quality: QualityConfig = QualityConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    inversion: InversionConfig = InversionConfig()
    dataset: DatasetConfig = DatasetConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    vit: VitConfig = VitConfig()
    training: TrainingConfig = TrainingConfig()
    small: SmallConfig = SmallConfig()
    judgement: JudgementConfig = JudgementConfig()

    @property
    def window(self) -> int:
        "Frames of the windows that the predictor sees."
        return self.dataset.window_frames or self.audio.frames

    @model_validator(mode="after")
    def _check(self):
        if self.gan.frames > self.audio.frames:
            raise ValueError(f"gan.frames must be at most the clip's {self.audio.frames} frames")
        if self.audio.clip_seconds < self.data.min_seconds:
            raise ValueError("audio.clip_seconds must be at least data.min_seconds")
        if self.dataset.window_frames > self.audio.frames:
            raise ValueError(f"dataset.window_frames must be at most {self.audio.frames} frames")
        if self.augmentation.shift >= self.audio.n_mels:
            raise ValueError(f"augmentation.shift must be below {self.audio.n_mels} mel bands")
        side, scratch = self.dataset.image_size, self.vit.weights == "scratch"
        if scratch and side % self.vit.patch:
            raise ValueError("dataset.image_size must be a multiple of vit.patch")
        if scratch and not side and self.window < 2 * self.vit.patch:
            raise ValueError(f"windows of {self.window} frames must hold two of vit.patch or more")
        if not side and not scratch:
            raise ValueError("dataset.image_size = 0 goes with vit.weights=scratch only")
        if self.training.recipe == "small" and (side or not scratch):
            raise ValueError(
                "training.recipe = small goes with vit.weights=scratch and dataset.image_size=0"
            )
        patches = self.window // self.vit.patch
        visible = round(patches * (1 - self.small.hidden_share))
        if self.training.recipe == "small" and not 0 < visible < patches:
            raise ValueError(
                f"small.hidden_share must hide some of a window's {patches} patches, and not all"
            )
        if self.training.recipe == "small" and self.augmentation.mixup and not self.small.thaw:
            raise ValueError("augmentation.mixup goes with training.recipe=spec or small.thaw=true")
        if self.synthesis.generator not in ("best", *self.generators):
            raise ValueError(f"synthesis.generator must be best or one of {self.generators}")
        if len(set(self.generators)) < len(self.generators):
            raise ValueError("generators must differ")
        return self


# %% [markdown]
# ## Presets
#
# `full` is the specification on DEAM, `kaggle` the same inside a T4's session. `demo` fits ten
# minutes on two cores; `smoke` only proves that everything runs, and its figures mean nothing.
# Both train a small ViT without pretrained weights, by the recipe for small data. With
# `training.recipe=spec` they train it on labels alone, all of it from the first epoch: freezing
# would keep random weights random.

# %%
#| export presets
_scratch = {
    "vit.weights": "scratch",
    "vit.patch": 8,
    "dataset.image_size": 0,
    "dataset.window_frames": 256,
    "training.recipe": "small",
    "training.unfreeze": [[1, 64]],
    "training.backbone_rate": 1.0,
}
PRESETS = {
    "full": {"gan.frames": 1292},
    "kaggle": {"gan.frames": 1292, "synthesis.songs": 1600, "dataset.workers": 2},
    "demo": _scratch
    | {
        "generators": ["residual", "flow"],
        "gan.epochs": 6,
        "gan.windows_per_song": 3,
        "gan.channels": 128,
        "gan.narrowest": 16,
        "gan.batch_size": 8,
        "gan.learning_rate": 1e-4,
        "gan.discriminator_rate": 10.0,
        "gan.decay": 0.8,
        "gan.averaging": 0.98,
        "residual.averaging": 0.98,
        "residual.penalty": 3.0,
        "flow.steps": 900,
        "flow.batch_size": 4,
        "flow.averaging": 0.995,
        "flow.draw_steps": 12,
        "flow.crowding": 6.0,
        "synthesis.songs": 100,
        "dataset.windows_per_song": 8,
        "dataset.batch_size": 32,
        "vit.hidden": 96,
        "vit.layers": 3,
        "vit.heads": 4,
        "training.epochs": 30,
        "training.patience": 10,
        "training.learning_rate": 1e-3,
    },
    "smoke": _scratch
    | {
        "audio.clip_seconds": 6.0,
        "data.demo_songs": 24,
        "data.demo_seconds": 6.0,
        "gan.frames": 64,
        "gan.channels": 32,
        "gan.narrowest": 16,
        "gan.epochs": 2,
        "gan.samples": 16,
        "generators": ["gan", "residual", "flow"],
        "flow.steps": 6,
        "flow.averaging": 0.99,
        "flow.channels": [16, 24, 32],
        "flow.draw_steps": 4,
        "quality.bootstrap": 20,
        "synthesis.songs": 8,
        "inversion.iterations": 8,
        "dataset.window_frames": 64,
        "small.steps": 6,
        "small.trees": 10,
        "vit.hidden": 32,
        "vit.layers": 2,
        "vit.heads": 2,
        "training.epochs": 3,
        "training.learning_rate": 1e-3,
    },
}


# %%
#| export presets
def _parse(text):
    "Read a value given as text: JSON for lists, else the text itself for pydantic to convert."
    if isinstance(text, str) and text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            return text
    return text


def _rule(fault: dict) -> str:
    "Say the rule that was broken."
    plain = {
        "extra_forbidden": "is no field",
        "tuple_type": 'must be a list, as ["a", "b"] or [1, 2]',
    }
    return plain.get(fault["type"], fault["msg"].removeprefix("Value error, "))


def _explain(error: ValidationError) -> str:
    "Say the first fault as: field = value: rule."
    fault = error.errors()[0]
    field, rule = ".".join(str(part) for part in fault["loc"]) or "configuration", _rule(fault)
    hidden = fault["type"] == "secret" or isinstance(fault["input"], dict | BaseModel)
    shown = "" if hidden else f" = {fault['input']!r}"
    return f"{field}{shown}: {rule}"


# %%
#| export presets
def make_config(
    preset: str = "full",  # smoke, demo, kaggle or full
    values: dict | None = None,  # dotted field -> value, e.g. {"gan.epochs": 20}
) -> Config:
    "Build a validated configuration; raises ValueError with field, value and rule."
    if preset not in PRESETS:
        raise ValueError(f"preset = {preset!r}: must be one of {', '.join(PRESETS)}")
    tree: dict = {"preset": preset}
    for name, value in {**PRESETS[preset], **(values or {})}.items():
        section, _, field = name.rpartition(".")
        branch = tree.setdefault(section, {}) if section else tree
        if not isinstance(branch, dict) or name.partition(".")[0] in ("preset", "units"):
            raise ValueError(f"{name} = {value!r}: is no field")
        branch[field] = _parse(value)
    return read_config(tree)


def read_config(tree: dict) -> Config:
    "Validate a configuration that was read from config.json."
    try:
        return Config.model_validate({key: part for key, part in tree.items() if key != "units"})
    except ValidationError as error:
        raise ValueError(_explain(error)) from error


def find_faults(preset: str, values: dict) -> dict[str, str]:  # field, section or "" -> rules
    "Say everything that is wrong, for each field; rules between fields stand at their section."
    faults: dict = {}
    try:
        make_config(preset, values)
    except ValueError as error:
        if not isinstance(error.__cause__, ValidationError):
            raise
        for fault in error.__cause__.errors():
            # A place in a list is a number; the fault belongs to the whole field.
            field = ".".join(part for part in fault["loc"] if isinstance(part, str))
            faults.setdefault(field, []).append(_rule(fault))
    return {field: "; ".join(rules) for field, rules in faults.items()}


# %% [markdown]
# The specification's numbers are the defaults, and a wrong value says what is wrong with it.

# %%
full = make_config("full")
test_eq((full.gan.epochs, full.training.epochs, full.gan.frames), (10, 24, 1292))
test_eq(full.training.unfreeze, ((8, 1), (12, 2), (16, 3)))
test_eq((full.gan.weak_below, full.gan.strong_above), (0.60, 0.95))
test_eq(make_config("smoke", {"gan.epochs": "3"}).gan.epochs, 3)
test_fail(lambda: make_config("smoke", {"gan.epochs": 0}), contains="gan.epochs = 0")
test_fail(lambda: make_config("smoke", {"gan.epoch": 5}), contains="gan.epoch = 5: is no field")
test_fail(lambda: make_config("smoke", {"preset": "full"}), contains="preset = 'full'")
test_fail(lambda: make_config("smoke", {"units.gan": 1}), contains="units.gan = 1: is no field")
test_fail(lambda: make_config("smoke", {"audio.db_min": "nan"}), contains="audio.db_min")
test_fail(lambda: make_config("tiny"), contains="preset = 'tiny'")
test_fail(
    lambda: make_config("smoke", {"vit.weights": f"https://me:hf_{'a' * 30}@huggingface.co/x/y"}),
    contains="vit.weights: looks like a password",
)
test_fail(lambda: make_config("full", {"data.test": 0.7}), contains="leave at least 0.2")
faults = find_faults("demo", {"gan.epochs": 0, "flow.channels": "[8, 9]", "data.test": 0.7})
test_eq(set(faults), {"gan.epochs", "flow.channels", "data"})
test_eq((faults["data"][-20:], find_faults("demo", {})), ("at least 0.2 for training"[-20:], {}))
test_eq((full.generators, make_config("demo").generators), (("gan",), ("residual", "flow")))
test_fail(lambda: make_config("full", {"synthesis.generator": "flow"}), contains="best or one of")
test_fail(lambda: make_config("full", {"training.recipe": "small"}), contains="vit.weights=scratch")
test_fail(lambda: make_config("demo", {"vit.patch": 130}), contains="must hold two of vit.patch")


# %% [markdown]
# ## Reading and comparing
#
# The table gives every field with its unit and source. Two configurations differ in named
# fields: that is what a run says when it is resumed with another configuration.


# %%
#| export presets
def flatten(config: Config) -> dict:
    "List every field under its dotted name."
    flat = {}
    for name, value in config:
        inner = dict(value) if isinstance(value, BaseModel) else None
        flat |= {f"{name}.{k}": v for k, v in inner.items()} if inner else {name: value}
    return flat


def field_info(name: str):
    "Look a field up by its dotted name: its type, meaning, unit and source, as pydantic has them."
    *section, field = name.split(".")
    model = Config.model_fields[section[0]].annotation if section else Config
    return model.model_fields[field]


def field_table(config: Config) -> pd.DataFrame:
    "Describe every field: value, unit, meaning, source."
    rows = []
    for name, value in flatten(config).items():
        info = field_info(name)
        rows.append({"field": name, "value": value, **info.json_schema_extra})
        rows[-1]["meaning"] = info.description
    return pd.DataFrame(rows)


# Fields that say how something is made and not what: nothing that is kept depends on them.
WITHOUT_EFFECT = ("checkpoint", "data.backend", "data.cache", "data.workers", "dataset.workers")


def changed_fields(old: Config, new: Config) -> list[str]:
    "Name the fields in which two configurations differ, as 'field: old -> new'."
    before, after = flatten(old), flatten(new)
    return [
        f"{name}: {before[name]} -> {after[name]}" for name in after if after[name] != before[name]
    ]


def changed_values(config: Config) -> dict:  # dotted field -> value, as JSON has it
    "List what a configuration has changed of its preset: make_config makes it again from these."
    before, after = flatten(make_config(config.preset)), flatten(config)
    tree = config.model_dump(mode="json")
    return {name: look_up(tree, name) for name in after if after[name] != before[name]}


def look_up(tree: dict, name: str):
    "Take a field's value out of what config.json holds."
    section, _, field = name.rpartition(".")
    return (tree[section] if section else tree)[field]


# %%
mine = make_config("demo", {"gan.epochs": "20", "training.unfreeze": "[[1, 2], [3, 4]]"})
test_eq(changed_values(mine), {"gan.epochs": 20, "training.unfreeze": [[1, 2], [3, 4]]})
test_eq(make_config("demo", changed_values(mine)), mine)

# %%
test_eq(changed_fields(full, make_config("full", {"gan.decay": 0.9})), ["gan.decay: 0.99 -> 0.9"])
field_table(full).query("source == 'specification'").head(8)


# %%
#| export presets
def config_record(config: Config) -> dict:
    "Make the content of config.json: every field, and the unit of each."
    table = field_table(config)
    units = dict(zip(table["field"], table["unit"], strict=True))
    return config.model_dump(mode="json") | {"units": units}


# %%
test_eq(read_config(config_record(full)), full)


# %%
#| export presets
def save_config(run, config: Config) -> pd.DataFrame:
    "Write config.json into a run and return the table of fields."
    run.save("config.json", config_record(config))
    return field_table(config)


# %% [markdown]
# ## The weights that it names
#
# A pretrained ViT is needed in section 10, hours into a session. Whether it can be had is known
# now, from a folder's content. Only safetensors are taken: other formats can run code.


# %%
#| export weights
class WeightsError(MusemoError):
    "Weights that cannot be had or do not fit: the message names the ways out."


# Besides its own errors the hub lets those of its HTTP client through, which has changed.
HUB_ERRORS = (OSError, ValueError, HfHubHTTPError.__bases__[0])

WAYS_OUT = (
    "ways out: 1) vit.weights=FOLDER with config.json and model.safetensors of a ViT, "
    "2) on Kaggle, attach a ViT as an input (Add Input, Models) or switch the internet on, "
    "3) preset demo, which needs none (or this one from nothing: vit.weights=scratch with "
    "training.unfreeze=[[1,64]] and training.backbone_rate=1)"
)


def is_vit_folder(folder: Path) -> bool:
    "Say whether a folder holds a ViT: its config.json and safetensors weights."
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError):
        return False
    return kind == "vit" and any(folder.glob("*.safetensors"))


# %% [markdown]
# Kaggle mounts a model at `/kaggle/input/SLUG/FRAMEWORK/VARIATION/VERSION`, and a data set
# elsewhere, so the folder is found by what is in it. Of several, the one named like the wanted
# checkpoint is taken; if that does not decide, the choice is the user's. A single one of another
# name was attached to be used: it is, and a line says so.


# %%
#| export weights
def find_kaggle_weights(
    name: str,  # the checkpoint's hub name
    root: str | Path = "/kaggle/input",  # where Kaggle mounts inputs
) -> Path | None:
    "Find a ViT among Kaggle's inputs; raises WeightsError where several would do."
    root = Path(root)
    found = sorted(path.parent for path in root.rglob("config.json") if is_vit_folder(path.parent))
    wanted = name.rsplit("/", 1)[-1].lower()
    named = [path for path in found if wanted in map(str.lower, path.relative_to(root).parts)]
    found = named or found
    if len(found) > 1:
        names = ", ".join(str(path) for path in found[:5])
        raise WeightsError(f"{len(found)} ViTs below {root}: set vit.weights to one of {names}")
    if found and not named:
        print(f"vit.weights = {name!r}: taken from what is attached, {found[0].relative_to(root)}")
    return found[0] if found else None


# %%
def lay_vit(folder: Path) -> None:
    "Lay down what a ViT's folder is recognised by."
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "vit", "image_size": 32}')
    (folder / "model.safetensors").touch()


with tempfile.TemporaryDirectory() as folder:
    test_eq(find_kaggle_weights("google/vit-base", folder), None)
    for name in ("vit-base", "vit-large"):
        lay_vit(Path(folder) / name / "transformers/default/1")
    test_eq(find_kaggle_weights("google/vit-base", folder).parts[-4], "vit-base")
    test_fail(lambda: find_kaggle_weights("my/other", folder), contains="2 ViTs below")


# %% [markdown]
# A hub name is downloaded once, or taken from the hub's own cache; without network and cache
# the error says what else can be done.


# %%
#| export weights
def locate_weights(
    name: str,  # local folder or hub name
    kaggle: str | Path = "/kaggle/input",
) -> tuple[Path, str]:  # the folder, and where it comes from in words
    "Bring pretrained weights to a local folder; raises WeightsError with the ways out."
    if Path(name).is_dir():
        if not is_vit_folder(Path(name)):
            raise WeightsError(f"{name}: has no ViT's config.json with *.safetensors; {WAYS_OUT}")
        return Path(name), f"folder {Path(name).name}"
    found = find_kaggle_weights(name, kaggle)
    if found:
        return found, f"Kaggle input {found.relative_to(kaggle)}"
    try:
        folder = snapshot_download(name, allow_patterns=["*.json", "model*.safetensors"])
    except HUB_ERRORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise WeightsError(
            f"vit.weights = {name!r}: cannot be had ({reason}); {WAYS_OUT}"
        ) from error
    if not is_vit_folder(Path(folder)):
        raise WeightsError(f"vit.weights = {name!r}: is no ViT with safetensors; {WAYS_OUT}")
    return Path(folder), f"hub {name}"


# %%
with tempfile.TemporaryDirectory() as folder:
    test_fail(lambda: locate_weights(folder), contains="ways out: 1) vit.weights=FOLDER")
    test_fail(lambda: locate_weights("no such name", folder), contains="vit.weights=scratch")
    lay_vit(Path(folder))
    test_eq(locate_weights(folder)[0], Path(folder))


# %% [markdown]
# The pictures must have the size that the weights were trained with. A run and the Kaggle kernel
# ask this before anything is decoded, and section 10 once more.


# %%
#| export weights
def find_weights(
    config: Config,
    kaggle: str | Path = "/kaggle/input",
) -> tuple[Path, str] | None:  # the folder, and where it comes from; None: the ViT needs none
    "Find the weights that a configuration names; raises WeightsError where they do not serve."
    if config.vit.weights == "scratch":
        return None
    folder, source = locate_weights(config.vit.weights, kaggle)
    facts = json.loads((folder / "config.json").read_text())
    size, channels = facts.get("image_size", 224), facts.get("num_channels", 3)  # ViT's own
    if channels != 3:
        raise WeightsError(
            f"the weights from {source} read pictures of {channels} channels, and spectrograms "
            f"come as pictures of 3; {WAYS_OUT}"
        )
    if size != config.dataset.image_size:
        raise WeightsError(
            f"dataset.image_size = {config.dataset.image_size}: the weights from {source} need "
            f"pictures of {size}; set dataset.image_size={size}"
        )
    return folder, source


# %%
test_eq(find_weights(make_config("demo")), None)
with tempfile.TemporaryDirectory() as folder:
    lay_vit(Path(folder))
    settings = {"vit.weights": folder, "dataset.image_size": 32}
    test_eq(find_weights(make_config("full", settings))[0], Path(folder))
    settings["dataset.image_size"] = 64
    test_fail(lambda: find_weights(make_config("full", settings)), contains="image_size=32")


# %% [markdown]
# ## The same again
#
# A configuration is told in full by its preset and what was changed of it: as a call in Python,
# and as a command. Both are made to be copied.


# %%
#| export presets
def as_setting(value) -> str:
    "Write a value as --set takes it."
    return value if isinstance(value, str) else json.dumps(value)


def config_call(config: Config) -> str:
    "Write the call that makes a configuration."
    values = changed_values(config)
    return f"make_config({config.preset!r}{f', {values!r}' if values else ''})"


def config_command(
    config: Config,
    command: str = "run",  # or evaluate
    *,
    out: object = "",  # the run's folder; empty: the command's own choice
) -> str:
    "Write the command that runs a configuration, or evaluates it."
    values = changed_values(config)
    data = values.pop("data.path", "")
    words = ["musemo", command, "--preset", config.preset, *(["--data", data] if data else [])]
    for name, value in values.items():
        words += ["--set", f"{name}={as_setting(value)}"]
    return shlex.join([*words, *(["--out", str(out)] if out else [])])


# %%
test_eq(config_call(full), "make_config('full')")
test_eq(eval(config_call(mine)), mine)
print(config_command(mine))

# %% [markdown]
# ## A form
#
# In a notebook the fields can be filled in. What is wrong is said beside the field at once; a rule
# between fields stands with its section. The presets' values are there to start from.

# %%
#| export form
_wide = {"width": "21rem", "max_width": "100%"}


def field_control(
    name: str,
    value,
    layout: ipywidgets.Layout | None = None,  # to share one; None: its own
) -> ipywidgets.ValueWidget:
    "Open the control of a field: a list of choices, a box to tick, or text."
    kind, field = field_info(name).annotation, name.rpartition(".")[2]
    options = {"description": field, "tooltip": name, "layout": layout or _wide}
    options["style"] = {"description_width": "10rem"}
    if get_origin(kind) is Literal:
        return ipywidgets.Dropdown(options=get_args(kind), value=value, **options)
    if kind is bool:
        return ipywidgets.Checkbox(value=value, indent=True, **options)
    return ipywidgets.Text(value=as_setting(value), continuous_update=False, **options)


def field_note(
    name: str,
    *,
    fault: str = "",  # what is wrong with it
    preset=None,  # the preset's value, where it was changed
) -> str:  # HTML
    "Say what a field means, and what is wrong with it or what it was."
    info, more = field_info(name), ""
    unit, source = (info.json_schema_extra[key] for key in ("unit", "source"))
    told = info.description if unit == "-" else f"{unit}: {info.description}"
    told = f"{html.escape(told)} <em>({html.escape(source)})</em>"
    if fault:
        color = "color: var(--jp-error-color1, #c00000)"  # the notebook's own, light or dark
        more = f"<br><strong role='alert' style='{color}'>{html.escape(fault)}</strong>"
    elif preset is not None:
        more = f"<br><strong>changed; the preset has {html.escape(as_setting(preset))}</strong>"
    return f"<div style='line-height: 1.3'>{told}{more}</div>"


# %%
note = field_note("gan.epochs", preset=10, fault="must be at least 1")
assert "epochs: passes over the training songs <em>(specification)</em>" in note
assert "must be at least 1</strong>" in note
controls = [field_control(*x) for x in (("device", "cpu"), ("training.cache", True))]
test_eq([type(x).__name__ for x in controls], ["Dropdown", "Checkbox"])
test_eq(field_control("training.unfreeze", [[1, 2]]).value, "[[1, 2]]")


# %%
#| export form
class ConfigForm:
    "A configuration to fill in; `box` is the widget, `config` what it says."

    def __init__(self, config: Config):
        self.values, self.filling = changed_values(config), False  # what differs from the preset
        self.preset = ipywidgets.Dropdown(
            options=[*PRESETS], value=config.preset, description="preset"
        )
        self.reset = ipywidgets.Button(description="back to the preset")
        fields = field_table(config).query("field != 'preset'")["field"]
        start = config.model_dump(mode="json")
        wide, self.told = ipywidgets.Layout(**_wide), ipywidgets.HTML()
        self.controls = {name: field_control(name, look_up(start, name), wide) for name in fields}
        # Shared, for each widget is a message, and some thousand of them may be too many at once.
        shared = {"layout": ipywidgets.Layout(flex="1 1 16rem"), "style": self.told.style}
        self.notes = {name: ipywidgets.HTML(**shared) for name in fields}
        self.sections = ipywidgets.Accordion(self._rows())
        top = ipywidgets.HBox([self.preset, self.reset], layout={"flex_flow": "row wrap"})
        self.box = ipywidgets.VBox([top, self.told, self.sections])
        self.preset.observe(lambda _: self.fill(), "value")
        self.reset.on_click(lambda _: self.fill({}))
        for name, control in self.controls.items():
            control.observe(lambda change, name=name: self._change(name, change["new"]), "value")
        self.fill()

    @property
    def config(self) -> Config:
        "The configuration; raises ValueError with field, value and rule where it is not valid."
        return make_config(self.preset.value, self.values)

    def fill(self, values: dict | None = None) -> None:
        "Show the preset's values, changed by `values`, or by what was changed so far."
        self.values = self.values if values is None else values
        self.start = make_config(self.preset.value).model_dump(mode="json")
        self.filling = True  # the controls follow, and must not answer
        for name, control in self.controls.items():
            value = self.values.get(name, look_up(self.start, name))
            control.value = as_setting(value) if isinstance(control, ipywidgets.Text) else value
        self.filling = False
        self.check()

    def check(self) -> None:
        "Say what is wrong, or how to make this configuration again."
        faults = find_faults(self.preset.value, self.values)
        for name, note in self.notes.items():
            preset = look_up(self.start, name) if name in self.values else None
            note.value = field_note(name, fault=faults.get(name, ""), preset=preset)
        self.sections.titles = [self._title(name, faults) for name in self._names()]
        if faults:
            lines = [f"{name or 'configuration'}: {rule}" for name, rule in faults.items()]
            self.told.value = as_blocks({"To mend first:": "\n".join(lines)})
        else:
            texts = {"In Python:": config_call(self.config)}
            self.told.value = as_blocks(texts | {"Command:": config_command(self.config)})

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name.rpartition(".")[0] for name in self.controls))

    def _rows(self) -> list:
        "Lay out each section's fields, a row each."
        rows: dict = {name: [] for name in self._names()}
        wrap = ipywidgets.Layout(flex_flow="row wrap")
        for name, control in self.controls.items():
            row = ipywidgets.HBox([control, self.notes[name]], layout=wrap)
            rows[name.rpartition(".")[0]].append(row)
        return [ipywidgets.VBox(part) for part in rows.values()]

    def _title(self, section: str, faults: dict) -> str:
        "Name a section, with how many of its fields are changed and how many rules are broken."
        counts = {"changed": self.values, "wrong": faults}
        told = [
            f"{n} {word}"
            for word, names in counts.items()
            if (n := sum(section in (x, x.rpartition(".")[0]) for x in names))
        ]
        return ", ".join([section or "general", *told])

    def _change(self, name: str, value) -> None:
        "Take a field over from its control."
        if self.filling:
            return
        start = look_up(self.start, name)
        self.values.pop(name, None)
        if value != (as_setting(start) if isinstance(value, str) else start):
            self.values[name] = value
        self.check()


def as_blocks(texts: dict[str, str]) -> str:  # HTML
    "Show texts to be copied, each under its title."
    style = "white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 .5rem"
    blocks = [f"{k}<pre style='{style}'>{html.escape(x)}</pre>" for k, x in texts.items()]
    return f"<div style='line-height: 1.3'>{''.join(blocks)}</div>"


# %%
form = ConfigForm(mine)
test_eq(form.config, mine)
form.controls["gan.epochs"].value = "none"
assert "unable to parse string as an integer" in form.notes["gan.epochs"].value
assert "gan, 1 changed, 1 wrong" in form.sections.titles and "To mend first" in form.told.value
form.controls["gan.epochs"].value = "7"
test_eq((form.config.gan.epochs, form.values["gan.epochs"]), (7, "7"))
form.preset.value = "smoke"
test_eq((form.config.preset, form.config.gan.epochs, form.config.flow.steps), ("smoke", 7, 6))
form.reset.click()
test_eq(form.config, make_config("smoke"))
form.box

# %% [markdown]
# A page has no kernel. There each section of the form is a list to unfold, in the same words.

# %%
#| export form
_list_style = """
.fields dl { margin: .3rem 0 1rem; }
.fields dt { font-weight: 600; overflow-wrap: anywhere; }
.fields dd { margin: 0 0 .5rem 1rem; }
"""


def list_fields(config: Config) -> HTML:
    "List every field with its value, meaning and source, a section at a time, as the form does."
    start, changed = make_config(config.preset).model_dump(mode="json"), changed_values(config)
    parts: dict = {}
    for name, value in flatten(config).items():
        note = field_note(name, preset=look_up(start, name) if name in changed else None)
        told = f"<dt>{name} = {html.escape(as_setting(value))}</dt><dd>{note}</dd>"
        parts.setdefault(name.rpartition(".")[0] or "general", []).append(told)
    blocks = [
        f"<details><summary>{name}, {len(x)} fields</summary><dl>{''.join(x)}</dl></details>"
        for name, x in parts.items()
    ]
    return HTML(f'<style>{_list_style}</style><div class="fields">{"".join(blocks)}</div>')


# %%
listed = list_fields(mine).data
assert "<summary>gan, " in listed and listed.count("<dt>") == len(field_table(mine))
assert "gan.epochs = 20</dt>" in listed and "changed; the preset has " in listed

# %% [markdown]
# ## On the run
#
# Every number that this run used, by section; unfold one to see what its fields mean. Change one
# with `--set section.field=value`.

# %% tags=["parameters"]
run_folder = None  # a run's folder; None: a run at the smoke size, made on the spot

# %%
#| hide
from musemo.opening import open_run

run, config = open_run(run_folder, before=2)

# %%
table = save_config(run, config)
list_fields(config)

# %% [markdown]
# The schedule of the predictor as a picture: how many of the last blocks may move, by epoch.

# %%
epochs = np.arange(1, config.training.epochs + 1)
pairs = config.training.unfreeze
blocks = np.array([[0, *(b for e, b in pairs if e <= epoch)][-1] for epoch in epochs])
if config.vit.weights == "scratch":
    blocks = np.minimum(blocks, config.vit.layers)
figure, axes = subplots(size=(6, 2.4))
axes.step(epochs, blocks, where="mid", color=COLORS["model"])
axes.set(title="Trainable blocks of the ViT", xlabel="epoch", ylabel="last blocks (count)")
axes.set_ylim(0, blocks.max() + 1)
run.headline("02_config", f"{len(table)} fields, preset {config.preset}", figure)

# %% [markdown]
# This configuration once more, to copy. In a notebook the form below starts from it, and
# `form.config` is what it says.

# %%
HTML(as_blocks({"In Python:": config_call(config), "Command:": config_command(config)}))

# %%
form = ConfigForm(config)
form.box
