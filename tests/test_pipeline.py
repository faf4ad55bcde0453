"""The twelve notebooks as one run: artifacts, resume, sameness, and what is refused."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest

from musemo import core
from musemo.core import MusemoError, Run, write_atomic
from musemo.opening import open_run
from musemo.pipeline import run_suite
from musemo.presets import make_config, save_config
from musemo.sections import SECTIONS
from tests.conftest import ROOT

ARTIFACTS = [name for section in SECTIONS for name in section.artifacts(make_config("smoke"))]


def musemo(*arguments, **options):
    "Run the command line in a process of its own."
    command = [sys.executable, "-m", "musemo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)


def test_a_run_leaves_every_artifact_report_and_headline(smoke_run):
    run = Run(smoke_run)
    assert run.has(*ARTIFACTS)
    index = (smoke_run / "index.html").read_text()
    for section in SECTIONS:
        assert f"reports/{section.name}.html" in index
        report = (smoke_run / f"reports/{section.name}.html").read_text()
        assert "data:image/png;base64," in report, section.name
        assert len(run.load(f"figures/{section.name}.json")["number"]) > 3
        assert (smoke_run / f"figures/{section.name}.png").stat().st_size > 2000
    for name in ("03_data", "08_audio"):
        assert "data:audio/wav;base64," in (smoke_run / f"reports/{name}.html").read_text()


def test_artifacts_keep_their_contract(smoke_run):
    run = Run(smoke_run)
    assert len({path.stat().st_mode for path in smoke_run.glob("*.*") if path.is_file()}) == 1
    songs = run.load("songs.csv")
    assert {"song_id", "valence", "arousal", "split", "status", "reason"} <= set(songs)
    assert songs[["valence", "arousal"]].abs().max().max() <= 1
    quality = run.load("gan_quality.json")
    assert next(iter(quality)) == "score" and 0 <= quality["score"] <= 100
    metrics = run.load("metrics.json")
    for label in ("valence", "arousal"):
        for model in ("model", "mean", "ridge"):
            assert {"mae", "rmse", "ccc", "r2", "r"} <= set(metrics[label][model])
    for path in smoke_run.rglob("*.json"):
        assert json.loads(path.read_text())["units"], path.name


def test_only_plain_formats_are_written(smoke_run):
    allowed = {".json", ".csv", ".npy", ".safetensors", ".wav", ".png", ".html", ".ipynb"}
    files = {path.relative_to(smoke_run) for path in smoke_run.rglob("*") if path.is_file()}
    own = {path for path in files if path.parts[0] not in (".lock", "logs")}  # a tracker's
    assert {path.suffix for path in own} <= allowed | {".log"}


def test_one_configuration_gives_the_same_bytes(smoke_run, small_config, tmp_path):
    "Stages called directly in this process against notebooks in kernels of their own."
    run = Run(tmp_path / "again")
    for section in SECTIONS:
        for stage in section.stages(small_config):
            stage.make(run, small_config)
    sounds = [str(path.relative_to(smoke_run)) for path in smoke_run.rglob("*.wav")]
    # Emotions and real songs beside them, each generator's calm and aroused window, the plane.
    assert len(sounds) == 2 * 5 + 2 * (len(small_config.generators) + 1) + 25
    for name in ARTIFACTS + sounds:
        if name != "config.json" and not name.endswith("_times.json"):
            assert run.path(name).read_bytes() == (smoke_run / name).read_bytes(), name


def test_a_config_of_another_version_is_one_clear_error(smoke_run, small_config, tmp_path):
    out = shutil.copytree(smoke_run, tmp_path / "copy")
    text = (out / "config.json").read_text()
    (out / "config.json").write_text(text.replace('"latent"', '"old_name"'))
    with pytest.raises(MusemoError, match="cannot be read by this version.*another --out"):
        run_suite(small_config, out)


def test_a_run_in_a_relative_folder_with_a_blank(small_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    index = run_suite(small_config, Path("runs/my run"), only=1)
    assert index == tmp_path / "runs/my run/index.html"
    assert "1 of 12 sections" in index.read_text()


def test_test_songs_touch_nothing_that_is_trained(smoke_run, small_config, tmp_path):
    "Noise in place of the test songs leaves generator, synthetic songs and ViT byte for byte."
    run, old = Run(tmp_path / "noise"), Run(smoke_run)
    songs, log_mel = old.load("songs.csv"), np.array(old.load("logmel.npy"))
    test = songs["split"] == "test"
    rng = np.random.default_rng(0)
    rows = songs.loc[test, "row"].to_numpy()
    log_mel[rows] = rng.uniform(-1, 1, log_mel[rows].shape).astype(np.float16)
    songs.loc[test, ["valence", "arousal"]] = rng.uniform(-1, 1, (test.sum(), 2))
    run.save("songs.csv", songs)
    run.save("logmel.npy", log_mel)
    for section in SECTIONS:
        if section.name[:2] not in ("05", "06", "07", "11"):
            continue
        for stage in section.stages(small_config):
            stage.make(run, small_config)
            for name in stage.artifacts if section.name != "06_gan_quality" else ():
                if name.endswith("_times.json"):
                    continue
                assert run.path(name).read_bytes() == old.path(name).read_bytes(), name


def test_a_notebook_alone_gets_what_it_needs(small_config, tmp_path):
    run = Run(tmp_path / "alone")
    save_config(run, small_config)
    opened, config = open_run(run.folder, before=5)
    assert config == small_config
    assert opened.has("songs.csv", "logmel.npy") and not opened.has("gan.safetensors")


@pytest.mark.parametrize(
    ("names", "made"),
    [
        (("11_vit_training", "03_data"), ("vit.safetensors", "songs.csv")),
        (("12_evaluation", "08_audio"), ("metrics.json", "audio/generators.json")),
    ],
)
def test_notebooks_run_alone_anywhere_in_any_order(names, made, tmp_path, monkeypatch):
    "A late one first: each in a fresh kernel, in a folder that is no clone."
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run = Run(tmp_path / "runs/notebook")
    for name in names:
        papermill.execute_notebook(
            ROOT / f"nbs/{name}.ipynb",
            tmp_path / f"{name}.ipynb",
            cwd=tmp_path,
            kernel_name="python3",
            progress_bar=False,
        )
        assert run.has(f"figures/{name}.png")
    assert run.has(*made)
    assert run.has("metrics.json") == ("12_evaluation" in names)  # only what was asked for


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.csv"
    write_atomic(path, pd.DataFrame({"x": [1]}))
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        write_atomic(path, "no table")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    write_atomic(path, pd.DataFrame({"x": [1]}))
    before = path.read_bytes()

    def fill(file, value):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setitem(core._writers, ".csv", fill)
    with pytest.raises(MusemoError, match="No space left on device; free the disk"):
        write_atomic(path, pd.DataFrame({"x": [2]}))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--data", "/no/such/folder"], "there is no such folder"),
        (["run", "--data", "{empty}"], "holds no static_annotations_averaged_songs"),
        (["run", "--preset", "tiny"], "tiny"),
        (["run", "--set", "gan.epoch=3"], "gan.epoch"),
        (["run", "--set", "gan.epochs=none"], "gan.epochs"),
        (["run", "--only", "5", "--from", "3"], "--only 5 executes one section"),
        (["run", "--only", "5", "--until", "7"], "leave out --from and --until"),
        (["run", "--from", "8", "--until", "5"], "must not end before it begins"),
        (["run", "--set", "small.hidden_share=0.001"], "hide some of a window's 32 patches"),
        (["run", "--set", "gan.epochs"], "SECTION.FIELD=VALUE"),
        (["run", "--set", "preset.x=1"], "preset.x"),
        (["run", "--data", "{column}"], "has no column arousal"),
        (["run", "--data", "{scale}"], "row 2: valence = '11' must be a number from 1 to 9"),
        (["run", "--data", "{scale}", "--scale", "percent"], "data.scale = 'percent'"),
        (["run", "--data", "{empty}", "--scale", "0-1"], "--scale 0-1: is the scale of a table"),
        (["run", "--set", "generators=flow"], 'must be a list, as ["a", "b"] or [1, 2]'),
        (["run", "--set", "audio.hop=2048"], "hop <= n_fft / 2"),
        (["run", "--set", "training.unfreeze=[[0, 64]]"], "unfreeze must rise in epochs, from 1"),
        (["predict", "{text}", "--model", "{run}"], "cannot be read as sound"),
        (["predict", "{text}", "--model", "/no/such/run"], "is no folder"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, words, smoke_run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp3").write_text("words")
    (tmp_path / "column.csv").write_text("file,valence\na.mp3,5\n")
    (tmp_path / "scale.csv").write_text("file,valence,arousal\na.mp3,11,5\n")
    places = {"column": tmp_path / "column.csv", "scale": tmp_path / "scale.csv"}
    places |= {"empty": tmp_path / "empty", "text": tmp_path / "text.mp3", "run": smoke_run}
    arguments = [text.format(**places) for text in arguments]
    if arguments[0] == "run":
        arguments += ["--out", tmp_path / "out"]
    result = musemo(*arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_one_clear_line(small_config, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = musemo("run", "--data", small_config.data.path, "--out", tmp_path / "file")
    assert result.returncode == 2 and "is a file" in result.stderr
    result = musemo("run", "--data", small_config.data.path, "--out", tmp_path / "file/run")
    assert result.returncode == 2 and "cannot write" in result.stderr
    if Path("/sys/kernel").exists():  # closed to everybody
        result = musemo("run", "--data", small_config.data.path, "--out", "/sys/kernel/run")
        assert result.returncode == 2 and "cannot write /sys/kernel/run: " in result.stderr
    result = musemo("demo", tmp_path / "file/music", "--songs", "12")
    assert result.returncode == 2 and "Traceback" not in result.stderr


def test_a_judge_that_cannot_be_had_is_missed_before_the_first_section(tmp_path):
    options = ["--preset", "smoke", "--set", "quality.embedding=vit", "--out", tmp_path / "out"]
    result = musemo("run", *options)
    assert result.returncode == 2 and "vit.safetensors is not there" in result.stderr
    assert not (tmp_path / "out/songs.csv").exists()


def test_prediction_of_a_song(smoke_run, small_config):
    song = next(Path(small_config.data.path).rglob("*.mp3"))
    result = musemo("predict", song, "--model", smoke_run)
    assert result.returncode == 0, result.stderr
    name, valence, _, arousal, *_ = result.stdout.splitlines()[1].split()
    assert name == song.name and abs(float(valence)) <= 1 and abs(float(arousal)) <= 1
