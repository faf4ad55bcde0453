"""Anybody's song: what EmotionModel answers, what it refuses and why, and how it travels."""

import json
import os
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from musemo.batches import answer_batches
from musemo.cli import app
from musemo.core import MusemoError, Run
from musemo.data import decode
from musemo.evaluation import evaluate_vit, predict_parts
from musemo.hearing import cover_song, hear
from musemo.prediction import EmotionModel, export_model, open_model
from musemo.presets import config_record, make_config
from musemo.readout import Trees
from musemo.spectrum import log_mel_of
from musemo.vit import build_vit, describe_vit
from tests.test_evaluation import SMALL, make_run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run, config = make_run(tmp_path_factory.mktemp("run"), train=8, val=4, test=6)
    evaluate_vit(run, config)
    return run


@pytest.fixture(scope="module")
def model(finished):
    return EmotionModel.from_run(finished)


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    return export_model(EmotionModel.from_run(finished), tmp_path_factory.mktemp("out") / "mine")


def music(seconds, rate, channels=1, seed=0):
    "Make chords over noise, fading in and out."
    time = np.arange(int(seconds * rate)) / rate
    wave = sum(np.sin(2 * np.pi * f * time) for f in (220, 277.2, 329.6)) * 0.1
    wave = wave + np.random.default_rng(seed).normal(0, 0.02, len(time))
    wave *= np.hanning(len(time)) ** 0.2
    return np.tile(wave[:, None], channels).squeeze()


def cli(*arguments):
    "Run musemo in a fresh process."
    command = [sys.executable, "-m", "musemo", *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "MUSEMO_QUIET": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_any_format_is_predicted_on_both_scales(model, tmp_path, suffix):
    path = tmp_path / f"song.{suffix}"
    soundfile.write(path, music(5, 16000, channels=2), 16000)
    said = model.predict(path)
    for axis in ("valence", "arousal"):
        assert -1 <= said[axis] <= 1 and said[f"{axis}_interval"] is None
        assert said[f"{axis}_1_9"] == pytest.approx(5 + 4 * said[axis])
    assert said["seconds"] == pytest.approx(5, abs=0.3)
    assert "damaged" not in said["note"] and "cut off" not in said["note"]


def test_a_test_song_gets_the_answer_that_is_judged(finished, model):
    songs, log_mel = finished.load("songs.csv"), finished.load("logmel.npy")
    rows = songs.loc[songs["split"] == "test", "row"]
    starts = cover_song(200, model.window, least=1)
    windows = [(log_mel[row], starts, np.full(len(starts), i)) for i, row in enumerate(rows)]
    config = make_config("smoke", SMALL | {"dataset.windows_per_song": len(starts)})
    judged = predict_parts(finished, config).query("split == 'test'")
    expected = judged[["valence_predicted", "arousal_predicted"]].to_numpy()
    np.testing.assert_allclose(answer_batches(model, windows), expected, atol=1e-5)
    beside = answer_batches(model, windows, workers=3)
    np.testing.assert_allclose(beside, expected, atol=1e-5)


def test_many_songs_leave_torch_its_threads(model):
    before = torch.get_num_threads()
    songs = [music(5, 22050), np.zeros(9), music(6, 22050)]
    first, bad, last = model.predict_all(songs, 22050)
    assert torch.get_num_threads() == before and isinstance(bad, MusemoError)
    for said, song in ((first, songs[0]), (last, songs[2])):
        assert said["valence"] == pytest.approx(model.predict(song, 22050)["valence"], abs=1e-5)


def test_hearing_is_the_training_songs_way(model, tmp_path):
    path, wave = tmp_path / "song.wav", music(20, 44100, channels=2)
    soundfile.write(path, np.concatenate([np.zeros((30000, 2)), wave]), 44100)
    audio = model.audio.model_copy(update={"clip_seconds": 30.0})
    heard = hear(path, None, audio, min_seconds=3)
    ours, theirs = heard.log_mel, log_mel_of(decode(path, audio), audio)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours.astype("f4"), theirs.astype("f4"), atol=1e-3)
    assert heard.start == pytest.approx(30000 / 44100, abs=0.1)


@pytest.mark.parametrize("rate, channels", [(8000, 1), (192000, 1), (48000, 6)])
def test_rates_and_channels(model, tmp_path, rate, channels):
    path = tmp_path / "song.wav"
    soundfile.write(path, music(4, rate, channels), rate)
    said = model.predict(path)
    assert np.isfinite([said["valence"], said["arousal"]]).all()
    assert ("no treble above 4000 Hz" in said["note"]) == (rate == 8000)
    again = model.predict(soundfile.read(path)[0], rate)
    assert again["arousal"] == pytest.approx(said["arousal"], abs=1e-4)


def test_what_cannot_be_heard_says_why(model, tmp_path):
    path = tmp_path / "song.wav"
    bad = {
        "is silent, no sound above -40 dB": np.zeros(9 * 16000),
        "0.2 s between silence, need 3 s of sound; leave it out": music(0.2, 16000),
        "holds no samples": np.zeros(0),
    }
    for reason, wave in bad.items():
        soundfile.write(path, wave, 16000)
        with pytest.raises(MusemoError, match=reason):
            model.predict(path)
        with pytest.raises(MusemoError, match=reason):
            model.predict(wave, 16000)
    wave = music(5, 16000)
    wave[[7, 70]] = np.nan, np.inf
    with pytest.raises(MusemoError, match="2 samples are no numbers"):
        model.predict(wave, 16000)
    soundfile.write(path, wave, 16000, subtype="FLOAT")
    with pytest.raises(MusemoError, match="song.wav: holds samples that are no numbers"):
        model.predict(path)
    with pytest.raises(MusemoError, match="nowhere.wav: there is no such file"):
        model.predict(tmp_path / "nowhere.wav")
    with pytest.raises(MusemoError, match="cannot be looked at .*too long"):
        model.predict(tmp_path / ("a" * 300 + ".wav"))
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(MusemoError, match="pipe.wav: is no regular file; save it"):
        model.predict(tmp_path / "pipe.wav")
    (tmp_path / "song.mp3").write_text("no sound at all\n" * 500)
    with pytest.raises(MusemoError, match="song.mp3: cannot be read as sound"):
        model.predict(tmp_path / "song.mp3")


def test_a_name_in_another_encoding_is_heard_and_shown(folder, tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    with open(path, "wb") as file:
        soundfile.write(file, music(5, 16000), 16000, format="WAV")
    command = [sys.executable, "-m", "musemo", "predict", path, "--model", folder]
    for form, shown in ((), "caf\\udce9.wav"), (("--json",), "caf\\udce9.wav"):
        done = subprocess.run([*command, *form], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0 and shown in done.stdout, done.stderr


def test_arrays_that_are_no_sound_say_why(model):
    wave = music(5, 16000)
    for given, rate, reason in (
        (wave, None, "sample_rate = None"),
        ((wave * 32767).astype(np.int16), 16000, "int16"),
        (wave * 32767, 16000, "peak"),
        (np.stack([wave, wave]), 16000, "time first"),
        (np.zeros((9, 9, 9)), 16000, "time first"),
    ):
        with pytest.raises(MusemoError, match=reason):
            model.predict(given, rate)
    assert model.predict(torch.from_numpy(wave), 16000) == model.predict(wave, 16000)


@pytest.mark.parametrize("suffix", ["mp3", "wav", "flac", "ogg"])
def test_a_corrupt_tail_leaves_the_rest_and_a_note(model, tmp_path, suffix):
    path = tmp_path / f"song.{suffix}"
    soundfile.write(path, music(20, 22050), 22050)
    content = path.read_bytes()
    path.write_bytes(content[: int(0.6 * len(content))])
    said = model.predict(path)
    assert 6 < said["seconds"] < 13
    assert "cut off" in said["note"] or "damaged" in said["note"]
    path.write_bytes(content[: int(0.1 * len(content))])
    with pytest.raises(MusemoError, match="song"):
        model.predict(path)


def test_a_long_file_is_never_whole_in_memory(folder, tmp_path):
    path, rng = tmp_path / "long.wav", np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", 8000, 1) as file:
        for _ in range(20):
            file.write(rng.normal(0, 0.1, 60 * 8000))
    code = f"""
import resource, soundfile, numpy as np
from musemo.prediction import EmotionModel
model = EmotionModel.from_pretrained({str(folder)!r})
model.predict(np.random.default_rng(0).normal(0, .1, 8000 * 4), 8000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
said = model.predict({str(path)!r})
print(said["seconds"], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds == pytest.approx(1200, abs=1)
    assert megabytes < 150, "20 minutes at 8 kHz: 13 MB of log-mel, and what a block needs"


def test_a_bad_song_does_not_stop_the_others(model, tmp_path):
    (tmp_path / "bad.mp3").write_text("no sound")
    soundfile.write(tmp_path / "a.wav", music(4, 22050), 22050)
    soundfile.write(tmp_path / "b.wav", music(9, 22050, seed=1) / 9, 22050)
    songs = [tmp_path / name for name in ("a.wav", "bad.mp3", "b.wav", "none.wav")]
    said = model.predict_all(songs)
    assert [isinstance(told, MusemoError) for told in said] == [False, True, False, True]
    for song, told in zip(songs[::2], said[::2], strict=True):
        alone = model.predict(song)
        assert told["arousal"] == pytest.approx(alone["arousal"], abs=1e-5)
    assert model.predict_all([]) == []
    assert all(isinstance(told, MusemoError) for told in model.predict_all(songs[1::2]))


def test_many_short_songs_in_one_call_are_no_slower_than_alone(model):
    songs = [music(4, 22050, seed=i) for i in range(100)]
    model.predict_all(songs[:4], 22050)
    spent = {}
    for name in ("alone", "together"):
        begun = time.process_time()
        if name == "alone":
            said = [model.predict(song, 22050) for song in songs]
        else:
            again = model.predict_all(songs, 22050)
        spent[name] = time.process_time() - begun
    assert spent["together"] < 1.15 * spent["alone"], spent
    np.testing.assert_allclose(
        [told["arousal"] for told in said], [told["arousal"] for told in again], atol=1e-5
    )


def test_a_curve_tells_time_from_the_songs_start(model):
    wave = np.concatenate([np.zeros(4 * 22050), music(10, 22050), np.zeros(22050)])
    for step in (0, -1.0, 99.0, np.nan):
        with pytest.raises(MusemoError, match="step = .* s: must be above 0, at most"):
            model.curve(wave, 22050, step=step)
    curve = model.curve(wave, 22050)
    assert list(curve.columns) == ["seconds", "valence", "arousal"]
    assert (curve["seconds"] % 0.5 == 0).all() and (curve["seconds"].diff().dropna() == 0.5).all()
    assert 4 <= curve["seconds"].min() <= 4.6 and 13.4 <= curve["seconds"].max() <= 14
    assert curve[["valence", "arousal"]].abs().max().max() <= 1


def test_a_saved_model_opens_in_a_fresh_process(model, folder):
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    wave = music(6, 22050)
    code = f"""
import numpy as np
from musemo.prediction import EmotionModel
print(EmotionModel.from_pretrained({str(folder)!r}).predict(np.array({wave.tolist()}), 22050))
"""
    result = subprocess.run(
        [sys.executable, "-"], input=code, capture_output=True, text=True, check=True
    )
    assert result.stdout == f"{model.predict(wave, 22050)}\n"


def test_a_small_model_travels_with_its_trees(tmp_path):
    torch.manual_seed(0)
    config = make_config("smoke", {"vit.hidden": 16, "vit.layers": 1})
    network = build_vit(config)
    network.trees = Trees(4, 3, 1)
    torch.nn.init.normal_(network.trees.value)
    parts = {"network": describe_vit(network), "audio": config.audio.model_dump(), "format": 1}
    parts |= {"window": config.window, "image_size": 0, "windows_per_song": 2, "min_seconds": 3.0}
    model = EmotionModel(**parts).eval()
    model.network.load_state_dict(network.state_dict())
    model.save_pretrained(tmp_path / "small")
    again, wave = EmotionModel.from_pretrained(tmp_path / "small"), music(5, 22050)
    assert again.predict(wave, 22050) == model.predict(wave, 22050)
    incomplete = json.loads((tmp_path / "small/config.json").read_text())
    del incomplete["window"]
    (tmp_path / "small/config.json").write_text(json.dumps(incomplete))
    with pytest.raises(MusemoError, match="window"):
        EmotionModel.from_pretrained(tmp_path / "small")


def test_the_card_tells_figures_with_floor_and_rivals(folder):
    card = (folder / "README.md").read_text()
    for told in ("library_name: musemo", "8 songs to train", "mean predictor (the floor)"):
        assert told in card
    for told in ("boosted trees", "6 real test songs", "## Limits", "## Licence", "no intervals"):
        assert told in card
    assert str(folder) not in card and "/tmp" not in (folder / "config.json").read_text()


def test_intervals_are_told_where_they_are_known(model, tmp_path):
    model.save_pretrained(tmp_path / "sure")
    path = tmp_path / "sure/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"reach": [0.3, 0.4]}))
    said = EmotionModel.from_pretrained(tmp_path / "sure").predict(music(5, 22050), 22050)
    low, high = said["arousal_interval"]
    assert low == pytest.approx(max(-1, said["arousal"] - 0.4)) and low <= said["arousal"] <= high
    assert said["arousal_1_9_interval"] == pytest.approx([5 + 4 * low, 5 + 4 * high])


@pytest.mark.parametrize("name", ["nope", "runs/demoo", "~/nope/model"])
def test_a_slip_in_a_folder_s_name_is_said_at_once(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(EmotionModel, "from_pretrained", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(MusemoError, match=f"{name}: is no folder here; name a run"):
        open_model(name)


def test_a_model_of_another_version_says_so(folder, tmp_path):
    def changed(**values):
        name = tmp_path / f"model{len(os.listdir(tmp_path))}"
        name.mkdir()
        config = json.loads((folder / "config.json").read_text())
        (name / "config.json").write_text(json.dumps(config | values))
        (name / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        return name

    config = json.loads((folder / "config.json").read_text())
    wider = config["network"] | {"backbone": config["network"]["backbone"] | {"hidden_size": 24}}
    for name, reason in (
        (changed(format=2), "format = 2: this musemo opens format 1"),
        (changed(format=None), "format = None"),
        (changed(audio=config["audio"] | {"pitch": 1}), "another version"),
        (changed(network={"kind": "cnn"}), "another version"),
        (changed(network=wider), "cannot be opened"),
        (tmp_path / "nowhere/at/all", "is no folder, nor on the hub"),
    ):
        with pytest.raises(MusemoError, match=reason):
            EmotionModel.from_pretrained(name)
    cut = changed()
    (cut / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(MusemoError, match="cannot be opened"):
        EmotionModel.from_pretrained(cut)
    (cut / "config.json").unlink()
    with pytest.raises(MusemoError, match="no config.json"):
        EmotionModel.from_pretrained(cut)


def test_a_run_of_another_version_or_untrained_says_so(finished, tmp_path):
    run = Run(tmp_path)
    run.save("config.json", config_record(make_config("smoke", SMALL)))
    with pytest.raises(MusemoError, match="vit_history.json is missing"):
        open_model(str(tmp_path))
    for name in ("vit_history.json", "vit.safetensors"):
        run.path(name).write_bytes(finished.path(name).read_bytes())
    open_model(str(tmp_path), device="cpu")
    record = run.load("vit_history.json")
    record["model"]["backbone"]["hidden_size"] = 24
    run.save("vit_history.json", record)
    with pytest.raises(MusemoError, match="train it again with --from 11"):
        open_model(str(tmp_path))
    run.save("config.json", run.load("config.json") | {"old": 1})
    with pytest.raises(MusemoError, match="old"):
        open_model(str(tmp_path))


def test_pushing_hands_the_hub_weights_configuration_and_card(finished, tmp_path, monkeypatch):
    pushed = {}

    class StubApi:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **options):
            return namedtuple("Repo", "repo_id")(repo_id)

        def upload_folder(self, *, repo_id, folder_path, **options):
            names = sorted(os.listdir(folder_path))
            pushed[repo_id] = {name: Path(folder_path, name).read_bytes() for name in names}
            return "https://hub/commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", StubApi)
    arguments = ["export", str(finished.folder), str(tmp_path / "mine"), "--push", "me/mood"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "https://hub/commit" in result.output
    content = pushed["me/mood"]
    assert list(content) == ["README.md", "config.json", "model.safetensors"]
    assert content == {name: (tmp_path / "mine" / name).read_bytes() for name in content}


def test_the_command_line_answers_and_lists_what_failed(finished, tmp_path):
    soundfile.write(tmp_path / "a.wav", music(6, 22050), 22050)
    (tmp_path / "bad.mp3").write_text("no sound")
    songs = [tmp_path / "a.wav", tmp_path / "bad.mp3"]
    done = cli("predict", *songs, "--model", finished.folder, "--curve", "--out", tmp_path / "o")
    assert done.returncode == 2, done.stderr
    assert "valence [1-9]" in done.stdout and "a.wav.emotion.png" in done.stdout
    assert "1 of 2 songs could not be predicted" in done.stderr and "bad.mp3" in done.stderr
    assert sorted(os.listdir(tmp_path / "o")) == ["a.wav.emotion.csv", "a.wav.emotion.png"]
    (tmp_path / "a file").touch()
    command = ["predict", str(songs[0]), "--model", str(finished.folder)]

    def ask(*options):
        return CliRunner().invoke(app, [*command, *map(str, options)])

    lost = ask("--curve", "--out", tmp_path / "a file")
    assert "valence [1-9]" in lost.output  # what was found is not lost
    assert "1 of 1 songs could not be followed in time" in str(lost.exception)
    assert "choose one" in str(ask("--json", "--csv").exception)
    assert "add --curve, or leave it out" in str(ask("--out", tmp_path).exception)
    told = ask("--csv")
    assert told.exit_code == 0 and told.output.startswith("song,valence,valence_low")
    done = cli("predict", *songs, "--model", finished.folder, "--json")
    rows = json.loads(done.stdout)
    assert rows[0]["emotion"] and "bad.mp3" in rows[1]["error"]
