"""From conditions to windows, from windows to sound."""

import json
import re

import librosa
import nbformat
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
from musemo.drawing import generate, load_generator, weight_settings
from musemo.gan import build_gan
from musemo.listening import (
    card,
    describe_order,
    describe_pairs,
    emotion_table,
    lay_out,
    middle,
    render_emotions,
    render_generators,
    sound_facts,
    spectrogram_png,
)
from musemo.plane import PlaneExplorer, plane_page, render_plane
from musemo.presets import make_config
from musemo.report import write_report
from musemo.spectrum import wave_log_mel
from musemo.synthesis import draw_conditions, draw_plane, synthesize

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
    return (level * wave / np.abs(wave).max()).astype(np.float32)


def test_no_worse_than_librosa():
    audio, log_mel = CONFIG.audio, wave_log_mel(melody()[None], CONFIG.audio)
    ours = invert_log_mel(log_mel, CONFIG, seed=0)
    theirs = librosas(log_mel)
    error = round_trip_error(log_mel, ours, audio)[0]
    assert error < round_trip_error(log_mel, theirs, audio)[0]
    assert error < 1.6


def test_loudness_is_kept_and_silence_is_silent():
    loud = melody(0.5)
    for wave in (loud, loud / 10):
        back = invert_log_mel(wave_log_mel(wave[None], CONFIG.audio), CONFIG, seed=0)[0]
        assert abs(20 * np.log10(back.std() / wave.std())) < 0.5
    silence = np.full((2, CONFIG.audio.n_mels, 50), -1.0, dtype=np.float16)
    assert np.abs(invert_log_mel(silence, CONFIG, seed=0)).max() == 0


def test_seeded_and_free_of_its_batch():
    log_mel = wave_log_mel(np.stack([melody(), melody(0.05)]), CONFIG.audio)
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


def librosas(log_mel):
    "Invert (1, M, T) the way librosa does, with as many rounds as the preset full."
    audio = CONFIG.audio
    wave = librosa.feature.inverse.mel_to_audio(
        to_power(log_mel, audio)[0].numpy(),
        sr=audio.sample_rate,
        n_fft=audio.n_fft,
        hop_length=audio.hop,
        n_iter=32,
        fmin=audio.f_min,
        fmax=audio.f_max,
    )
    return wave[None]


def test_ten_real_clips_survive(real_data):
    "The first 5 s of each; librosa on the two hardest. Whole clips: tests/bench/inversion.py."
    paths = sorted(real_data("deam").rglob("*.mp3"), key=lambda p: (len(p.stem), p.stem))[:10]
    assert len(paths) == 10
    errors, theirs = {}, {}
    for path in paths:
        wave, rate = soundfile.read(path, frames=5 * 44100, dtype="float32", always_2d=True)
        wave = librosa.resample(wave.mean(1), orig_sr=rate, target_sr=22050)
        log_mel, clip = wave_log_mel(wave[None], CONFIG.audio), path.stem
        back = invert_log_mel(log_mel, CONFIG, seed=0)
        errors[clip] = round_trip_error(log_mel, back, CONFIG.audio)[0]
        assert abs(20 * np.log10(back.std() / wave.std())) < 0.5, clip
        if clip in ("8", "13"):
            theirs[clip] = round_trip_error(log_mel, librosas(log_mel), CONFIG.audio)[0]
    assert max(errors.values()) <= 0.76, errors
    assert all(errors[clip] < error for clip, error in theirs.items()), (errors, theirs)


def write_run(folder, songs=4):
    "Write a run as sections 3 and 5 leave it, the generator untrained."
    run, config = Run(folder), CONFIG.model_copy(deep=True)
    frames = 80
    table = pd.DataFrame({"song_id": range(10, 10 + songs), "split": ["train", "test"] * 2})
    table["valence"], table["arousal"] = np.linspace(-0.5, 0.5, songs), 0.2
    table["frames"], table["row"] = frames, range(songs)
    table["valence_std"] = np.where(table["song_id"] == 10, 0.25, np.nan)  # one song has it
    run.save("songs.csv", table)
    log_mel = wave_log_mel(melody()[None], CONFIG.audio)[:, :, :frames]
    run.save("logmel.npy", np.repeat(log_mel, songs, 0).astype(np.float16))
    torch.manual_seed(0)
    pair = zip(("generator", "discriminator"), build_gan(config), strict=True)
    weights = {f"{k}.{n}": v for k, network in pair for n, v in network.state_dict().items()}
    run.save("gan.safetensors", {name: value.contiguous() for name, value in weights.items()})
    about = {"settings": weight_settings(config, "gan"), "units": {"settings": "as in config"}}
    run.save("gan_history.json", about)
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
    # Raters' spread is that of the song it was drawn around, and blank where there is none.
    assert set(saved["valence_std"][:count].dropna()) == {0.25}
    assert 0 < saved["valence_std"][:count].isna().sum() < count
    assert saved["arousal_std"].isna().all() and saved["valence_std"][count:].isna().all()
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


def cloud(songs=300):
    "Make slanted labels, crowded at one corner of the plane, (N, 2)."
    rng = np.random.default_rng(3)
    arousal = rng.normal(0.3, 0.35, songs)
    return np.clip(np.stack([0.6 * arousal + rng.normal(0.2, 0.3, songs), arousal], 1), -0.98, 0.98)


def test_conditions_lie_as_real_labels_do():
    labels = cloud()
    drawn, near = draw_conditions(labels, 20_000, bandwidth=1.0, seed=0)
    assert np.abs(drawn.mean(0) - labels.mean(0)).max() < 0.02
    assert np.abs(drawn.std(0) / labels.std(0) - 1).max() < 0.05
    assert abs(np.corrcoef(drawn.T)[0, 1] - np.corrcoef(labels.T)[0, 1]) < 0.05
    for column in (0, 1):
        parts = np.linspace(0.1, 0.9, 9)
        apart = np.quantile(drawn[:, column], parts) - np.quantile(labels[:, column], parts)
        assert np.abs(apart).max() < 0.06
    # Not the labels again, and each near its own.
    assert len(np.unique(drawn, axis=0)) > 19_900
    assert np.linalg.norm(drawn - labels[near], axis=1).mean() < labels.std(0).mean()
    # A draw from the square would fail here.
    square = np.random.default_rng(0).uniform(-1, 1, (20_000, 2))
    assert np.abs(square.std(0) / labels.std(0) - 1).max() > 0.2


def test_conditions_do_not_pile_up_at_the_border():
    labels = np.array([[0.97, 0.95], [0.9, 0.99], [-0.99, 0.9], [-0.9, -0.98]] * 20)
    drawn, _ = draw_conditions(labels, 20_000, bandwidth=2.0, seed=1)
    assert np.abs(drawn).max() <= 1
    assert (np.abs(drawn) >= 0.99999).mean() < 0.001
    # The strip at the border holds no more than the one beside it, but for chance.
    strip, beside = ((np.abs(drawn[:, 0]) > low).sum() for low in (0.98, 0.96))
    assert strip < 0.7 * beside


@pytest.mark.parametrize("labels", [[[0.2, 0.2]], [[0.2, 0.1], [0.4, 0.1]], [[0.1, 0.1]] * 5])
def test_conditions_from_few_labels(labels):
    drawn, _ = draw_conditions(np.array(labels), 50, bandwidth=1.0, seed=0)
    assert np.isfinite(drawn).all()
    assert np.abs(drawn[:, 1] - labels[0][1]).max() < 1e-6  # no spread there, none drawn


def test_the_plane_is_one_noise(tmp_path):
    run, config = write_run(tmp_path)
    table, side = draw_plane(run, config), config.synthesis.plane_side
    windows = run.load("plane.npy")
    assert windows.shape == (side**2, config.audio.n_mels, config.gan.frames)
    assert table["seed"].nunique() == 1
    assert list(table["valence"][:side]) == pytest.approx([-0.8, -0.4, 0, 0.4, 0.8])
    assert list(table["arousal"][::side]) == pytest.approx([0.8, 0.4, 0, -0.4, -0.8])
    asked = table.loc[[7], ["valence", "arousal"]].to_numpy()
    generator, seeds = load_generator(run, config, "gan"), [int(table["seed"][7])]
    again = generate(generator, asked, seeds=seeds, frames=config.gan.frames)[0]
    assert np.abs(again - windows[7]).max() < 2e-3


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
    pairs = describe_pairs(render_emotions(run, config))
    assert len(pairs) == 10 and pairs[1][0].startswith("real song 10: valence -0.50")
    facts = json.loads((tmp_path / "audio/audio.json").read_text())
    assert list(facts["emotions"]) == list(EMOTIONS)
    assert facts["emotions"]["sad_calm"]["file"] == "audio/sad_calm_v-0.8_a-0.6.wav"
    for described in (
        *facts["emotions"].values(),
        *(one["nearest_song"] for one in facts["emotions"].values()),
    ):
        wave, rate = soundfile.read(tmp_path / described["file"])
        assert rate == config.audio.sample_rate and np.abs(wave).max() < 1
        assert len(wave) == config.audio.hop * (config.gan.frames - 1)
    near = [one["nearest_song"] for one in facts["emotions"].values()]
    assert {song["song_id"] for song in near} <= {10, 12}  # training songs only
    assert near[0]["distance"] == pytest.approx(np.hypot(-0.8 + 0.5, -0.6 - 0.2))
    assert [song["song_id"] for song in facts["round_trip"]["songs"]] == [11, 13]
    assert 0 < facts["round_trip"]["error"] < 3
    # The real song is what the inversion makes of its own spectrogram, at its own level.
    heard, _ = soundfile.read(tmp_path / pairs[1][2], dtype="float32")
    assert round_trip_error(pairs[1][1][None], heard[None], config.audio)[0] < 2.5
    before = {path.name: path.read_bytes() for path in (tmp_path / "audio").iterdir()}
    render_emotions(run, config)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "audio").iterdir()}


def test_each_generator_can_be_heard_beside_a_real_song(tmp_path):
    run, config = write_run(tmp_path)
    config = config.model_copy(update={"generators": ("gan", "flow")})
    asked = pd.DataFrame({"valence": [0.1, -0.3, 0.9], "arousal": [0.2, 0.8, -0.7]})
    drawn = {}
    for name, level in (("gan", -0.2), ("flow", 0.1)):
        drawn[name] = np.full((3, config.audio.n_mels, config.gan.frames), level, np.float16)
        run.save(f"{name}_samples.npy", drawn[name])
        run.save(f"{name}_samples.csv", asked)
    pairs = render_generators(run, config)
    assert [title.partition(":")[0] for title, *_ in pairs] == [
        *("calm, gan", "calm, flow", "calm, real song 12"),
        *("aroused, gan", "aroused, flow", "aroused, real song 10"),
    ]
    assert pairs[1][0].endswith("valence +0.90, arousal -0.70")
    record = run.load("audio/generators.json")["windows"]
    assert [one["file"] for one in record] == [file for *_, file in pairs]
    for (_, log_mel, file), one in zip(pairs, record, strict=True):
        if one["drawn_by"] != "real":
            assert (log_mel == drawn[one["drawn_by"]][0]).all()
        wave, rate = soundfile.read(tmp_path / file)
        assert rate == config.audio.sample_rate and 0 < np.abs(wave).max() < 1
    assert record[1]["level"] > record[0]["level"] + 3  # what is drawn louder sounds louder


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


def test_a_card_plays_the_middle_of_a_long_clip():
    audio = CONFIG.audio
    wave = np.zeros(10 * audio.sample_rate)
    long = card("a <b>", b"png", wave, audio, seconds=2.0)
    short = card("a <b>", b"png", wave[: audio.sample_rate], audio, seconds=2.0)
    assert "a &lt;b&gt;, the middle 2 s" in long and "middle" not in short
    assert len(long) < 130_000  # 2 s of 16 bits in base 64: 118 kB
    assert lay_out([long, short]).data.count("<audio") == 2
    assert spectrogram_png(np.zeros((audio.n_mels, 64)), audio)[1:4] == b"PNG"
    whole = np.arange(300.0)[None, None]
    assert middle(whole, audio, seconds=100.0).shape == whole.shape
    part = middle(whole, audio, seconds=1.0)
    assert part.shape[-1] == 43 and part[0, 0, 0] == (300 - 43) // 2


def test_the_plane_sounds_and_answers(tmp_path):
    run, config = write_run(tmp_path)
    synthesis = config.synthesis.model_copy(update={"plane_side": 3})
    config = config.model_copy(update={"synthesis": synthesis})
    draw_plane(run, config)
    plane = render_plane(run, config)
    record = run.load("audio/plane.json")["points"]
    assert len(record) == 9 and record[0]["file"] == "audio/plane/v-0.80_a+0.80.wav"
    for facts in record:
        wave, rate = soundfile.read(tmp_path / facts["file"])
        assert rate == config.audio.sample_rate and 0 < np.abs(wave).max() < 1
    page = plane_page(plane, config.audio).data
    assert page.count("<audio controls") == page.count("<button") == 9
    # Cleaned of styles and handlers, as pages of strangers are, it has nine labelled players.
    cleaned = re.sub(r'<style>.*?</style>| on\w+="[^"]*"', "", page, flags=re.S)
    assert "onclick" not in cleaned and "onload" not in cleaned
    players = re.findall(r'<audio controls aria-label="([^"]+)" src="data:audio/wav', cleaned)
    assert len(set(players)) == 9 and "valence -0.80, arousal +0.80" in players
    assert 'aria-label="play valence -0.80, arousal +0.80"' in page
    assert "repeat(3, minmax(0, 1fr))" in page and "http" not in page

    explorer = PlaneExplorer(plane, config.audio)
    assert (
        explorer.label.value == "valence +0.00, arousal +0.00"
        and explorer.sound.value[:4] == b"RIFF"
    )
    assert explorer.sound.autoplay is False  # nothing sounds because a cell is shown
    seen, sounds = set(), []
    for i, button in enumerate(explorer.buttons):
        button.click()
        assert explorer.shown == i and explorer.label.value == button.tooltip
        assert [b.button_style for b in explorer.buttons].count("primary") == 1
        assert explorer.valence.value == pytest.approx(plane["points"][i][0])
        seen.add(explorer.sound.value)
        assert explorer.picture.value[1:4] == b"PNG"
    assert len(seen) == 9
    explorer.valence.value, explorer.arousal.value = -0.75, 1.0  # the keyboard's way
    assert explorer.shown == 0
    explorer.sound.observe(lambda change: sounds.append(change["new"]), "value")
    explorer.buttons[0].click()  # once more: emptied and filled, else nothing would be sent
    assert explorer.sound.autoplay is True and explorer.shown == 0
    assert [sound[:4] for sound in sounds] == [b"", b"RIFF"]


def test_sounds_are_counted_and_put_in_order(tmp_path):
    run, config = write_run(tmp_path)
    synthesize(run, config)
    table = emotion_table(render_emotions(run, config)["record"])
    assert list(table.index) == [*EMOTIONS] and table.notna().all().all()
    # The real song beside each is the same melody: six notes in two seconds, tones not drums.
    assert table[("onsets (a second)", "real")].between(1.5, 5).all()
    assert (table[("tones / drums (dB)", "real")] > 3).all()
    sentence = describe_order(table)
    assert "asked is sad calm, content relaxed, neutral, happy energetic, angry tense" in sentence
    quiet = sound_facts(np.zeros(22050, dtype=np.float32), config.audio)
    assert quiet == {"onsets": 0.0, "harmonic": None}


def test_a_report_leaves_widgets_out(tmp_path):
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "VBox()"}
    output = nbformat.v4.new_output("display_data", widget)
    cells = [nbformat.v4.new_markdown_cell(text) for text in ("# Title", "## On the run")]
    cells.append(nbformat.v4.new_code_cell("box", outputs=[output]))
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"widgets": {"state": {}}})
    (tmp_path / "reports").mkdir()
    nbformat.write(notebook, tmp_path / "reports/a.ipynb")
    page = write_report(Run(tmp_path), "a").read_text()
    assert "widget-view" not in page and "VBox()" not in page and "unpkg" not in page
