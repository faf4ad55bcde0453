"""The judge: exact distances, and a score that cannot be fooled."""

import json
import time
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import soundfile
import soxr
import torch
import transformers
from prdc import compute_prdc
from scipy import linalg
from scipy.ndimage import uniform_filter
from torchmetrics.image.kid import maximum_mean_discrepancy

from musemo.config import AudioConfig
from musemo.core import MusemoError, Run, cut_windows
from musemo.demo import compose_demo
from musemo.distance import (
    frechet_distance,
    frechet_infinity,
    kernel_distance,
    measure_variety,
    nearest_training,
    noise_like,
    ratio_to_real,
)
from musemo.drawing import build_generator, generate
from musemo.embeddings import audio_embedding, torch_embedding
from musemo.gan_quality import judge_generators
from musemo.judge import make_judge, score_interval
from musemo.obedience import correlations, fit_reader
from musemo.presets import make_config
from musemo.quality_plots import plot_averages, plot_parts
from musemo.quality_record import compare_generators, explain_quality
from musemo.score_parts import SCORE_PARTS, place_part
from musemo.spectrum import log_mel_of
from musemo.vit import build_vit, describe_vit


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


def test_frechet_of_whole_clips_is_quick_and_small():
    a = np.random.default_rng(0).standard_normal((200, 128 * 1292), dtype=np.float32)
    b = a + np.float32(0.5)
    tracemalloc.start()
    begun = time.process_time()  # processor seconds: what else the machine does is not counted
    assert frechet_distance(a, b) == pytest.approx(0.25 * 128 * 1292, rel=1e-4)
    assert time.process_time() - begun < 5
    assert tracemalloc.get_traced_memory()[1] + a.nbytes + b.nbytes < 1e9
    tracemalloc.stop()


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_extrapolated_frechet_is_nearer_to_the_truth(shift):
    rng, truth = np.random.default_rng(1), 16 * shift**2  # equal covariances: the shift alone
    raw, infinite = [], []
    for _ in range(200):
        a, b = rng.normal(size=(200, 16)), rng.normal(size=(200, 16)) + shift
        raw.append(frechet_distance(a, b))
        infinite.append(frechet_infinity(a, b, rng=rng, draws=1))
    assert abs(np.mean(infinite) - truth) < 0.1
    assert abs(np.mean(infinite) - truth) < abs(np.mean(raw) - truth) / 3


def clustered(rng, songs=40, width=8):
    "Draw ten rows a song that resemble each other."
    song = np.repeat(np.arange(songs), 10)
    rows = rng.normal(size=(songs, width))[song] + 0.5 * rng.normal(size=(len(song), width))
    return rows, song


def test_windows_of_a_song_are_no_independent_samples():
    raw, endless, kernel, naive = [], [], [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        (a, song), (b, _) = clustered(rng), clustered(rng)
        raw.append(frechet_distance(a, b))
        endless.append(frechet_infinity(a, b, rng=rng, songs=(song, song), sizes=6, draws=2))
        kernel.append(kernel_distance(a, b, songs=(song, song)))
        naive.append(kernel_distance(a, b))
    assert np.mean(raw) > 0.5  # one distribution: the truth is 0
    assert abs(np.mean(endless)) < 0.15
    assert abs(np.mean(kernel)) < 0.004 < np.mean(naive)


def test_too_few_songs_give_no_extrapolation():
    rng = np.random.default_rng(0)
    (a, song), (b, _) = clustered(rng, songs=23), clustered(rng, songs=23)
    assert frechet_infinity(a, b, rng=rng, songs=(song, song)) is None  # 24 for 8 columns
    wide = rng.normal(size=(2, 200, 512))
    assert frechet_infinity(*wide, rng=rng) is None


@pytest.mark.parametrize("n, m", [(30, 30), (50, 50)])
def test_kernel_distance_is_torchmetrics(n, m):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(n, 5)), rng.normal(size=(m, 5)) + 0.4
    pairs = ((b[:, None] - b) ** 2).sum(2)
    width = np.median(pairs[np.triu_indices(m, 1)])

    def kernel(x, y):
        return torch.from_numpy(np.exp(-((x[:, None] - y) ** 2).sum(2) / width))

    expected = maximum_mean_discrepancy(kernel(a, a), kernel(a, b), kernel(b, b))
    assert kernel_distance(a, b) == pytest.approx(float(expected), rel=1e-6)


GOOD = np.random.default_rng(0).normal(size=(30, 4))
EACH = np.arange(30)


@pytest.mark.parametrize(
    "bad, message",
    [
        (np.where(GOOD > 1, np.nan, GOOD), "of 30 rows hold NaN"),
        (np.where(GOOD > 1, np.inf, GOOD), "of 30 rows hold NaN or infinity"),
        (GOOD[:0], "n >="),
        (GOOD[0], "needed is"),
        (GOOD[:, :0], "needed is"),
        (GOOD[:, :3], "columns"),
    ],
)
def test_rows_that_give_no_distance(bad, message):
    rng, own = np.random.default_rng(0), (np.arange(len(bad)), EACH)
    for distance in (
        frechet_distance,
        kernel_distance,
        nearest_training,
        lambda a, b: frechet_infinity(a, b, rng=rng),
        lambda a, b: measure_variety(a, b, own),
    ):
        for pair in ((bad, GOOD), (GOOD, bad)):
            with pytest.raises(MusemoError, match=message):
                distance(*pair)


def test_one_row_and_other_widths_give_no_distance():
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(MusemoError, match="n >= 2"):
            distance(GOOD, GOOD[:1])
        with pytest.raises(MusemoError, match="columns"):
            distance(np.zeros((3, 8192)), np.zeros((3, 9000)))
    with pytest.raises(MusemoError, match="of one song"):
        kernel_distance(GOOD, GOOD, songs=(EACH * 0, EACH))


def test_a_ratio_to_nothing_is_one_to_the_training_songs():
    row = {"real": {"frechet": 0.0}, "training": {"frechet": 2.0}, "gan": {"frechet": 6.0}}
    assert ratio_to_real(row)["gan"]["frechet"] == 3
    assert ratio_to_real(row | {"training": {"frechet": 0.0}})["gan"]["frechet"] is None


def test_kernel_distance_is_the_definition():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 3)), rng.normal(size=(6, 3)) + 1
    far = [((x - y) ** 2).sum() for i, x in enumerate(b) for y in b[i + 1 :]]

    def mean(x, y, same):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not (same and i == j)]
        return np.mean([np.exp(-((x[i] - y[j]) ** 2).sum() / np.median(far)) for i, j in pairs])

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_variety_is_that_of_its_authors(k):
    rng = np.random.default_rng(k)
    real, a = rng.normal(size=(80, 4)), 0.7 * rng.normal(size=(60, 4)) + 0.3
    found = measure_variety(a, real, (np.arange(60), np.arange(80)), neighbours=k)
    for name, value in compute_prdc(real, a, nearest_k=k).items():
        assert found[name] == pytest.approx(value), name


def test_a_songs_own_windows_are_no_neighbours():
    x, one = np.arange(8.0)[:, None], np.zeros(2)
    pair = np.array([[0.0], [0.0]])
    each = np.arange(8)
    found = measure_variety(pair, x, (np.arange(2), each), neighbours=1)
    assert found["coverage"] == 2 / 8 and found["diversity"] == 1 / 2
    found = measure_variety(pair, x, (np.arange(2), each // 4), neighbours=1)
    assert found["coverage"] == 3 / 8  # the point 0 is no farther from 0, 1, 2 than 4 is
    with pytest.raises(MusemoError, match="one song"):
        measure_variety(pair, x, (one, each), neighbours=1)


def test_parts_lie_between_floor_and_ceiling():
    assert sum(weight for _, weight in SCORE_PARTS.values()) == pytest.approx(1)
    for name in SCORE_PARTS:
        share = SCORE_PARTS[name][0] in ("variety", "obedience")
        floor, ceiling = (0.1, 0.8) if share else (5.0, 0.2)
        assert place_part(name, ceiling, floor, ceiling) == pytest.approx(1)
        assert place_part(name, floor, floor, ceiling) == pytest.approx(0.01)


def decode(folder, count, seconds=12):
    "Decode the first songs of a data set as section 3 does: ten windows of each, and its label."
    audio, windows, labels = AudioConfig(), [], []
    table = pd.concat(pd.read_csv(x, skipinitialspace=True) for x in folder.rglob("static*.csv"))
    rated = table.set_index("song_id")[["valence_mean", "arousal_mean"]]
    for path in sorted(folder.glob("DEAM_audio/MEMD_audio/*.mp3"), key=lambda p: int(p.stem)):
        if len(windows) < count:
            wave, rate = soundfile.read(path, frames=seconds * 44100, always_2d=True)
            song = log_mel_of(soxr.resample(wave.mean(1), rate, audio.sample_rate), audio)
            if song.shape[1] >= 128:
                windows.append(cut_windows(song[None], [song.shape[1]], 128, per_song=10)[0])
                labels.append((rated.loc[int(path.stem)].to_numpy() - 5) / 4)
    return np.stack(windows), np.stack(labels)


def split_songs(songs, seed=0):
    "Part songs into training, unseen and held out, each (windows, songs, labels), 150 at most."
    windows, labels = songs
    order, out = np.random.default_rng(seed).permutation(len(windows)), []
    cuts = (int(0.45 * len(order)), int(0.72 * len(order)))
    for kept, most in zip(np.split(order, cuts), (None, 150, 150), strict=True):
        mixed = np.random.default_rng(1).permutation(10 * len(kept))[:most]
        song = np.repeat(kept, 10)[mixed]
        out.append((windows[kept].reshape(-1, 128, 128)[mixed], song, labels[song]))
    return out


def judge_of(train, held, seed=0):
    return make_judge(train[:2], held[:2], labels=(train[2], held[2]), seed=seed)


@pytest.fixture(scope="session", params=["demo", "vgmidi"])
def songs(request, tmp_path_factory):
    "Real music, decoded once: windows of each song, and its label."
    if request.param == "vgmidi":
        return decode(request.getfixturevalue("real_data")("vgmidi"), 72)
    folder = tmp_path_factory.mktemp("quality") / "demo"
    return decode(compose_demo(folder, songs=60, seconds=12), 60)


@pytest.fixture(scope="session")
def music(songs):
    "One split: windows, songs and labels to train, that nobody has seen, and held out."
    return split_songs(songs)


@pytest.fixture(scope="session")
def tried(music):
    "A judge, unseen real windows, and training windows, 150 of each."
    train, fresh, held = music
    return judge_of(train, held), fresh[0], train[0]


@pytest.fixture(scope="session")
def untrained():
    "Windows that generators of the demo's size draw before any training."
    config, drawn = make_config("demo", {"flow.draw_steps": 2}), {}
    asked = np.random.default_rng(0).uniform(-1, 1, (150, 2))
    for name in ("gan", "residual", "flow"):
        torch.manual_seed(0)
        options = {"seeds": list(range(150)), "frames": 128}
        drawn[name] = generate(build_generator(config, name), asked, **options)
    return drawn


def attempts_of(split, seed):
    "Score real music and what is none, on one split, with the most favourable conditions."
    train, (real, _, labels), held = split
    judge, n, rng = judge_of(train, held), len(real), np.random.default_rng(seed)
    own = rng.choice(np.flatnonzero(train[1] == train[1][0]), n)
    rows = {"one window": np.zeros(n, dtype=int), "one song": own}
    for draw in range(3):
        rows[f"twenty {draw}"] = rng.choice(rng.permutation(len(train[0]))[:20], n)
    sets = {name: (train[0][row], train[2][row]) for name, row in rows.items()}
    for name, windows in {
        "real": real,
        "noise": noise_like(real, rng),
        "silence": np.full_like(real, -1),
        "smeared": uniform_filter(real, (0, 5, 5)),
        "smeared in time": uniform_filter(real, (0, 0, 5)),
        "backwards": real[:, :, ::-1],
        "bands mixed": real[:, rng.permutation(128)],
    }.items():
        sets[name] = windows, labels
    return {name: judge.score(*both) for name, both in sets.items()}


def test_the_score_is_hard_to_fool_on_any_split(songs):
    found = pd.DataFrame([attempts_of(split_songs(songs, seed), seed) for seed in range(5)])
    told = found.describe().round(1).to_string()
    low, middle, high = found.min(), found.median(), found.max()
    assert middle["real"] >= 95 and low["real"] >= 90, told
    assert high[["noise", "silence"]].max() <= 15, told
    assert high[["one window", "one song"]].max() < 35, told
    assert high[[f"twenty {draw}" for draw in range(3)]].max() < 50, told
    assert high["smeared"] < 50 and middle["smeared in time"] < 50, told
    assert high["backwards"] < 65 and high["bands mixed"] < 50, told


def test_who_ignores_the_conditions_is_found_out(songs):
    "Where real songs show a correlation, conditions dealt out anew cost at least a tenth."
    asked = 0
    for seed in range(5):
        train, (real, _, labels), held = split_songs(songs, seed)
        judge, rng = judge_of(train, held), np.random.default_rng(seed)
        assert set(judge.allowed) <= {"valence", "arousal"}
        assert all(0.2 <= r <= 1 for r in judge.allowed.values())
        dealt = np.median([judge.score(real, rng.permutation(labels)) for _ in range(3)])
        if judge.allowed:
            asked += 1
            assert dealt < 0.9 * judge.score(real, labels)
        else:
            assert dealt == judge.score(real)
    assert asked >= 2


def test_the_interval_narrows_with_more_songs(songs):
    def width(kept):
        rows = np.isin(held[1], np.unique(held[1])[:kept])
        judge = make_judge(train[:2], (held[0][rows], held[1][rows]), seed=0)
        x = judge.describe(softened[: rows.sum()])
        low, high = score_interval(judge, x, draws=60, seed=0)
        assert low <= judge.score_described(x) <= high
        return high - low

    train, (real, *_), held = split_songs(songs)
    softened = uniform_filter(real, (0, 1, 3))  # away from the ends of the scale
    assert 0 < width(16) < width(4)
    few = np.isin(held[1], np.unique(held[1])[:3])
    judge = make_judge(train[:2], (held[0][few], held[1][few]), seed=0)
    assert score_interval(judge, judge.describe(real[: few.sum()]), draws=20, seed=0) is None


def test_a_blur_under_a_fine_grid_is_no_texture(tried):
    judge, real, _ = tried
    sign = np.sign(np.sin(np.pi / 2 * (np.arange(128) + 0.5)))
    assert judge.score(np.clip(uniform_filter(real, (0, 8, 8)) + np.outer(sign, sign), -1, 1)) < 50


@pytest.mark.parametrize("name", ["gan", "residual", "flow"])
def test_an_untrained_generator_scores_like_noise(tried, untrained, name):
    assert tried[0].score(untrained[name]) <= 15


def test_copies_score_like_music_and_are_exposed(tried):
    judge, real, train = tried
    copies, strangers = (
        np.median(nearest_training(judge.describe(x).features, judge.train.features)[0])
        for x in (train[:150], real)
    )
    assert judge.score(train[:150]) > 80  # like music they are
    assert copies < 0.01 * strangers  # new they are not


def test_one_odd_song_does_not_blind_the_judge(music):
    (train, train_songs, _), (real, *_), (held, songs, _) = music
    held = held.copy()
    held[songs == songs[0]] = -1  # a song that was silent all along
    train = np.where((train_songs == train_songs[0])[:, None, None], np.float32(-1), train)
    judge = make_judge((train, train_songs), (held, songs), seed=0)
    assert judge.ceiling["frechet"] < judge.floor["frechet"] / 2
    assert judge.score(real) > 75  # a silent song among sixteen is not forgotten
    assert judge.score(uniform_filter(real, (0, 5, 5))) < 50
    assert judge.score(noise_like(real, np.random.default_rng(2))) <= 15


def test_sets_that_cannot_be_judged(music):
    (train, train_songs, _), _, (held, songs, labels) = music
    judge = make_judge((train[:60], train_songs[:60]), (held[:20], songs[:20]), seed=0)
    for windows, message in (
        (held[:5], "sets of 20"),
        (held[:0], "sets of 20"),
        (held[:20, :, :64], "one shape"),
        (np.full_like(held[:20], np.nan), "20 of 20 windows hold NaN"),
    ):
        with pytest.raises(MusemoError, match=message):
            judge.score(windows)
    for windows, message in (
        (held[:0], "n >= 2"),
        (held[:1], "n >= 2"),
        (held[0], "needed is"),
        (np.where(held[:9] > 0, np.inf, held[:9]), "hold NaN or infinity"),
        (held[:9, :, :64], "one shape"),
    ):
        with pytest.raises(MusemoError, match=message):
            judge.describe(windows)
    with pytest.raises(MusemoError, match=r"conditions of shape \(20,\)"):
        judge.score(held[:20], labels[:20, 0])
    with pytest.raises(MusemoError, match="1 song held out"):
        make_judge((train[:60], train_songs[:60]), (held[:20], np.zeros(20)), seed=0)
    with pytest.raises(MusemoError, match="1 song to train"):
        make_judge((train[:60], np.zeros(60)), (held[:20], songs[:20]), seed=0)


def test_a_reader_reads_only_what_is_there():
    rng = np.random.default_rng(0)
    labels = rng.uniform(-1, 1, size=(300, 2))
    features = np.stack([rng.normal(size=300), 2 * labels[:, 1] + 1], 1)
    found = correlations(fit_reader(features[:200], labels[:200])(features[200:]), labels[200:])
    assert found["arousal"] > 0.99 and abs(found["valence"]) < 0.3


def write_run(folder, parts=(6, 2, 2), samples=16):
    "Write a run as sections 3 and 5 leave it: decaying tones, louder with arousal."
    run, rng = Run(folder), np.random.default_rng(0)
    config = make_config(
        "smoke", {"gan.samples": samples, "audio.n_mels": 32, "generators": ["gan"]}
    )
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
    assert quality["songs"] == parts[1] + parts[2]
    counted = set(quality["components"])
    assert {"frechet", "kernel", "texture_kernel", "coverage"} <= counted <= set(SCORE_PARTS)
    left = set(SCORE_PARTS) - counted - {"obedience"}  # of which so few songs say nothing
    assert "obedience" not in counted and left == set(quality["beside"]) & set(SCORE_PARTS)
    assert all(name in explain_quality(quality).partition("Left out")[2] for name in left)
    assert sum(x["weight"] for x in quality["components"].values()) == pytest.approx(1)
    assert quality["obedience"]["valence"] is None  # one condition for all
    assert quality["obedience_interval"]["valence"] is None
    assert quality["frechet_infinity"] is None and quality["chosen_by"] is None
    assert set(quality["nearest_songs"]) <= set(range(6))  # the training songs
    assert min(quality["attempts"].values()) >= 0
    told = explain_quality(quality)
    assert "say little" in told and "Obedience does not count" in told
    if sum(parts[1:]) < 4:
        assert quality["interval"] is None and "no interval" in told
    else:
        assert quality["interval"][0] <= quality["score"] <= quality["interval"][1]
    table = compare_generators(quality, compared.times)
    assert table.loc["Frechet distance, endless songs", "gan"] == "-"
    assert plot_parts(quality, config).axes
    assert compared.generated["gan"].shape == compared.real.shape == compared.nearest.shape
    judge_generators(run, config)
    assert (tmp_path / "gan_quality.json").read_text() == text


def test_one_validation_song_cannot_rank_two_generators(tmp_path):
    run, config = write_run(tmp_path, (6, 1, 1))
    drawn = np.float32(run.load("gan_samples.npy"))
    run.save("flow_samples.npy", noise_like(drawn, np.random.default_rng(1)))
    run.save("flow_samples.csv", run.load("gan_samples.csv"))
    config = config.model_copy(update={"generators": ("flow", "gan")})
    quality = judge_generators(run, config).quality
    assert quality["best"] == "gan" and quality["chosen_by"] == "held"
    assert "one validation song" in explain_quality(quality)
    run, config = write_run(tmp_path / "more", (6, 2, 1))
    run.save("flow_samples.npy", drawn)
    run.save("flow_samples.csv", run.load("gan_samples.csv"))
    config = config.model_copy(update={"generators": ("flow", "gan")})
    assert judge_generators(run, config).quality["chosen_by"] == "val"


def test_three_generators_stand_side_by_side_with_their_times(tmp_path):
    run, config = write_run(tmp_path, (6, 2, 2))
    rng = np.random.default_rng(1)
    for name, windows in (
        ("residual", run.load("gan_samples.npy")),
        ("flow", noise_like(np.float32(run.load("gan_samples.npy")), rng)),
    ):
        run.save(f"{name}_samples.npy", windows)
        run.save(f"{name}_samples.csv", run.load("gan_samples.csv"))
    times = {"step": 0.5, "drawing": 0.25, "steps": 40, "units": {"step": "s"}}
    run.save("flow_times.json", times)
    names = ["gan", "residual", "flow"]
    config = config.model_copy(update={"generators": tuple(names)})
    compared = judge_generators(run, config)
    quality, table = compared.quality, compare_generators(compared.quality, compared.times)
    assert sorted(quality["generators"]) == sorted(names)
    assert quality["best"] != "flow"  # noise
    assert table.loc["training (s)", "flow"] == "20"
    assert table.loc["drawing (s a window)", "flow"] == "0.25"
    assert table.loc["training (s)", "gan"] == "-"  # section 5 did not say
    axes = plot_parts(quality, config).axes[0]
    assert len({bar[0].get_facecolor() for bar in axes.containers}) == 3
    drawn = {name: np.float32(run.load(f"{name}_samples.npy")) for name in names}
    pictures = plot_averages({"real": drawn["gan"]} | drawn, config.audio)
    assert len({line.get_color() for line in pictures.axes[0].lines}) == 4


@pytest.mark.parametrize(
    "samples, message",
    [
        (np.full((16, 32, 64), np.nan), "16 of 16 windows hold NaN"),
        (np.zeros((0, 32, 64)), "n >= 2"),
        (np.zeros((1, 32, 64)), "n >= 2"),
        (np.zeros((16, 32, 60)), "one shape"),
    ],
)
def test_samples_that_cannot_be_judged_stop_the_stage(tmp_path, samples, message):
    run, config = write_run(tmp_path)
    run.save("gan_samples.npy", samples.astype(np.float16))
    run.save(
        "gan_samples.csv", pd.DataFrame(np.zeros((len(samples), 2)), columns=["valence", "arousal"])
    )
    with pytest.raises(MusemoError, match=message):
        judge_generators(run, config)
    assert not run.has("gan_quality.json")


def test_a_torch_model_judges_and_must_give_finite_features():
    windows = np.random.default_rng(0).uniform(-1, 1, (60, 32, 64)).astype(np.float32)
    songs = np.arange(60)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32 * 64, 6))
    parts = (windows[:40], songs[:40]), (windows[40:], songs[40:])
    judge = make_judge(*parts, seed=0, embed=torch_embedding(network))
    assert judge.train.features.shape == (40, 6) and 0 <= judge.score(windows[:20]) <= 100
    with pytest.raises(MusemoError, match="all finite"):
        make_judge(*parts, seed=0, embed=lambda x: np.full((len(x), 3), np.nan))


def small_ears(folder):
    "Write a tiny audio model of transformers, with random weights, to a folder."
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 8, "max_length": 64, "num_mel_bins": 16}
    torch.manual_seed(0)
    transformers.ASTModel(transformers.ASTConfig(**sizes)).save_pretrained(folder)
    bins = {"num_mel_bins": 16, "max_length": 64}
    transformers.ASTFeatureExtractor(**bins).save_pretrained(folder)
    return folder


def test_an_audio_model_from_a_folder_judges(tmp_path):
    folder = small_ears(tmp_path / "ears")

    def to_wave(windows):
        return np.repeat(windows.mean(1), 200, axis=1)

    embed = audio_embedding(str(folder), to_wave, sample_rate=22050)
    found = embed(np.random.default_rng(0).uniform(-1, 1, (3, 32, 64)).astype(np.float32))
    assert found.shape == (3, 8) and np.isfinite(found).all()
    (folder / "model.safetensors").unlink()
    with pytest.raises(MusemoError, match="quality.embedding=statistics"):
        audio_embedding(str(folder), to_wave, sample_rate=22050)


def embedded(config, value):
    quality = config.quality.model_copy(update={"embedding": str(value)})
    return config.model_copy(update={"quality": quality})


def test_a_folder_judges_a_run(tmp_path):
    run, config = write_run(tmp_path / "run", (6, 2, 2))
    folder = small_ears(tmp_path / "ears")
    quality = judge_generators(run, embedded(config, folder)).quality
    assert quality["embedding"] == str(folder) and 0 <= quality["score"] <= 100
    assert quality["attempts"] is None  # each would have to be made audible


def test_any_function_judges_a_run(tmp_path):
    run, config = write_run(tmp_path, (6, 2, 2))

    def band_levels(windows):
        return windows.mean(2)

    quality = judge_generators(run, config, embed=band_levels).quality
    assert quality["embedding"] == "band_levels" and 0 <= quality["score"] <= 100
    assert "as band_levels see them" in explain_quality(quality)


@pytest.mark.parametrize("side, patch", [(0, 8), (32, 16)])
@pytest.mark.parametrize("window", [64, 128, 32])
def test_the_runs_own_vit_judges_it(tmp_path, side, patch, window):
    run, config = write_run(tmp_path, (6, 2, 2))
    config = embedded(config, "vit")
    with pytest.raises(MusemoError, match="run sections 1-11 .* --from 6"):
        judge_generators(run, config)
    sizes = {"dataset.image_size": side, "vit.patch": patch, "dataset.window_frames": window}
    recipe = {"audio.n_mels": 32, "generators": ["gan"], "training.recipe": "spec"}
    trained = make_config("smoke", recipe | sizes | {"quality.embedding": "vit"})
    torch.manual_seed(0)
    model = build_vit(trained)
    run.save("vit.safetensors", model.state_dict())
    run.save("vit_history.json", {"model": describe_vit(model), "units": {"model": "-"}})
    quality = judge_generators(run, trained).quality
    assert quality["embedding"] == "vit" and 0 <= quality["score"] <= 100
    assert quality["attempts"]
