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
import pandas as pd
import torch

from musemo.config import AudioConfig, Config, InversionConfig
from musemo.core import (
    MusemoError,
    Run,
    cut_windows,
    load_part,
    pick_device,
    plot_log_mel,
    progress,
    seed_for,
    subplots,
)

# %%
#| hide
import time

from fastcore.test import test_close, test_eq, test_fail

from musemo.core import COLORS


# %% [markdown]
# ## There
#
# The way there is section 3's, repeated for waveforms in memory: power, not amplitude, through
# Slaney's filters, in decibels re 1, on the fixed scale of the suite.


# %%
#| export
def mel_bank(audio: AudioConfig) -> torch.Tensor:
    "Make librosa's mel filters, (M, F)."
    return torch.from_numpy(librosa.filters.mel(**audio.mel))


def short_time(
    wave: torch.Tensor,  # (B, S)
    audio: AudioConfig,
) -> torch.Tensor:  # (B, F, T) complex
    "Take the centred short-time Fourier transform with a Hann window."
    window = torch.hann_window(audio.n_fft, device=wave.device)
    return torch.stft(
        wave, audio.n_fft, audio.hop, window=window, pad_mode="constant", return_complex=True
    )


def wave_log_mel(
    wave: torch.Tensor,  # (B, S) in [-1, 1]
    audio: AudioConfig,
) -> np.ndarray:  # (B, M, T) in [-1, 1]
    "Make the log-mel spectrogram of waveforms in memory."
    power = mel_bank(audio).to(wave.device) @ short_time(wave, audio).abs() ** 2
    return audio.to_unit(10 * torch.log10(power.clamp(min=1e-10)).cpu().numpy())


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
log_mel = wave_log_mel(clip[None], audio)
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
    "Turn the suite's scale into power; raises MusemoError for NaN or another number of bands."
    log_mel = np.asarray(log_mel, dtype=np.float32)
    if log_mel.ndim != 3 or log_mel.shape[1] != audio.n_mels:
        raise MusemoError(f"log-mel of shape {log_mel.shape}: needed is (B, {audio.n_mels}, T)")
    if not np.isfinite(log_mel).all():
        raise MusemoError("the log-mel spectrogram holds NaN or infinity: it has no sound")
    power = 10 ** (audio.to_db(np.clip(log_mel, -1, 1)) / 10)
    return torch.from_numpy(np.where(log_mel <= -1, 0, power).astype(np.float32))


# %%
test_close(to_power(np.full((1, 32, 2), 0.2), audio), np.ones((1, 32, 2)), eps=1e-5)
test_eq(to_power(np.full((1, 32, 2), -1.0), audio).max(), 0)
test_fail(lambda: to_power(np.zeros((1, 8, 4)), audio), contains="needed is (B, 32, T)")
test_fail(lambda: to_power(np.full((1, 32, 4), np.nan), audio), contains="NaN")


# %% [markdown]
# Many spectra have the same mel bands; we want one that is nowhere negative. Multiplicative
# updates (Richardson 1972, Lucy 1974; the Kullback-Leibler form of Lee & Seung 2001) never leave
# the non-negative numbers, and weigh quiet bands by ratio, as ears do. Least squares would spend
# its effort on the loudest bands.


# %%
#| export
def invert_mel(
    power: torch.Tensor,  # (B, M, T) mel power
    bank: torch.Tensor,  # (M, F) filters
    *,
    iterations: int,
) -> torch.Tensor:  # (B, F, T) power, not negative
    "Find a non-negative spectrum with these mel bands by multiplicative updates."
    reach = bank.sum(0)[:, None]  # (F, 1); 0 where no filter looks
    share = bank.T / reach.clamp(min=1e-12)  # (F, M); rows add up to 1
    spectrum = share @ (power / bank.sum(1)[:, None].clamp(min=1e-12))
    for _ in range(iterations):
        spectrum = spectrum * (share @ (power / (bank @ spectrum).clamp(min=1e-20)))
        # Bins on their way to nothing get there: subnormal numbers are a hundred times slower.
        spectrum = torch.nn.functional.threshold(spectrum, 1e-16, 0.0)
    return spectrum


# %% [markdown]
# Updates bring the bands of the found spectrum to the given ones; sixty leave some hundredths
# of a decibel.

# %%
power, bank = to_power(log_mel, audio), mel_bank(audio)
heard = power > 1e-4
rounds = [0, 5, 15, 60]
errors = []
for count in rounds:
    found = invert_mel(power, bank, iterations=count)
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


# %%
#| export
def griffin_lim(
    magnitude: torch.Tensor,  # (B, F, T) amplitude
    audio: AudioConfig,
    inversion: InversionConfig,
    *,
    seed: int,
) -> torch.Tensor:  # (B, hop * (T - 1))
    "Find waves with this magnitude by fast Griffin-Lim from seeded random phases."
    window = torch.hann_window(audio.n_fft, device=magnitude.device)
    back = {"n_fft": audio.n_fft, "hop_length": audio.hop, "window": window}
    # One draw a clip: a clip sounds the same alone and in a batch.
    phase = torch.rand(magnitude.shape[1:], generator=torch.Generator().manual_seed(seed))
    phase = torch.polar(torch.ones_like(phase), 2 * torch.pi * phase).to(magnitude.device)
    pull, before = inversion.momentum / (1 + inversion.momentum), 0.0
    for _ in range(inversion.iterations):
        rebuilt = short_time(torch.istft(magnitude * phase, **back), audio)
        phase = rebuilt - pull * before
        phase, before = phase / phase.abs().clamp(min=1e-16), rebuilt
    return torch.istft(magnitude * phase, **back)


def invert_log_mel(
    log_mel: np.ndarray,  # (B, M, T) in [-1, 1]
    config: Config,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> np.ndarray:  # (B, hop * (T - 1)) float32; may exceed 1 where the music was loud
    "Turn log-mel spectrograms into sound; raises MusemoError for NaN or too few frames."
    power = to_power(log_mel, config.audio).to(device)
    if power.shape[2] < config.audio.n_fft // config.audio.hop + 1:
        raise MusemoError(f"{power.shape[2]} frames: shorter than one Fourier window")
    bank = mel_bank(config.audio).to(device)
    magnitude = invert_mel(power, bank, iterations=config.inversion.mel_iterations).sqrt()
    return griffin_lim(magnitude, config.audio, config.inversion, seed=seed).cpu().numpy()


# %% [markdown]
# The round trip's error is the mean difference of two spectrograms on the clipped scale. librosa
# does the same with least squares and its own Griffin-Lim; ours may not be worse.


# %%
#| export
def round_trip_error(
    log_mel: np.ndarray,  # (B, M, T) in [-1, 1]
    waves: np.ndarray,  # (B, S) made from it
    audio: AudioConfig,
) -> np.ndarray:  # (B,) dB
    "Measure the mean absolute difference between asked and sounding log-mel, in decibels."
    heard = wave_log_mel(torch.from_numpy(np.asarray(waves, dtype=np.float32)), audio)
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
assert ours < librosas + 0.1
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
    wave: np.ndarray,  # (S,)
    *,
    peak: float = 0.99,  # full scale is 1
) -> tuple[np.ndarray, float]:  # the wave, and the gain in dB (0: untouched)
    "Turn a wave down where its peak exceeds full scale."
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
    figure, axes = subplots(len(pairs) // 2, 2, size=(4.6, 2.1), squeeze=False)
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
back = wave_log_mel(torch.from_numpy(waves), audio)
figure = plot_in_pairs([("asked", log_mel[0]), ("sounding", back[0])], audio)


# %% [markdown]
# ## The stage
#
# The five named emotions become .wav files named after what was asked. Some test songs go there
# and back, so that one can tell what the inversion loses from what the generator lacks.


# %%
#| export
def round_trips(
    run: Run,
    config: Config,
    *,
    most: int = 3,  # songs
) -> dict:  # song_ids, log_mel (B, M, T) at gan.frames, waves, errors in dB
    "Send the middle of some test songs there and back."
    songs, log_mel = load_part(run, "test")
    log_mel, _ = cut_windows(log_mel[:most], songs["frames"].iloc[:most], config.gan.frames)
    device = pick_device(config.device)
    waves = invert_log_mel(log_mel, config, seed=seed_for(config.seed, "audio"), device=device)
    errors = round_trip_error(log_mel, waves, config.audio)
    ids = [int(i) for i in songs["song_id"].iloc[:most]]
    return {"song_ids": ids, "log_mel": log_mel, "waves": waves, "errors": errors}


def wav_name(emotion: str, valence: float, arousal: float) -> str:
    "Name a file after what was asked: audio/sad_calm_v-0.8_a-0.6.wav."
    return f"audio/{emotion}_v{valence:.1f}_a{arousal:.1f}.wav"


def render_emotion(run: Run, config: Config, asked: pd.Series, wave: np.ndarray) -> dict:
    "Write one emotion's .wav and describe it, with the nearest real training song."
    songs, _ = load_part(run, "train")
    away = np.hypot(songs["valence"] - asked["valence"], songs["arousal"] - asked["arousal"])
    near = songs.loc[away.idxmin()]
    wave, gain = keep_from_clipping(wave)
    name = wav_name(asked["emotion"], asked["valence"], asked["arousal"])
    run.save(name, (wave, config.audio.sample_rate))
    return {
        "file": name,
        "valence": float(asked["valence"]),
        "arousal": float(asked["arousal"]),
        "level": level_dbfs(wave),
        "gain": gain,
        "nearest_song": {
            "song_id": int(near["song_id"]),
            "valence": float(near["valence"]),
            "arousal": float(near["arousal"]),
            "distance": float(away.min()),
        },
    }


def pair_with_real(run: Run, config: Config, rendered: dict) -> list[tuple[str, np.ndarray]]:
    "Put the middle of the nearest real training song beside each emotion, for plot_in_pairs."
    songs, log_mel = load_part(run, "train")
    pairs = []
    for (name, facts), drawn in zip(
        rendered["record"]["emotions"].items(), rendered["log_mel"], strict=True
    ):
        near = facts["nearest_song"]
        row = np.flatnonzero(songs["song_id"] == near["song_id"])[:1]
        real, _ = cut_windows(log_mel[row], songs["frames"].to_numpy()[row], config.gan.frames)
        label = f"real song {near['song_id']}: {near['valence']:+.2f}, {near['arousal']:+.2f}"
        pairs += [(name.replace("_", ", "), drawn), (label, real[0])]
    return pairs


# %%
#| export
_audio_units = {
    "valence": "[-1, 1]",
    "arousal": "[-1, 1]",
    "level": "dB re full scale, None: silence",
    "gain": "dB, below 0 where the peak had exceeded full scale",
    "distance": "[-1, 1], on the valence-arousal plane",
    "error": "dB, mean absolute difference of log-mel after the round trip",
}


def render_emotions(run: Run, config: Config) -> dict:  # record, log_mel, waves, trips
    "Write the named emotions as .wav and audio/audio.json; raises MusemoError if none is there."
    table = run.load("synthetic.csv")
    rows = np.flatnonzero(table["emotion"].notna())
    if not len(rows):
        raise MusemoError("synthetic.csv has no named emotion: run section 7 again (--from 7)")
    log_mel = np.asarray(run.load("synthetic.npy")[rows], dtype=np.float32)
    seed, device = seed_for(config.seed, "audio"), pick_device(config.device)
    waves = invert_log_mel(log_mel, config, seed=seed, device=device)
    errors, trips = round_trip_error(log_mel, waves, config.audio), round_trips(run, config)
    record = {"emotions": {}, "units": _audio_units}
    for row, wave, error in zip(progress(rows, desc="emotions"), waves, errors, strict=True):
        asked = table.iloc[row]
        described = render_emotion(run, config, asked, wave)
        record["emotions"][asked["emotion"]] = described | {"error": float(error)}
    per_song = zip(trips["song_ids"], trips["errors"], strict=True)
    record["round_trip"] = {"songs": [{"song_id": i, "error": float(e)} for i, e in per_song]}
    record["round_trip"]["error"] = float(trips["errors"].mean())
    run.save("audio/audio.json", record)
    return {"record": record, "log_mel": log_mel, "waves": waves, "trips": trips}


# %% [markdown]
# ## On the run
#
# Listen for what changes from one to the next: pulse, loudness, brightness. Each picture has the
# real training song beside it whose labels are nearest to what was asked.

# %% tags=["parameters"]
run_folder = None  # a run's folder; None: a run at the smoke size, made on the spot

# %%
#| hide
from IPython.display import display
from musemo.core import player
from musemo.pipeline import open_run

run, config = open_run(run_folder, before=8)

# %%
rendered = render_emotions(run, config)
emotions = rendered["record"]["emotions"]
pd.DataFrame(emotions).T.drop(columns=["file", "nearest_song"]).astype(float).round(2)

# %%
for name, facts in emotions.items():
    wave, sample_rate = run.load(facts["file"])
    asked_for = f"valence {facts['valence']:+.1f}, arousal {facts['arousal']:+.1f}"
    display(player(wave, sample_rate, label=f"{name.replace('_', ', ')}: {asked_for}"))

# %%
emotions_figure = plot_in_pairs(pair_with_real(run, config, rendered), config.audio)

# %% [markdown]
# A real test song before and after the round trip: what is lost here, no generator can bring back.

# %%
trips = rendered["trips"]
after = wave_log_mel(torch.from_numpy(trips["waves"]), config.audio)
title = f"song {trips['song_ids'][0]}"
lost = f"after the round trip ({trips['errors'][0]:.2f} dB)"
figure = plot_in_pairs([(title, trips["log_mel"][0]), (lost, after[0])], config.audio)

# %%
display(
    player(
        keep_from_clipping(trips["waves"][0])[0],
        config.audio.sample_rate,
        label=f"{title}, there and back",
    )
)
run.headline(
    "08_audio",
    f"{len(emotions)} emotions; round trip of real songs "
    f"{rendered['record']['round_trip']['error']:.2f} dB (0: nothing lost)",
    emotions_figure,
)
