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
    round_trip_error,
    to_power,
)
from musemo.config import EMOTIONS
from musemo.core import MusemoError, Run
from musemo.drawing import generate
from musemo.gan import build_gan
from musemo.listening import PlaneExplorer, plane_page, render_emotions, render_plane
from musemo.presets import make_config
from musemo.spectrum import wave_log_mel
from musemo.synthesis import draw_conditions, draw_plane, load_generator, synthesize

SMALL = {"inversion.iterations": 32, "gan.channels": 16, "gan.narrowest": 8, "generators": ["gan"]}
CONFIG = make_config("smoke", SMALL)


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
    assert error < round_trip_error(log_mel, theirs[None], audio)[0]
    assert error < 1.6


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
    one_nan = np.zeros((2, bands, 40))
    one_nan[1, 3, 5] = np.nan
    for log_mel, message in (
        (np.zeros((1, 7, 40)), f"shape \\(1, 7, 40\\): needed is \\(B, {bands}, T\\)"),
        (np.zeros((bands, 40)), r"log_mel\[None\]"),
        (np.zeros((0, bands, 40)), "none of them 0"),
        (np.zeros((1, bands, 0)), "none of them 0"),
        (one_nan, "1 values of the log-mel are NaN"),
        (np.full((1, bands, 40), np.inf), "infinite"),
        (np.zeros((1, bands, 2)), "2 frames: shorter than one Fourier window; give at least 5"),
    ):
        with pytest.raises(MusemoError, match=message):
            invert_log_mel(log_mel, CONFIG, seed=0)


def test_nothing_clips():
    wave, gain = keep_from_clipping(np.array([0.3, -1.4, 0.2]))
    assert np.abs(wave).max() == pytest.approx(0.99)
    assert gain == pytest.approx(20 * np.log10(0.99 / 1.4))
    quiet = np.array([0.01, -0.02])
    assert keep_from_clipping(quiet) == (pytest.approx(quiet), 0.0)


@pytest.mark.parametrize("clip", ["8", "10", "4"])  # the two hardest of the ten, and an easy one
def test_real_clips_survive(real_data, clip):
    path = real_data("deam") / f"DEAM_audio/MEMD_audio/{clip}.mp3"
    wave, rate = soundfile.read(path, frames=4 * 44100, dtype="float32", always_2d=True)
    wave = torch.from_numpy(librosa.resample(wave.mean(1), orig_sr=rate, target_sr=22050))
    log_mel = wave_log_mel(wave[None], CONFIG.audio)
    back = invert_log_mel(log_mel, CONFIG, seed=0)
    assert round_trip_error(log_mel, back, CONFIG.audio)[0] <= 0.76
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
    asked = saved.loc[[3], ["valence", "arousal"]].to_numpy()
    generator, frames = load_generator(run, config, "gan"), config.dataset.window_frames
    again = generate(generator, asked, seeds=[int(saved["seed"][3])], frames=frames)
    assert np.abs(again[0] - windows[3]).max() < 2e-3
    before = (tmp_path / "synthetic.npy").read_bytes()
    synthesize(run, config)
    assert (tmp_path / "synthetic.npy").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("tmp")]


def test_more_songs_leave_the_first_ones_alone(tmp_path):
    run, config = write_run(tmp_path)
    labels = run.load("songs.csv")[["valence", "arousal"]].to_numpy()
    few, many = (draw_conditions(labels, n, bandwidth=1.0, seed=5)[0] for n in (3, 40))
    assert np.array_equal(few, many[:3])
    generator, options = load_generator(run, config, "gan"), {"seeds": [*range(7)], "frames": 64}
    drawn = generate(generator, many[:7], batch_size=7, **options)
    for size in (1, 3):
        again = generate(generator, many[:7], batch_size=size, **options)
        assert np.abs(drawn - again).max() < 2e-3
    assert np.abs(drawn[0] - drawn[1]).max() > 0.01


def test_synthesis_refuses(tmp_path):
    run, config = write_run(tmp_path)
    generator = load_generator(run, config, "gan")
    for condition in ([[0.0, 1.2]], [[np.nan, 0.0]], [[5.0, 3.0]]):
        with pytest.raises(MusemoError, match=r"\[-1, 1\]"):
            generate(generator, condition, seeds=[0], frames=64)
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


def test_conditions_follow_the_density_of_real_labels():
    rng = np.random.default_rng(0)
    labels = np.clip(rng.multivariate_normal([0.2, -0.1], [[0.1, 0.06], [0.06, 0.12]], 300), -1, 1)
    drawn, near = draw_conditions(labels, 20000, bandwidth=1.0, seed=0)
    assert np.allclose(drawn.mean(0), labels.mean(0), atol=0.03)
    assert np.allclose(np.cov(drawn.T), np.cov(labels.T), atol=0.015)
    assert np.abs(drawn).max() < 1  # folded back, not piled up
    distance = np.abs(drawn - labels[near]).mean()
    assert 0 < distance < np.abs(drawn - labels[near[::-1]]).mean()


def test_the_spread_of_raters_goes_with_the_label(tmp_path):
    run, config = write_run(tmp_path)
    songs = run.load("songs.csv")
    songs["valence_std"], songs["arousal_std"] = 0.1 * songs["song_id"], 0.2
    run.save("songs.csv", songs)
    table = synthesize(run, config)
    train = songs[songs["split"] == "train"]
    assert set(table["valence_std"].dropna()) <= set(train["valence_std"])
    assert table["valence_std"][: config.synthesis.songs].notna().all()
    assert table["valence_std"][config.synthesis.songs :].isna().all()  # nobody rated an emotion


def test_the_plane_answers(tmp_path):
    run, config = write_run(tmp_path)
    synthesize(run, config)
    table = draw_plane(run, config)
    assert len(table) == 25 and table["seed"].nunique() == 1
    plane = render_plane(run, config)
    assert len(list((tmp_path / "audio/plane").glob("*.wav"))) == 25
    assert plane_page(plane, config.audio).data.count("<audio") == 25
    explorer, heard = PlaneExplorer(plane, config.audio), []
    for button, point in zip(explorer.buttons, plane["points"], strict=True):
        button.click()
        assert (explorer.valence.value, explorer.arousal.value) == pytest.approx(tuple(point))
        heard.append(explorer.sound.value)
    assert len(set(heard)) > 1 and heard[0][:4] == b"RIFF"
    explorer.valence.value = 0.75  # a slider goes to the nearest point
    assert explorer.shown == 24
