# %%
#| default_exp audio

# %% [markdown]
# # Sound
#
# > From a log-mel spectrogram back to something to listen to, at the loudness that it says.
#
# A log-mel spectrogram forgets two things: where inside a band the energy lies, and the phase.
# The first is found again by non-negative updates, the second by Griffin-Lim's iterations.
# How much is lost is measured on real songs, in decibels.
#
# Shapes: B batch, M mel bands, F frequency bins, T frames, S samples.

# %%
#| export
import librosa
import matplotlib.pyplot as plt
import numpy as np
import torch

from musemo.config import AudioConfig, Config, InversionConfig
from musemo.core import MusemoError, plot_log_mel, subplots
from musemo.spectrum import mel_bank, short_time, squared, wave_log_mel

# %%
#| export listening
import base64
import html
import io

import librosa
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML

from musemo.audio import (
    invert_log_mel,
    keep_from_clipping,
    level_dbfs,
    plot_in_pairs,
    round_trip_error,
)
from musemo.config import AudioConfig, Config
from musemo.core import MusemoError, Run, cut_windows, load_part, pick_device, player, seed_for
from musemo.gan_quality import load_samples
from musemo.widgets import png_bytes

# %%
#| export plane
import base64

import numpy as np
from IPython.display import HTML
from ipywidgets import Button, FloatSlider, GridBox, Label, Layout, VBox

from musemo.audio import invert_log_mel, keep_from_clipping
from musemo.config import AudioConfig, Config
from musemo.core import Run, pick_device, seed_for, wav_bytes
from musemo.listening import AUDIO_UNITS, middle, save_waves, spectrogram_png, thumbnail
from musemo.widgets import empty_picture, put_sound, silent_player

# %%
#| hide
import time

import pandas as pd
from fastcore.test import test_close, test_eq, test_fail

from musemo.core import COLORS

# %% [markdown]
# ## There
#
# The way there is section 3's: power, not amplitude, through Slaney's filters, in decibels re 1,
# on the fixed scale of the suite.

# %%
audio = AudioConfig(sample_rate=8000, n_fft=512, hop=128, n_mels=32, f_max=4000, clip_seconds=2)
seconds = torch.arange(2 * 8000) / 8000
notes = [110, 220, 330, 262, 392, 523, 784, 1047]
starts = torch.arange(len(notes)) / 5
tones = torch.stack(
    [
        torch.sin(2 * torch.pi * f * seconds)
        * torch.exp(-4 * (seconds - s).clamp(min=0))
        * (seconds >= s)
        for f, s in zip(notes, starts, strict=True)
    ]
)
clip = 0.15 * tones.sum(0) + 0.001 * torch.randn(
    len(seconds), generator=torch.Generator().manual_seed(0)
)
log_mel = wave_log_mel(clip.numpy()[None], audio)
reference = librosa.feature.melspectrogram(
    y=clip.numpy(), sr=8000, n_fft=512, hop_length=128, n_mels=32, fmin=20, fmax=4000
)
test_close(audio.to_db(log_mel[0]), np.maximum(10 * np.log10(reference), audio.db_min), eps=1e-2)


# %% [markdown]
# ## Back: where the energy lies
#
# Decibels become power. The scale's lower end stands for silence, so -1 becomes nothing at all,
# not a hiss at -60 dB. What was clipped at the upper end stays clipped.


# %%
#| export
def to_power(
    log_mel: np.ndarray,  # (B, M, T) in [-1, 1]
    audio: AudioConfig,
) -> torch.Tensor:  # (B, M, T) mel power
    "Turn the suite's scale into power; raises MusemoError for NaN, nothing, or other bands."
    log_mel = np.asarray(log_mel, dtype=np.float32)
    if log_mel.ndim != 3 or log_mel.shape[1] != audio.n_mels or not log_mel.size:
        raise MusemoError(
            f"log-mel of shape {log_mel.shape}: needed is (B, {audio.n_mels}, T), none of them 0; "
            "one clip alone is log_mel[None]"
        )
    bad = int((~np.isfinite(log_mel)).sum())
    if bad:
        raise MusemoError(f"{bad} values of the log-mel are NaN or infinite: leave those out")
    power = 10 ** (audio.to_db(np.clip(log_mel, -1, 1)) / 10)
    return torch.from_numpy(np.where(log_mel <= -1, 0, power).astype(np.float32))


# %%
test_close(to_power(np.full((1, 32, 2), 0.2), audio), np.ones((1, 32, 2)), eps=1e-5)
test_eq(to_power(np.full((1, 32, 2), -1.0), audio).max(), 0)
test_fail(lambda: to_power(np.zeros((1, 8, 4)), audio), contains="needed is (B, 32, T)")
test_fail(lambda: to_power(np.zeros((0, 32, 4)), audio), contains="(0, 32, 4)")
test_fail(lambda: to_power(np.full((1, 32, 4), np.nan), audio), contains="128 values")


# %% [markdown]
# Many spectra have the same mel bands; we want one that is nowhere negative. Multiplicative
# updates (Richardson 1972, Lucy 1974; the Kullback-Leibler form of Lee & Seung 2001) never leave
# the non-negative numbers, and weigh quiet bands by ratio, as ears do. Least squares would spend
# its effort on the loudest bands. A bin lies in two bands at most, so the filters are kept sparse.


# %%
#| export
class MelFit:
    "Fit non-negative spectra to mel bands by multiplicative updates."

    def __init__(self, audio: AudioConfig, device: torch.device | str = "cpu"):
        bank = mel_bank(audio).to(device)  # (M, F)
        share = bank.T / bank.sum(0)[:, None].clamp(min=1e-12)  # (F, M); rows add up to 1
        # The mps backend has no sparse product.
        thin = (lambda x: x) if bank.device.type == "mps" else torch.Tensor.to_sparse
        self.bank, self.share = thin(bank), thin(share)
        self.width = bank.sum(1)[:, None].clamp(min=1e-12)  # (M, 1)

    def start(
        self,
        power: torch.Tensor,  # (B, M, T) mel power
        *,
        rounds: int,
    ) -> torch.Tensor:  # (B, F, T) power, not negative
        "Find a spectrum with these mel bands; a bin that no filter looks at stays empty."
        spectrum = torch.stack([self.share @ (bands / self.width) for bands in power])
        for _ in range(rounds):
            spectrum = self.update(spectrum, power)
        return spectrum

    def update(self, spectrum: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
        "Bring the mel bands of a spectrum nearer to the given ones, by ratio."
        pairs = zip(spectrum, power, strict=True)
        ratio = [self.share @ (bands / (self.bank @ x).clamp(min=1e-20)) for x, bands in pairs]
        # Bins on their way to nothing get there: subnormal numbers are a hundred times slower.
        return torch.nn.functional.threshold(spectrum * torch.stack(ratio), 1e-16, 0.0)


# %% [markdown]
# Updates bring the bands of the found spectrum to the given ones; twenty leave about a tenth
# of a decibel.

# %%
power, bank, fit = to_power(log_mel, audio), mel_bank(audio), MelFit(audio)
heard = power > 1e-4
rounds = [0, 5, 10, 20, 60]
errors = []
for count in rounds:
    found = fit.start(power, rounds=count)
    errors.append((10 * torch.log10((bank @ found) / power))[heard].abs().mean().item())
assert found.min() >= 0 and errors[-1] < 0.1 < errors[0]
figure, axes = subplots(size=(4, 2.2))
axes.semilogy(rounds, errors, "o-", color=COLORS["model"])
axes.set(title="Bands of the found spectrum", xlabel="updates", ylabel="mean error (dB)")


# %% [markdown]
# ## Back: a phase that fits
#
# Griffin-Lim goes back and forth between wave and spectrum, keeping the magnitude and taking the
# phase that the wave has. The fast form overshoots by a momentum (Perraudin 2013). Magnitude is
# the root of power: given the power itself, the sound gets twice the decibels.
#
# `torch.istft` takes most of an iteration, since it adds up the window anew each time and by a
# slow path. Frames that overlap add up by whole hops, and the sum of the windows is made once.
#
# Only the mel bands are known; the magnitude inside them is a guess. So in the last rounds the
# guess gives way, too: the wave's own magnitude is kept, and only its mel bands are put right.


# %%
#| export
def add_up(
    frames: torch.Tensor,  # (B, T, n)
    hop: int,  # samples between the starts of two frames
) -> torch.Tensor:  # (B, S)
    "Add overlapping frames."
    pieces = -(-frames.shape[2] // hop)
    frames = torch.nn.functional.pad(frames, (0, pieces * hop - frames.shape[2]))
    batch, count, _ = frames.shape
    wave = frames.new_zeros(batch, count + pieces - 1, hop)
    for i in range(pieces):
        wave[:, i : i + count] += frames[:, :, i * hop : (i + 1) * hop]
    return wave.flatten(1)


class Inverse:
    "Go back from a centred short-time Fourier transform, as torch.istft does."

    def __init__(self, frames: int, audio: AudioConfig, device: torch.device | str = "cpu"):
        self.hop, half, length = audio.hop, audio.n_fft // 2, audio.hop * (frames - 1)
        self.window = torch.hann_window(audio.n_fft, device=device)
        windows = self.window.square().expand(1, frames, -1)
        self.kept = slice(half, half + length)
        self.weight = add_up(windows, audio.hop)[:, self.kept].clamp(min=1e-8).reciprocal()

    def __call__(self, spectrum: torch.Tensor) -> torch.Tensor:  # (B, F, T) -> (B, S)
        frames = torch.fft.irfft(spectrum.mT, n=len(self.window)) * self.window
        return add_up(frames, self.hop)[:, self.kept] * self.weight


def set_magnitude(
    values: torch.Tensor,  # (B, F, T) complex, changed in place
    magnitude: torch.Tensor,  # (B, F, T)
) -> torch.Tensor:
    "Give complex values another magnitude and keep their phase; what is 0 stays 0."
    # On the real view: torch turns a real factor into a complex one first, which is slow.
    factor = squared(values).clamp_(min=1e-32).rsqrt_().mul_(magnitude)
    torch.view_as_real(values).mul_(factor[..., None])
    return values


# %%
for hop in (128, 100):
    uneven = audio.model_copy(update={"hop": hop})
    spectrum, window = short_time(clip[None], uneven), torch.hann_window(512)
    expected = torch.istft(spectrum, 512, hop, window=window)
    test_close(Inverse(spectrum.shape[2], uneven)(spectrum), expected, eps=1e-5)
turned = set_magnitude(torch.tensor([3 + 4j, -2j, 0]), torch.tensor([1.0, 3.0, 5.0]))
test_close(torch.view_as_real(turned).numpy(), np.array([[0.6, 0.8], [0, -3], [0, 0]]), eps=1e-6)


# %%
#| export
def griffin_lim(
    power: torch.Tensor,  # (B, M, T) mel power
    audio: AudioConfig,
    inversion: InversionConfig,
    *,
    seed: int,
) -> torch.Tensor:  # (B, hop * (T - 1))
    "Find waves with these mel bands by fast Griffin-Lim from seeded random phases."
    fit, back = MelFit(audio, power.device), Inverse(power.shape[2], audio, power.device)
    # Frames before bins in memory, as torch.stft has them: mixed orders take twice as long.
    magnitude = fit.start(power, rounds=inversion.mel_iterations).sqrt().mT.contiguous().mT
    # One draw a clip: a clip sounds the same alone and in a batch.
    phase = torch.rand(magnitude.shape[1:], generator=torch.Generator().manual_seed(seed))
    phase = torch.polar(torch.ones_like(phase), 2 * torch.pi * phase).to(power.device)
    spectrum = magnitude * phase
    pull, before = inversion.momentum / (1 + inversion.momentum), torch.zeros_like(spectrum)
    for left in reversed(range(inversion.iterations)):
        rebuilt = short_time(back(spectrum), audio)
        if left < inversion.refits:
            magnitude = fit.update(squared(rebuilt), power).sqrt()
        spectrum = set_magnitude(torch.sub(rebuilt, before, alpha=pull), magnitude)
        before = rebuilt
    return back(spectrum)


def invert_log_mel(
    log_mel: np.ndarray,  # (B, M, T) in [-1, 1]
    config: Config,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> np.ndarray:  # (B, hop * (T - 1)) float32; may exceed 1 where the music was loud
    "Turn log-mel spectrograms into sound; raises MusemoError for NaN or too few frames."
    power, needed = to_power(log_mel, config.audio), config.audio.n_fft // config.audio.hop + 1
    if power.shape[2] < needed:
        raise MusemoError(
            f"{power.shape[2]} frames: shorter than one Fourier window; give at least {needed}"
        )
    waves = griffin_lim(power.to(device), config.audio, config.inversion, seed=seed)
    return waves.cpu().numpy()


# %% [markdown]
# The round trip's error is the mean difference of two spectrograms on the clipped scale. librosa
# goes the same way with least squares and its own Griffin-Lim; ours must lose less.
# `tests/bench/inversion.py` measures both on real clips.


# %%
#| export
def round_trip_error(
    log_mel: np.ndarray,  # (B, M, T) in [-1, 1]
    waves: np.ndarray,  # (B, S) made from it
    audio: AudioConfig,
) -> np.ndarray:  # (B,) dB
    "Measure the mean absolute difference between asked and sounding log-mel, in decibels."
    heard = wave_log_mel(np.asarray(waves, dtype=np.float32), audio)
    asked = audio.to_db(np.asarray(log_mel, dtype=np.float32))
    return np.abs(audio.to_db(heard)[..., : asked.shape[2]] - asked).mean((1, 2))


# %%
small = Config(
    audio=audio, data={"min_seconds": 1}, gan={"frames": 64}, dataset={"window_frames": 64}
)
begun = time.perf_counter()
waves = invert_log_mel(log_mel, small, seed=0)
middle = time.perf_counter()
theirs = librosa.feature.inverse.mel_to_audio(
    to_power(log_mel, audio)[0].numpy(),
    sr=8000,
    n_fft=512,
    hop_length=128,
    n_iter=32,
    fmin=20,
    fmax=4000,
)
ended = time.perf_counter()
ours, librosas = (round_trip_error(log_mel, w, audio)[0] for w in (waves, theirs[None]))
assert ours < librosas
silence = np.full((1, 32, 40), -1.0)
test_eq(np.abs(invert_log_mel(silence, small, seed=0)).max(), 0)
test_eq(invert_log_mel(log_mel, small, seed=0), waves)
test_close(waves.std() / clip.std(), 1, eps=0.1)  # loudness is kept
pd.DataFrame(
    {
        "error (dB)": [ours, librosas],
        "level (dB)": 20 * np.log10(np.array([waves.std(), theirs.std()]) / clip.std().item()),
        "time (s)": [middle - begun, ended - middle],
    },
    index=["musemo", "librosa"],
).round(2)


# %% [markdown]
# ## Level
#
# New phases pile up other peaks: a loud master that touched 1 may reach 1.4. A .wav file ends at 1,
# and cutting peaks off crackles. So a clip that exceeds 1 is made quieter as a whole, by a gain
# that is written down; quiet clips stay quiet.


# %%
#| export
def keep_from_clipping(
    wave: np.ndarray,  # (S,), or (B, S): turned down together, so that they can be compared
    *,
    peak: float = 0.99,  # full scale is 1
) -> tuple[np.ndarray, float]:  # the wave, and the gain in dB (0: untouched)
    "Turn sound down where its peak exceeds full scale."
    highest = float(np.abs(wave).max(initial=0))
    if highest <= 1:
        return wave, 0.0
    return wave * (peak / highest), float(20 * np.log10(peak / highest))


def level_dbfs(wave: np.ndarray) -> float | None:
    "Measure the level re a full-scale square wave, in dB; None for silence."
    power = float(np.mean(np.square(wave, dtype=np.float64)))
    return 10 * np.log10(power) if power > 0 else None


# %%
test_eq(keep_from_clipping(waves[0])[1], 0.0)
loud, gain = keep_from_clipping(np.array([0.5, -2.0]))
test_close((np.abs(loud).max(), gain), (0.99, -6.108), eps=1e-3)
test_close(level_dbfs(np.full(100, 0.1)), -20, eps=1e-6)
test_eq(level_dbfs(np.zeros(5)), None)


# %%
#| export
def plot_in_pairs(
    pairs: list[tuple[str, np.ndarray]],  # title and (M, T) in [-1, 1]; two a row
    audio: AudioConfig,
) -> plt.Figure:
    "Draw spectrograms two a row, on one decibel scale."
    bands = librosa.mel_frequencies(audio.n_mels, fmin=audio.f_min, fmax=audio.f_max)
    columns = min(len(pairs), 2)
    shape = (-(-len(pairs) // 2), columns)
    figure, axes = subplots(*shape, size=(4.6, 2.1), squeeze=False)
    for panel, (title, log_mel) in zip(axes.flat, pairs, strict=True):
        image = plot_log_mel(
            panel,
            audio.to_db(log_mel),
            sample_rate=audio.sample_rate,
            hop=audio.hop,
            bands=bands,
            limits=(audio.db_min, audio.db_max),
            title=title,
        )
    figure.colorbar(image, ax=axes, label="level (dB)")
    return figure


# %%
back = wave_log_mel(waves, audio)
figure = plot_in_pairs([("asked", log_mel[0]), ("sounding", back[0])], audio)


# %% [markdown]
# ## A card for the page
#
# A picture and its sound belong together: on a wide page two cards stand side by side, on a
# phone one below the other. A clip of half a minute would make the page too heavy: the page
# plays the middle, and the .wav beside it has all.


# %%
#| export listening
def middle(
    log_mel: np.ndarray,  # (..., T)
    audio: AudioConfig,
    *,
    seconds: float,
) -> np.ndarray:  # (..., at most T)
    "Keep the middle of clips that are longer."
    wanted = max(int(seconds * audio.sample_rate / audio.hop), audio.n_fft // audio.hop + 1)
    start = max(0, (log_mel.shape[-1] - wanted) // 2)
    return log_mel[..., start : start + wanted]


def thumbnail(
    log_mel: np.ndarray,  # (M, T) in [-1, 1]
    side: int = 64,  # pixels up and across, about
) -> bytes:  # PNG
    "Draw a small spectrogram without axes, on the suite's fixed scale."
    step = [max(1, n // side) for n in log_mel.shape]
    file = io.BytesIO()
    plt.imsave(file, log_mel[:: step[0], :: step[1]], cmap="magma", vmin=-1, vmax=1, origin="lower")
    return file.getvalue()


def spectrogram_png(log_mel: np.ndarray, audio: AudioConfig) -> bytes:
    "Draw one spectrogram with its axes."
    return png_bytes(plot_in_pairs([("", log_mel)], audio))


def card(
    label: str,  # what it is
    picture: bytes,  # PNG
    wave: np.ndarray,  # (S,)
    audio: AudioConfig,
    *,
    seconds: float,  # played of a longer clip
) -> str:  # HTML
    "Put a picture above its player."
    spare = max(0, len(wave) - int(seconds * audio.sample_rate))
    wave = wave[spare // 2 : len(wave) - (spare - spare // 2)]
    if spare:
        label = f"{label}, the middle {len(wave) / audio.sample_rate:.0f} s"
    source, text = base64.b64encode(picture).decode(), html.escape(label, quote=True)
    image = f'<img alt="spectrogram: {text}" src="data:image/png;base64,{source}">'
    return f"<div>{image}{player(wave, audio.sample_rate, label=label).data}</div>"


def lay_out(cards: list[str]) -> HTML:
    "Lay cards out in pairs, side by side where the page is wide enough."
    return HTML(f'<style>{_card_style}</style><div class="cards">{"".join(cards)}</div>')


_card_style = """
.cards { display: grid; gap: 1rem; max-width: 56rem; }
.cards { grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.cards figure { margin: 0; }
.cards img, .cards audio { width: 100%; }
"""

# %%
test_eq(middle(log_mel, audio, seconds=0.5).shape, (1, 32, 31))
test_eq(middle(log_mel, audio, seconds=60), log_mel)
cards = [
    card(name, spectrogram_png(x[0], audio), waves[0], audio, seconds=1)
    for name, x in {"asked": log_mel, "sounding": back}.items()
]
assert "asked, the middle 1 s" in cards[0]
lay_out(cards)


# %% [markdown]
# ## The stage
#
# The five named emotions become .wav files named after what was asked, each beside the real
# training song whose labels are nearest. The real songs' own windows go the same way, from
# spectrogram to sound: so both sides of a pair have lost what the inversion loses.


# %%
#| export listening
def nearest_songs(
    run: Run,
    points: np.ndarray,  # (K, 2) valence and arousal
    width: int,  # frames of a window
) -> tuple[pd.DataFrame, np.ndarray]:  # song_id, valence, arousal, distance; windows (K, M, width)
    "Find the training song nearest to each point, and cut out its middle."
    songs = run.load("songs.csv")
    songs = songs[songs["split"] == "train"]
    if not len(songs):
        raise MusemoError("songs.csv: no songs in the train part; give more songs")
    labels = songs[["valence", "arousal"]].to_numpy()
    away = np.linalg.norm(labels[None] - np.asarray(points)[:, None], axis=2)  # (K, N)
    near = songs.iloc[away.argmin(1)].assign(distance=away.min(1)).reset_index(drop=True)
    log_mel = run.load("logmel.npy")[near["row"].to_numpy()]
    return near, cut_windows(log_mel, near["frames"], width)[0]


def round_trips(
    run: Run,
    config: Config,
    *,
    width: int,  # T, frames
    most: int = 3,  # songs
) -> dict:  # song_ids, log_mel (B, M, T), waves, errors in dB
    "Send the middle of some test songs there and back."
    songs, log_mel = load_part(run, "test")
    log_mel, _ = cut_windows(log_mel[:most], songs["frames"].iloc[:most], width)
    device = pick_device(config.device)
    waves = invert_log_mel(log_mel, config, seed=seed_for(config.seed, "audio"), device=device)
    errors = round_trip_error(log_mel, waves, config.audio)
    ids = [int(i) for i in songs["song_id"].iloc[:most]]
    return {"song_ids": ids, "log_mel": log_mel, "waves": waves, "errors": errors}


def wav_name(emotion: str, valence: float, arousal: float) -> str:
    "Name a file after what was asked: audio/sad_calm_v-0.8_a-0.6.wav."
    return f"audio/{emotion}_v{valence:.1f}_a{arousal:.1f}.wav"


def save_waves(
    run: Run,
    config: Config,
    waves: dict[str, np.ndarray],  # name of the .wav -> (S,), all of one length
) -> dict[str, dict]:  # name -> file, level before the gain, gain
    "Write .wav files, all turned down alike where one would clip."
    turned_down, gain = keep_from_clipping(np.stack([*waves.values()]))
    for name, wave in zip(waves, turned_down, strict=True):
        run.save(name, (wave, config.audio.sample_rate))
    return {k: {"file": k, "level": level_dbfs(x), "gain": gain} for k, x in waves.items()}


# %% [markdown]
# Is an emotion followed? Three things that ears take for arousal can be counted in a sound: how
# loud it is, how often something begins, and how much of it is drum rather than tone.


# %%
#| export listening
def sound_facts(
    wave: np.ndarray,  # (S,)
    audio: AudioConfig,
) -> dict[str, float | None]:  # onsets a second; harmonic over percussive energy in dB
    "Count onsets and weigh tones against drums (Fitzgerald 2010); None: silence."
    grid = {"hop_length": audio.hop, "n_fft": audio.n_fft}
    onsets = librosa.onset.onset_detect(y=wave, sr=audio.sample_rate, hop_length=audio.hop)
    parts = librosa.decompose.hpss(np.abs(librosa.stft(y=wave, **grid)))
    harmonic, percussive = (float(np.square(part, dtype=np.float64).sum()) for part in parts)
    least = 1e-9 * (harmonic + percussive)  # pure ticks have no tone at all: -90 dB
    ratio = 10 * np.log10(max(harmonic, least) / max(percussive, least)) if least else None
    return {"onsets": len(onsets) / (len(wave) / audio.sample_rate), "harmonic": ratio}


# %%
ticks = np.zeros(2 * 8000, dtype=np.float32)
ticks[1000::2000] = 0.5  # four a second
tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(2 * 8000) / 8000).astype(np.float32)
drums, steady = (sound_facts(x, audio) for x in (ticks, tone))
test_close(drums["onsets"], 4, eps=0.6)
assert drums["harmonic"] < -3 and steady["harmonic"] > 10 and steady["onsets"] <= 1
test_eq(sound_facts(np.zeros(8000, dtype=np.float32), audio), {"onsets": 0.0, "harmonic": None})

# %%
#| export listening
AUDIO_UNITS = {
    "valence": "[-1, 1]",
    "arousal": "[-1, 1]",
    "level": "dB re full scale, before the gain; None: silence",
    "onsets": "a second",
    "harmonic": "dB, energy of tones over energy of drums, None: silence",
    "gain": "dB, of all clips beside each other; below 0 where a peak had exceeded full scale",
    "distance": "[-1, 1], on the valence-arousal plane",
    "error": "dB, mean absolute difference of log-mel after the round trip",
}


def render_emotions(run: Run, config: Config) -> dict:  # record, log_mel, real, trips
    "Write the named emotions as .wav and audio/audio.json; raises MusemoError if none is there."
    table = run.load("synthetic.csv")
    rows = np.flatnonzero(table["emotion"].notna())
    if not len(rows):
        raise MusemoError("synthetic.csv has no named emotion: run section 7 again (--from 7)")
    asked = table.iloc[rows].reset_index(drop=True)
    drawn = np.asarray(run.load("synthetic.npy")[rows], dtype=np.float32)
    width = drawn.shape[2]
    near, real = nearest_songs(run, asked[["valence", "arousal"]].to_numpy(), width)
    both, device = np.concatenate([drawn, real]), pick_device(config.device)
    waves = invert_log_mel(both, config, seed=seed_for(config.seed, "audio"), device=device)
    errors = round_trip_error(both, waves, config.audio)
    names = [wav_name(x.emotion, x.valence, x.arousal) for x in asked.itertuples()]
    pairs = zip(asked["emotion"], near["song_id"], strict=True)
    names += [f"audio/near_{emotion}_song_{song_id}.wav" for emotion, song_id in pairs]
    for old in run.folder.glob("audio/*.wav"):  # of another seed, which drew other songs near
        old.unlink()
    saved = [*save_waves(run, config, dict(zip(names, waves, strict=True))).values()]
    record, trips = {"emotions": {}, "units": AUDIO_UNITS}, round_trips(run, config, width=width)
    for i, (wish, song) in enumerate(zip(asked.itertuples(), near.itertuples(), strict=True)):
        other = i + len(asked)
        facts = {"valence": float(wish.valence), "arousal": float(wish.arousal)} | saved[i]
        facts |= sound_facts(waves[i], config.audio)
        beside = {"song_id": int(song.song_id), "valence": float(song.valence)}
        beside |= {"arousal": float(song.arousal), "distance": float(song.distance)}
        beside |= saved[other] | {"error": float(errors[other])}
        beside |= sound_facts(waves[other], config.audio)
        record["emotions"][wish.emotion] = facts | {"error": float(errors[i])}
        record["emotions"][wish.emotion]["nearest_song"] = beside
    per_song = zip(trips["song_ids"], trips["errors"], strict=True)
    record["round_trip"] = {"songs": [{"song_id": i, "error": float(e)} for i, e in per_song]}
    record["round_trip"]["error"] = float(trips["errors"].mean())
    run.save("audio/audio.json", record)
    return {"record": record, "log_mel": drawn, "real": real, "trips": trips}


def describe_pairs(rendered: dict) -> list[tuple[str, np.ndarray, str]]:  # title, (M, T), .wav
    "List the emotions, each followed by its nearest real song."
    pairs, emotions = [], rendered["record"]["emotions"].items()
    for (name, facts), drawn, real in zip(
        emotions, rendered["log_mel"], rendered["real"], strict=True
    ):
        near = facts["nearest_song"]
        names = name.replace("_", ", "), f"real song {near['song_id']}"
        for title, one, x in zip(names, (facts, near), (drawn, real), strict=True):
            label = f"{title}: valence {one['valence']:+.2f}, arousal {one['arousal']:+.2f}"
            pairs.append((label, x, one["file"]))
    return pairs


def show_clips(
    run: Run,
    config: Config,
    clips: list[tuple[str, np.ndarray, str]],  # title, (M, T), .wav
) -> HTML:
    "Lay out the run's clips, each with its spectrogram."
    audio, seconds = config.audio, config.inversion.page_seconds
    return lay_out(
        [
            card(title, spectrogram_png(x, audio), run.load(file)[0], audio, seconds=seconds)
            for title, x, file in clips
        ]
    )


# %%
#| export listening
def emotion_table(record: dict) -> pd.DataFrame:  # a row an emotion
    "Set what each emotion sounds like beside its nearest real song."
    columns = {
        "level": "level (dB)",
        "onsets": "onsets (a second)",
        "harmonic": "tones / drums (dB)",
    }
    rows = {}
    for name, facts in record["emotions"].items():
        near = facts["nearest_song"]
        rows[name] = {("asked", key): facts[key] for key in ("valence", "arousal")}
        for key, column in columns.items():
            rows[name] |= {(column, "drawn"): facts[key], (column, "real"): near[key]}
        rows[name][("round trip (dB)", "drawn")] = facts["error"]
        rows[name][("nearest song", "distance")] = near["distance"]
    return pd.DataFrame(rows).T.astype(float)


# %%
#| export listening
def _in_order(heard: pd.Series, asked: pd.Series) -> str:
    alike = heard.rank().corr(asked.loc[heard.index].rank())
    return "all alike" if np.isnan(alike) else f"{alike:.2f}"


def describe_order(table: pd.DataFrame) -> str:  # of emotion_table
    "Say in one sentence how the order of arousal asked for comes back in level and in onsets."
    asked, said = table[("asked", "arousal")], []
    for name, column in (("level", "level (dB)"), ("onsets", "onsets (a second)")):
        heard = {side: table[(column, side)].dropna() for side in ("drawn", "real")}
        alike = {side: _in_order(x, asked) for side, x in heard.items()}
        order = ", ".join(heard["drawn"].sort_values().index).replace("_", " ")
        said.append(
            f"by {name} {order} (rank correlation {alike['drawn']}; real songs beside them "
            f"{alike['real']})"
        )
    calm = ", ".join(asked.sort_values().index).replace("_", " ")
    return f"From calm to aroused, asked is {calm}; drawn is {', and '.join(said)}."


# %%
heard = {
    name: {"valence": v, "arousal": a, "level": 10 * a - 30, "onsets": 4 - a, "harmonic": 3.0}
    | {"error": 0.5, "nearest_song": {"level": -20 + a, "onsets": 2 + a, "harmonic": 9.0}}
    for name, (v, a) in {"sad_calm": (-0.8, -0.6), "neutral": (0, 0), "tense": (-0.3, 0.8)}.items()
}
for one in heard.values():
    one["nearest_song"]["distance"] = 0.1
sentence = describe_order(emotion_table({"emotions": heard}))
assert "asked is sad calm, neutral, tense; drawn is by level sad calm, neutral, tense" in sentence
assert "correlation 1.00" in sentence and "by onsets tense, neutral, sad calm" in sentence
still = emotion_table({"emotions": heard})
still[("onsets (a second)", "drawn")] = 2.0
assert "(rank correlation all alike; real songs beside them 1.00)" in describe_order(still)
emotion_table({"emotions": heard}).round(2)


# %% [markdown]
# ## Each generator
#
# The named emotions are drawn by one generator. Section 5 asked all of them for the same emotions,
# in the windows that section 6 judges: the calmest and the most aroused of these get their sound,
# too. A score is to be believed only where it agrees with what is heard.


# %%
#| export listening
def render_generators(
    run: Run,
    config: Config,
) -> list[tuple[str, np.ndarray, str]]:  # title, (M, T), .wav
    "Write a calm and an aroused window of each generator as .wav, and audio/generators.json."
    drawn = {name: load_samples(run, name) for name in config.generators}
    asked = drawn[config.generators[0]][1]  # (n, 2), the same of all
    rows = [int(asked[:, 1].argmin()), int(asked[:, 1].argmax())]
    near, real = nearest_songs(run, asked[rows], config.gan.frames)
    seed, device = seed_for(config.seed, "generators"), pick_device(config.device)
    whose, log_mel = [], []
    for mood, row, song, window in zip(
        ("calm", "aroused"), rows, near.itertuples(), real, strict=True
    ):
        whose += [(mood, name, name, *asked[row]) for name in drawn]
        whose += [(mood, "real", f"real song {song.song_id}", song.valence, song.arousal)]
        log_mel += [*(x[row].astype(np.float32) for x, _ in drawn.values()), window]
    waves = invert_log_mel(np.stack(log_mel), config, seed=seed, device=device)
    for old in run.folder.glob("audio/generators/*.wav"):  # of generators that are left out now
        old.unlink()
    names = [f"audio/generators/{mood}_{name}.wav" for mood, name, *_ in whose]
    saved, pairs, record = save_waves(run, config, dict(zip(names, waves, strict=True))), [], []
    for file, (mood, name, title, v, a), one in zip(names, whose, log_mel, strict=True):
        facts = {"drawn_by": name, "valence": float(v), "arousal": float(a)}
        record.append(facts | saved[file])
        pairs.append((f"{mood}, {title}: valence {v:+.2f}, arousal {a:+.2f}", one, file))
    run.save("audio/generators.json", {"windows": record, "units": AUDIO_UNITS})
    return pairs


# %% [markdown]
# ## The plane
#
# Section 7 drew one noise at each point of a grid over the plane; here the points get their sound,
# and the plane a page on which each can be played: valence rises to the right, arousal upwards.


# %%
#| export plane
def render_plane(run: Run, config: Config) -> dict:  # points (K, 2), log_mel, waves, files
    "Write the middle of each point of the grid as .wav, and audio/plane.json."
    table, windows = run.load("plane.csv"), np.asarray(run.load("plane.npy"), dtype=np.float32)
    log_mel = middle(windows, config.audio, seconds=config.inversion.plane_seconds)
    seed, device = seed_for(config.seed, "plane"), pick_device(config.device)
    waves = invert_log_mel(log_mel, config, seed=seed, device=device)
    points = table[["valence", "arousal"]].to_numpy()
    names = [f"audio/plane/v{valence:+.2f}_a{arousal:+.2f}.wav" for valence, arousal in points]
    for old in run.folder.glob("audio/plane/*.wav"):  # of another grid
        old.unlink()
    saved = save_waves(run, config, dict(zip(names, waves, strict=True)))
    where = [{"valence": float(v), "arousal": float(a)} for v, a in points]
    record = [point | saved[name] for point, name in zip(where, names, strict=True)]
    run.save("audio/plane.json", {"points": record, "units": AUDIO_UNITS})
    return {"points": points, "log_mel": log_mel, "waves": keep_from_clipping(waves)[0]}


def point_label(valence: float, arousal: float) -> str:
    "Say where on the plane a point is."
    return f"valence {valence:+.2f}, arousal {arousal:+.2f}"


def plane_page(plane: dict, audio: AudioConfig) -> HTML:
    "Lay the grid out as a page to play on that needs no program behind it."
    side, cells = len(set(plane["points"][:, 0])), []
    clips = zip(plane["points"], plane["log_mel"], plane["waves"], strict=True)
    for point, log_mel, wave in clips:
        image = base64.b64encode(thumbnail(log_mel)).decode()
        sound = base64.b64encode(wav_bytes(wave, audio.sample_rate)).decode()
        # A narrow player of the browser loses its play button, so the cell itself is one. Where a
        # page is cleaned of handlers, this one is gone as well and the browser's players stay.
        label = point_label(*point)
        cells.append(
            f'<div><button type="button" onclick="{_play}" aria-label="play {label}">'
            f'<img alt="" src="data:image/png;base64,{image}">'
            f"\u25b6<br>V {point[0]:+.1f}<br>A {point[1]:+.1f}</button>"
            f'<audio controls onloadedmetadata="this.controls = false" aria-label="{label}" '
            f'src="data:audio/wav;base64,{sound}"></audio></div>'
        )
    columns = f"grid-template-columns: repeat({side}, minmax(0, 1fr))"
    return HTML(
        f"<style>{_plane_style}</style><p>Click to play, again to stop. "
        "Arousal (A) rises upwards, valence (V) to the right.</p>"
        f'<div class="plane" style="{columns}">{"".join(cells)}</div>'
    )


_play = (
    "const own = this.nextElementSibling, still = own.paused;"
    "this.closest('.plane').querySelectorAll('audio').forEach(x => x.pause());"
    "own.currentTime = 0; if (still) own.play();"
)
_plane_style = """
.plane { display: grid; gap: .25rem; max-width: 44rem; }
.plane button { width: 100%; padding: .2rem; font: inherit; font-size: .75rem; cursor: pointer; }
.plane img { width: 100%; aspect-ratio: 3 / 2; display: block; }
.plane audio { width: 100%; }
"""

# %%
grid = np.array([(v, a) for a in (0.8, -0.8) for v in (-0.8, 0.8)])
plane = {"points": grid, "log_mel": np.repeat(log_mel, 4, 0), "waves": [waves[0]] * 4}
page = plane_page(plane, audio)
test_eq(page.data.count("<audio controls"), 4)
page


# %% [markdown]
# In a notebook the plane answers: a click on a point of the grid, or two sliders that go to the
# nearest one, show its spectrogram and play it. All of it is there already, so nothing is computed.


# %%
#| export plane
class PlaneExplorer:
    "A valence-arousal plane to click on; `box` is the widget."

    def __init__(self, plane: dict, audio: AudioConfig):
        self.plane, self.audio = plane, audio
        side, around = len(set(plane["points"][:, 0])), {"continuous_update": False, "step": 0.05}
        self.buttons = [
            Button(tooltip=point_label(*point), layout=Layout(width="auto", height="2.4rem"))
            for point in plane["points"]
        ]
        self.valence = FloatSlider(min=-1, max=1, description="valence", **around)
        self.arousal = FloatSlider(min=-1, max=1, description="arousal", **around)
        self.label, self.picture, self.sound = Label(), empty_picture(), silent_player()
        for i, button in enumerate(self.buttons):
            button.on_click(lambda _, i=i: self.go(*self.plane["points"][i], play=True))
        for slider in (self.valence, self.arousal):
            slider.observe(self._slide, "value")
        columns = Layout(grid_template_columns=f"repeat({side}, 1fr)", max_width="20rem")
        hint = Label("arousal rises upwards, valence to the right")
        parts = [hint, GridBox(self.buttons, layout=columns), self.valence, self.arousal]
        self.box = VBox([*parts, self.label, self.picture, self.sound])
        self.moving, self.shown = False, -1
        self.go(0.0, 0.0, play=False)

    def go(self, valence: float, arousal: float, *, play: bool) -> None:
        "Show the point of the grid that is nearest; `play` answers a click."
        self.moving = True  # the sliders follow, and must not answer
        self.valence.value, self.arousal.value = float(valence), float(arousal)
        self.moving = False
        away = np.hypot(*(self.plane["points"] - [valence, arousal]).T)
        i = int(away.argmin())
        if self.shown >= 0:
            self.buttons[self.shown].button_style = ""
        self.shown, self.buttons[i].button_style = i, "primary"
        self.label.value = point_label(*self.plane["points"][i])
        self.picture.value = spectrogram_png(self.plane["log_mel"][i], self.audio)
        put_sound(self.sound, self.plane["waves"][i], self.audio.sample_rate, play=play)

    def _slide(self, _) -> None:
        if not self.moving:
            self.go(self.valence.value, self.arousal.value, play=True)


# %%
explorer = PlaneExplorer(plane, audio)
test_eq(explorer.sound.autoplay, False)  # silent until someone clicks
explorer.buttons[1].click()
test_eq(explorer.sound.autoplay, True)
test_eq((explorer.label.value, explorer.arousal.value), ("valence +0.80, arousal +0.80", 0.8))
explorer.arousal.value = -0.3
test_eq(explorer.shown, 3)
test_eq(explorer.sound.value[:4], b"RIFF")
explorer.box

# %% [markdown]
# ## On the run
#
# Listen for what changes from one to the next: pulse, loudness, brightness. Each emotion stands
# beside the real training song whose labels are nearest to what was asked. The real song was
# turned into a log-mel spectrogram and back to sound in the same way, and where one clip would be
# too loud for a file all are turned down alike: compare them fairly.

# %% tags=["parameters"]
run_folder = None  # a run's folder; None: a run at the smoke size, made on the spot

# %%
#| hide
from IPython.display import display

from musemo.opening import open_run

run, config = open_run(run_folder, before=8)

# %%
rendered = render_emotions(run, config)
emotions, pairs = rendered["record"]["emotions"], describe_pairs(rendered)
show_clips(run, config, pairs)

# %% [markdown]
# Read the columns from calm to aroused: a generator that listens gets louder and busier, as real
# songs do, and its tones and drums stand in a real song's proportion. Five sounds are few, and the
# nearest song may be far.

# %%
measured = emotion_table(rendered["record"])
display(measured.sort_values(("asked", "arousal")).round(2))
print(describe_order(measured))

# %% [markdown]
# What section 6 scored, to be heard: each trained generator at the calmest and at the most aroused
# emotion that was asked for, and the real song nearest to it. Does the better score sound better?

# %%
show_clips(run, config, render_generators(run, config))

# %% [markdown]
# The whole plane, from one noise: what differs between two cells is the emotion asked for.

# %%
plane = render_plane(run, config)
print(f"{len(plane['waves'])} clips of {len(plane['waves'][0]) / config.audio.sample_rate:.1f} s")
plane_page(plane, config.audio)

# %%
explorer = PlaneExplorer(plane, config.audio)
explorer.box

# %% [markdown]
# A real test song before and after the round trip: what is lost here, no generator can bring back.

# %%
trips = rendered["trips"]
after = wave_log_mel(trips["waves"], config.audio)
title = f"song {trips['song_ids'][0]}"
lost = f"after the round trip ({trips['errors'][0]:.2f} dB)"
figure = plot_in_pairs([(title, trips["log_mel"][0]), (lost, after[0])], config.audio)

# %%
sound, _ = keep_from_clipping(trips["waves"][0])
picture = spectrogram_png(after[0], config.audio)
seconds = config.inversion.page_seconds
lay_out([card(f"{title}, there and back", picture, sound, config.audio, seconds=seconds)])

# %%
short = [title.replace("valence", "V").replace("arousal", "A") for title, *_ in pairs]
emotions_figure = plot_in_pairs([(short[i], x) for i, (_, x, _) in enumerate(pairs)], config.audio)
run.headline(
    "08_audio",
    f"{len(emotions)} emotions; round trip of real songs "
    f"{rendered['record']['round_trip']['error']:.2f} dB (0: nothing lost)",
    emotions_figure,
)
plt.close(emotions_figure)
