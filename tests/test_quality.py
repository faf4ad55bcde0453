"""The judge: exact distances, and a score that cannot be fooled."""

import json
import time

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from scipy import linalg
from scipy.ndimage import uniform_filter

from musemo.audio import wave_log_mel
from musemo.config import AudioConfig
from musemo.core import MusemoError, Run, cut_windows
from musemo.distance import (
    SCORE_PARTS,
    correlations,
    coverage,
    fit_reader,
    frechet_distance,
    kernel_distance,
    noise_like,
    place_part,
    spacing,
)
from musemo.gan_quality import explain_quality, judge_generators, make_judge, score_interval
from musemo.presets import make_config


def textbook(a, b):
    "Compute the Frechet distance with the covariances' matrix square root."
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(cov_a @ cov_b).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)


@pytest.mark.parametrize("n, m", [(200, 150), (100, 100), (900, 70)])
def test_frechet_is_the_textbooks(n, m):
    rng = np.random.default_rng(n)
    mix = rng.normal(size=(64, 64)) / 8
    a, b = rng.normal(size=(n, 64)) @ mix + 0.3, rng.normal(size=(m, 64))
    assert frechet_distance(a, b) == pytest.approx(textbook(a, b), rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, b, chunk=50) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_frechet_is_never_negative_and_sees_a_shift():
    a = np.random.default_rng(0).normal(size=(30, 500)).astype(np.float32)
    assert 0 <= frechet_distance(a, a[::-1]) < 1e-6
    assert frechet_distance(a, a + 2) == pytest.approx(4 * 500, rel=1e-5)


def test_frechet_of_whole_clips_is_quick():
    a = np.random.default_rng(0).standard_normal((200, 128 * 1292), dtype=np.float32)
    begun = time.process_time()
    assert frechet_distance(a, a + np.float32(0.5)) == pytest.approx(0.25 * 128 * 1292, rel=1e-4)
    assert time.process_time() - begun < 10


def test_kernel_distance_is_the_definition():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 3)), rng.normal(size=(6, 3)) + 1
    far = [((x - y) ** 2).sum() for i, x in enumerate(b) for y in b[i + 1 :]]

    def mean(x, y, same):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not (same and i == j)]
        return np.mean([np.exp(-((x[i] - y[j]) ** 2).sum() / np.median(far)) for i, j in pairs])

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_variety_measures():
    x = np.arange(8.0)[:, None]
    assert coverage(x[:1], x, np.arange(8), neighbours=1) == pytest.approx(2 / 8)
    # Radii reach to other songs: a song's own windows are no neighbours.
    assert coverage(x[:1], x, np.arange(8) // 4, neighbours=1) == pytest.approx(3 / 8)
    assert spacing(x) == 1
    assert spacing(np.repeat(x[:2], 4, 0)) == 0


def test_parts_lie_between_floor_and_ceiling():
    assert sum(weight for _, weight in SCORE_PARTS.values()) == pytest.approx(1)
    for name in SCORE_PARTS:
        floor, ceiling = (0.0, 0.8) if name in ("coverage", "spacing") else (5.0, 0.2)
        assert place_part(name, ceiling, floor, ceiling) == pytest.approx(1)
        assert place_part(name, floor, floor, ceiling) == pytest.approx(0.01)


@pytest.fixture(scope="session")
def piano(real_data):
    "Windows of 72 piano pieces: 46 to train, 26 held out."
    audio, count, size = AudioConfig(), 72, 10 * 22050
    folder = real_data("vgmidi") / "DEAM_audio/MEMD_audio"
    waves = []
    for path in sorted(folder.glob("*.mp3"), key=lambda p: int(p.stem))[:count]:
        wave, rate = soundfile.read(path, frames=11 * 44100, dtype="float32", always_2d=True)
        step = rate // audio.sample_rate
        waves.append(wave[: size * step].mean(1).reshape(-1, step).mean(1))
    log_mel = wave_log_mel(torch.from_numpy(np.stack(waves)), audio)
    width = log_mel.shape[2]
    order = np.random.default_rng(0).permutation(count)
    parts = []
    for rows in (order[:46], order[46:]):
        windows, songs = cut_windows(log_mel[rows], np.full(len(rows), width), 128, per_song=8)
        mixed = np.random.default_rng(1).permutation(len(windows))
        parts.append((windows[mixed], songs[mixed]))
    return parts


def test_the_score_is_hard_to_fool_on_real_music(piano):
    (train, _), (held, songs) = piano
    n, rng = 150, np.random.default_rng(2)
    judge = make_judge(train, held[:n], songs[:n], seed=0)
    real = train[-n:]
    noise = noise_like(real, rng)
    twenty = train[:20][rng.integers(0, 20, n)]
    assert judge.score(real) >= 95
    assert judge.score(noise) <= 15
    assert judge.score(np.full_like(real, -1)) <= 15
    assert judge.score(np.repeat(train[:1], n, axis=0)) < 35
    assert judge.score(twenty) < 50
    assert judge.score(uniform_filter(real, (0, 5, 5))) < 50
    assert judge.score(real[:, :, ::-1]) < judge.score(real) - 5  # decays became swells
    low, high = score_interval(judge, real, draws=10, seed=0)
    assert low <= judge.score(real) <= high


def test_sets_that_cannot_be_judged(piano):
    (train, _), (held, songs) = piano
    judge = make_judge(train[:60], held[:20], songs[:20], seed=0)
    for windows, message in (
        (held[:5], "sets of 20"),
        (held[:0], "sets of 20"),
        (held[:20, :, :64], "one shape"),
        (np.full_like(held[:20], np.nan), "20 of 20 windows hold NaN"),
    ):
        with pytest.raises(MusemoError, match=message):
            judge.score(windows)
    with pytest.raises(MusemoError, match="1 song held out"):
        make_judge(train[:60], held[:20], np.zeros(20), seed=0)


def test_a_reader_reads_only_what_is_there():
    rng = np.random.default_rng(0)
    labels = rng.uniform(-1, 1, size=(300, 2))
    features = np.stack([rng.normal(size=300), 2 * labels[:, 1] + 1], 1)
    found = correlations(fit_reader(features[:200], labels[:200])(features[200:]), labels[200:])
    assert found["arousal"] > 0.99 and abs(found["valence"]) < 0.3


def write_run(folder, parts=(6, 2, 2), samples=16):
    "Write a run as sections 3 and 5 leave it: decaying tones, louder with arousal."
    run, rng = Run(folder), np.random.default_rng(0)
    config = make_config("smoke", {"gan.samples": samples, "audio.n_mels": 32, "flow.steps": 0})
    splits = np.repeat(["train", "val", "test"], parts)
    labels = rng.uniform(-1, 1, size=(len(splits), 2))
    log_mel = np.full((len(splits), 32, 128), -1.0, dtype=np.float16)
    for i, (_, arousal) in enumerate(labels):
        for start in range(0, 128, 8):
            decay = (1.2 + 0.6 * arousal) * np.exp(-np.arange(128 - start) / 12)
            log_mel[i, rng.integers(0, 32), start:] += decay.astype(np.float16)
    songs = pd.DataFrame({"song_id": np.arange(len(splits)), "split": splits})
    songs[["valence", "arousal"]] = labels
    songs["frames"], songs["row"] = 128, np.arange(len(splits))
    run.save("songs.csv", songs)
    run.save("logmel.npy", np.clip(log_mel, -1, 1))
    windows, _ = cut_windows(log_mel[:6], [128] * 6, 64, per_song=-(-samples // 6), rng=rng)
    run.save("gan_samples.npy", np.clip(windows[:samples], -1, 1).astype(np.float16))
    run.save(
        "gan_samples.csv",
        pd.DataFrame(labels[:1].repeat(samples, 0)[:, :2]).set_axis(["valence", "arousal"], axis=1),
    )
    return run, config


@pytest.mark.parametrize("parts", [(6, 2, 2), (6, 1, 1)])
def test_ten_songs_are_judged_and_the_page_says_how_little(tmp_path, parts):
    run, config = write_run(tmp_path, parts)
    compared = judge_generators(run, config)
    text = (tmp_path / "gan_quality.json").read_text()
    quality = json.loads(text)
    assert next(iter(quality)) == "score" and 0 <= quality["score"] <= 100
    assert quality["interval"][0] <= quality["score"] <= quality["interval"][1]
    assert quality["songs"] == parts[1] + parts[2]
    assert set(quality["components"]) == set(SCORE_PARTS)
    assert quality["obedience"]["valence"] is None  # one condition for all
    assert "say little" in explain_quality(quality)
    assert compared.generated["gan"].shape == compared.real.shape == compared.nearest.shape
    judge_generators(run, config)
    assert (tmp_path / "gan_quality.json").read_text() == text
