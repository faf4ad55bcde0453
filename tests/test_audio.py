"""From conditions to windows, from windows to sound."""

import json

import librosa
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from musemo.audio import (
    invert_log_mel,
    keep_from_clipping,
    render_emotions,
    round_trip_error,
    to_power,
    wave_log_mel,
)
from musemo.config import EMOTIONS
from musemo.core import MusemoError, Run, seed_for
from musemo.gan import build_gan
from musemo.presets import make_config
from musemo.synthesis import draw_conditions, generate, load_generator, synthesize

CONFIG = make_config("smoke", {"inversion.iterations": 32, "gan.channels": 16, "flow.steps": 0})


def melody(level=0.2, seconds=2.0):
    "Make a short tune of decaying, slightly noisy tones, (S,)."
    time = np.arange(int(seconds * CONFIG.audio.sample_rate)) / CONFIG.audio.sample_rate
    wave = 0.002 * np.random.default_rng(0).normal(size=len(time))
    for i, pitch in enumerate((220, 330, 262, 440, 523, 392)):
        since = np.maximum(time - 0.3 * i, 0)
        for partial in (1, 2, 3, 5):
            wave += np.sin(2 * np.pi * partial * pitch * since) * np.exp(-3 * since) / partial
    return torch.from_numpy((level * wave / np.abs(wave).max()).astype(np.float32))


def test_no_worse_than_librosa():
    audio, log_mel = CONFIG.audio, wave_log_mel(melody()[None], CONFIG.audio)
    ours = invert_log_mel(log_mel, CONFIG, seed=0)
    theirs = librosa.feature.inverse.mel_to_audio(
        to_power(log_mel, audio)[0].numpy(),
        sr=audio.sample_rate,
        n_fft=audio.n_fft,
        hop_length=audio.hop,
        n_iter=32,
        fmin=audio.f_min,
        fmax=audio.f_max,
    )
    error = round_trip_error(log_mel, ours, audio)[0]
    assert error <= round_trip_error(log_mel, theirs[None], audio)[0] + 0.1
    assert error < 2


def test_loudness_is_kept_and_silence_is_silent():
    loud = melody(0.5)
    for wave in (loud, loud / 10):
        back = invert_log_mel(wave_log_mel(wave[None], CONFIG.audio), CONFIG, seed=0)[0]
        assert abs(20 * np.log10(back.std() / wave.std().item())) < 0.5
    silence = np.full((2, CONFIG.audio.n_mels, 50), -1.0, dtype=np.float16)
    assert np.abs(invert_log_mel(silence, CONFIG, seed=0)).max() == 0


def test_seeded_and_free_of_its_batch():
    log_mel = wave_log_mel(torch.stack([melody(), melody(0.05)]), CONFIG.audio)
    both = invert_log_mel(log_mel, CONFIG, seed=1)
    assert np.array_equal(both, invert_log_mel(log_mel, CONFIG, seed=1))
    alone = invert_log_mel(log_mel[1:], CONFIG, seed=1)[0]
    assert np.abs(both[1] - alone).max() < 0.02 * np.abs(alone).max()
    assert not np.array_equal(both, invert_log_mel(log_mel, CONFIG, seed=2))


def test_what_has_no_sound():
    bands = CONFIG.audio.n_mels
    for log_mel, message in (
        (np.zeros((1, 7, 40)), f"needed is \\(B, {bands}, T\\)"),
        (np.full((1, bands, 40), np.nan), "NaN"),
        (np.zeros((1, bands, 2)), "shorter than one Fourier window"),
    ):
        with pytest.raises(MusemoError, match=message):
            invert_log_mel(log_mel, CONFIG, seed=0)


def test_nothing_clips():
    wave, gain = keep_from_clipping(np.array([0.3, -1.4, 0.2]))
    assert np.abs(wave).max() == pytest.approx(0.99)
    assert gain == pytest.approx(20 * np.log10(0.99 / 1.4))
    quiet = np.array([0.01, -0.02])
    assert keep_from_clipping(quiet) == (pytest.approx(quiet), 0.0)


def test_real_clips_survive(real_data):
    path = sorted((real_data("deam") / "DEAM_audio/MEMD_audio").glob("*.mp3"))[0]
    wave, rate = soundfile.read(path, frames=5 * 44100, dtype="float32", always_2d=True)
    wave = torch.from_numpy(librosa.resample(wave.mean(1), orig_sr=rate, target_sr=22050))
    log_mel = wave_log_mel(wave[None], CONFIG.audio)
    back = invert_log_mel(log_mel, CONFIG, seed=0)
    assert round_trip_error(log_mel, back, CONFIG.audio)[0] < 0.9
    assert abs(20 * np.log10(back.std() / wave.std().item())) < 0.3


def write_run(folder, songs=4):
    "Write a run as sections 3 and 5 leave it, the generator untrained."
    run, config = Run(folder), CONFIG.model_copy(deep=True)
    frames = 80
    table = pd.DataFrame({"song_id": range(10, 10 + songs), "split": ["train", "test"] * 2})
    table["valence"], table["arousal"] = np.linspace(-0.5, 0.5, songs), 0.2
    table["frames"], table["row"] = frames, range(songs)
    run.save("songs.csv", table)
    log_mel = wave_log_mel(melody()[None], CONFIG.audio)[:, :, :frames]
    run.save("logmel.npy", np.repeat(log_mel, songs, 0).astype(np.float16))
    torch.manual_seed(0)
    pair = zip(("generator", "discriminator"), build_gan(config), strict=True)
    weights = {f"{k}.{n}": v for k, network in pair for n, v in network.state_dict().items()}
    run.save("gan.safetensors", {name: value.contiguous() for name, value in weights.items()})
    return run, config


def test_synthesis_leaves_songs_and_five_emotions(tmp_path):
    run, config = write_run(tmp_path)
    table = synthesize(run, config)
    windows, saved = run.load("synthetic.npy"), run.load("synthetic.csv")
    count = config.synthesis.songs
    assert windows.shape == (count + 5, config.audio.n_mels, config.gan.frames)
    assert windows.dtype == np.float16 and np.abs(windows).max() <= 1
    assert saved["emotion"][:count].isna().all() and list(saved["emotion"][count:]) == [*EMOTIONS]
    assert np.allclose(saved[["valence", "arousal"]][count:], [*EMOTIONS.values()])
    assert table["seed"].is_unique
    # A row can be made again from its seed and its condition alone.
    noise = torch.randn(
        1, config.gan.latent, generator=torch.Generator().manual_seed(int(saved["seed"][3]))
    )
    asked = torch.tensor(saved.loc[[3], ["valence", "arousal"]].to_numpy(np.float32))
    with torch.inference_mode():
        again = load_generator(run, config, "gan").eval()(noise, asked)[0, 0].numpy()
    assert np.abs(again - windows[3]).max() < 2e-3
    before = (tmp_path / "synthetic.npy").read_bytes()
    synthesize(run, config)
    assert (tmp_path / "synthetic.npy").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("tmp")]


def test_more_songs_leave_the_first_ones_alone(tmp_path):
    run, config = write_run(tmp_path)
    labels = run.load("songs.csv")[["valence", "arousal"]].to_numpy()
    few, many = (draw_conditions(labels, n, jitter=0.1, seed=5) for n in (3, 40))
    assert np.array_equal(few, many[:3])
    generator = load_generator(run, config, "gan")
    drawn = generate(generator, many[:7], seed=5, batch_size=7)
    for size in (1, 3):
        assert np.abs(drawn - generate(generator, many[:7], seed=5, batch_size=size)).max() < 2e-3
    assert np.abs(drawn[:3] - generate(generator, few, seed=5)).max() < 2e-3
    assert seed_for(5, 0) != seed_for(5, 1) and np.abs(drawn[0] - drawn[1]).max() > 0.01


def test_synthesis_refuses(tmp_path):
    run, config = write_run(tmp_path)
    generator = load_generator(run, config, "gan")
    for condition in ([[0.0, 1.2]], [[np.nan, 0.0]], [[5.0, 3.0]]):
        with pytest.raises(MusemoError, match=r"\[-1, 1\]"):
            generate(generator, condition, seed=0)
    with pytest.raises(MusemoError, match="another configuration"):
        load_generator(run, make_config("smoke", {"gan.channels": 32}), "gan")


def test_five_emotions_are_rendered(tmp_path):
    run, config = write_run(tmp_path)
    synthesize(run, config)
    render_emotions(run, config)
    facts = json.loads((tmp_path / "audio/audio.json").read_text())
    assert list(facts["emotions"]) == list(EMOTIONS)
    assert facts["emotions"]["sad_calm"]["file"] == "audio/sad_calm_v-0.8_a-0.6.wav"
    for described in facts["emotions"].values():
        wave, rate = soundfile.read(tmp_path / described["file"])
        assert rate == config.audio.sample_rate and np.abs(wave).max() < 1
        assert len(wave) == config.audio.hop * (config.gan.frames - 1)
        assert described["nearest_song"]["song_id"] in (10, 12)  # training songs only
    assert [song["song_id"] for song in facts["round_trip"]["songs"]] == [11, 13]
    assert 0 < facts["round_trip"]["error"] < 3
    before = {path.name: path.read_bytes() for path in (tmp_path / "audio").iterdir()}
    render_emotions(run, config)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "audio").iterdir()}
