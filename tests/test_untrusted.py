"""What others made executes nothing: artifacts, tables, names, settings; secrets stay secret."""

import ast
import csv
import json
import math
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from musemo.answers import emotions_table, write_curve
from musemo.backbone import read_backbone
from musemo.cli import app
from musemo.cli_options import configure
from musemo.compare import compare_runs
from musemo.core import MusemoError, Run, player
from musemo.data import list_songs, prepare_data
from musemo.embeddings import load_ears
from musemo.facts import command_line
from musemo.listening import card, render_emotions
from musemo.pipeline import write_index
from musemo.prediction import EmotionModel, export_model, open_model
from musemo.presets import make_config
from musemo.records import load_config
from musemo.report import write_report
from musemo.weights import WeightsError, locate_weights
from tests.conftest import ROOT, write_deam

HOSTILE = """<img src=x onerror=alert(666)>"&'{{7*7}}$x_$`id`"""  # a file may be called so
SECRETS = {name: f"{name.lower()}-0a1b2c3d4e5f" for name in ("KAGGLE_KEY", "WANDB_API_KEY")}
SECRETS["HF_TOKEN"] = "hf_abcdefghijklmnopqrstuvwxyz012345"


class Evil:
    "Makes a file when it is unpickled."

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    "Where something would appear, were it executed; checked at the end."
    pickle.loads(pickle.dumps(Evil(tmp_path / "executed")))  # it does work
    (tmp_path / "executed").rmdir()
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists(), "something was executed"


def write_evil(path: Path, mark: Path, kind: str) -> None:
    "Write a file that executes something in readers which unpickle."
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Evil(mark)))
    elif kind == "array of objects":
        with open(path, "wb") as file:
            np.save(file, np.array([Evil(mark)], dtype=object), allow_pickle=True)
    elif kind == "archive":
        with open(path, "wb") as file:
            np.savez(file, np.array([Evil(mark)], dtype=object))
    else:
        torch.save({"weights": Evil(mark)}, path)


EVIL = ["pickle", "array of objects", "archive", "torch"]


def test_no_code_unpickles_or_evaluates():
    calls = r"(?<![\w.])(eval|exec|compile|__import__)\(|os\.system|shell=True"
    words = (
        r"\b(pickle|cloudpickle|dill|shelve|marshal|read_pickle|to_pickle)\b|joblib\.(load|dump)"
    )
    rule = re.compile(rf"{calls}|{words}|torch\.(load|save)\(|allow_pickle=True|yaml\.load")
    kernel = nbformat.read(ROOT / "kaggle/musemo.ipynb", as_version=4).cells
    texts = {str(path): path.read_text() for path in (ROOT / "musemo").rglob("*.py")}
    texts["kernel"] = "\n".join(x.source for x in kernel if x.cell_type == "code")
    for name, text in texts.items():
        code = ast.unparse(ast.parse(re.sub(r"^[%!].*", "", text, flags=re.M)))  # no comments
        found = rule.search(code)
        assert not found, f"{name}: {found}"


@pytest.mark.parametrize("kind", EVIL)
@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".json", ".csv", ".wav"])
def test_an_artifact_that_is_a_pickle_is_refused(tmp_path, mark, suffix, kind):
    run = Run(tmp_path)
    write_evil(run.path(f"x{suffix}"), mark, kind)
    with pytest.raises(MusemoError, match=f"x{suffix} is no whole {suffix} file"):
        run.load(f"x{suffix}")


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "[" * 10**6, "{", '{"a":' * 10**6])
def test_json_that_is_no_record_is_refused(tmp_path, text):
    run = Run(tmp_path)
    run.path("config.json").write_text(text)
    for read in (lambda: run.load("config.json"), lambda: load_config(run)):
        with pytest.raises(MusemoError, match="is no whole .json file"):
            read()


def test_an_array_larger_than_its_file_is_refused(tmp_path):
    run = Run(tmp_path)
    for shape in ((10**18,), (2**62, 2**62), (-1,), (10**9, 10**9)):
        with open(run.path("x.npy"), "wb") as file:
            header = {"descr": "<f8", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
        with pytest.raises(MusemoError, match="no whole .npy file"):
            run.load("x.npy")


@pytest.fixture
def copied(smoke_run, tmp_path):
    "A copy of a finished run, in a folder whose name a page must escape."
    return Run(shutil.copytree(smoke_run, tmp_path / HOSTILE))


@pytest.mark.parametrize("kind", EVIL)
def test_a_run_of_others_opens_as_a_model_or_is_refused(copied, mark, kind):
    for name in ("config.json", "vit_history.json", "vit.safetensors", "intervals.json"):
        whole = copied.path(name).read_bytes()
        write_evil(copied.path(name), mark, kind)
        with pytest.raises(MusemoError):
            open_model(str(copied.folder))
        copied.path(name).write_bytes(whole)
    open_model(str(copied.folder))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("config.json", {"audio": {"__class__": "os.system"}}),
        ("config.json", {"audio": 3, "units": []}),
        ("config.json", {"data": {"path": {"py/object": "os.system"}}}),
        ("vit_history.json", {"model": [1, 2]}),
        ("vit_history.json", {"model": {"kind": "os.system"}}),
        ("vit_history.json", {"model": {"backbone": {"auto_map": "evil.Evil"}}}),
        ("vit_history.json", {"model": "__import__('os').system('id')"}),
        ("intervals.json", {"reach": {"a": 1}}),
        ("intervals.json", {}),
    ],
)
def test_a_record_of_others_is_one_clear_error(copied, name, value):
    copied.path(name).write_text(json.dumps(value))
    with pytest.raises(MusemoError):
        open_model(str(copied.folder))


@pytest.mark.parametrize(
    "field, value",
    [
        *[("window", value) for value in (0, "abc", -5, 10**11)],
        *[("batch_size", "x"), ("windows_per_song", 10**9), ("min_seconds", None)],
        *[("image_size", -1), ("reach", 7), ("reach", [1]), ("reach", [math.nan, 1])],
        ("facts", [1]),
        ("audio", {"n_fft": 2**30}),
    ],
)
def test_a_description_of_others_is_one_clear_error(field, value, copied, tmp_path):
    folder = export_model(EmotionModel.from_run(copied), tmp_path / "mine")
    told = json.loads((folder / "config.json").read_text())
    told[field] = told[field] | value if field == "audio" else value
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(MusemoError):
        EmotionModel.from_pretrained(folder)


@pytest.mark.parametrize("kind", EVIL)
def test_a_model_of_others_is_refused(copied, tmp_path, mark, kind):
    folder = export_model(EmotionModel.from_run(copied), tmp_path / "mine")
    shutil.move(folder / "model.safetensors", tmp_path / "whole")
    write_evil(folder / "pytorch_model.bin", mark, kind)
    with pytest.raises(MusemoError):
        EmotionModel.from_pretrained(folder)
    write_evil(folder / "model.safetensors", mark, kind)
    with pytest.raises(MusemoError, match="cannot be opened"):
        EmotionModel.from_pretrained(folder)


@pytest.mark.parametrize("kind", EVIL)
def test_weights_that_are_pickled_or_bring_code_are_refused(tmp_path, mark, kind):
    folder = tmp_path / "weights"
    folder.mkdir()
    auto = {
        "AutoModel": "evil.Evil",
        "AutoConfig": "evil.Evil",
        "AutoFeatureExtractor": "evil.Evil",
    }
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Evil: pass\n")
    (folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": auto}))
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "auto_map": auto}))
    write_evil(folder / "pytorch_model.bin", mark, kind)
    with pytest.raises(WeightsError, match="has no ViT's config.json"):
        locate_weights(str(folder))
    write_evil(folder / "model.safetensors", mark, kind)
    with pytest.raises(WeightsError, match="cannot be read as a ViT"):
        read_backbone(locate_weights(str(folder))[0])
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    with pytest.raises(MusemoError, match="cannot be had"):
        load_ears(str(folder))


def list_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_a_table_names_files_anywhere_and_nothing_is_written_beside_them(tmp_path):
    folder, there = tmp_path / "tables/mine", []
    folder.mkdir(parents=True)
    names = [
        "../up.wav",
        str(tmp_path / "far.wav"),
        f"{HOSTILE}.wav",
        "a b/c.wav",
        "d.wav",
        "e.wav",
    ]
    for i, name in enumerate(names):
        there.append(folder / name)
        there[-1].parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(i).normal(0, 0.1, 4 * 22050)
        soundfile.write(there[-1], noise, 22050)
    names += ["../../gone.wav", "/etc/passwd", "", ".", "..", "a\0b.wav", "x" * 5000, "/dev/zero"]
    with open(folder / "songs.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file", "valence", "arousal"], *([n, 5, 5] for n in names)])
    before = list_below(tmp_path)
    values = {"data.path": str(folder / "songs.csv"), "data.cache": str(tmp_path / "cache")}
    run, config = Run(tmp_path / "run"), make_config("smoke", values | {"audio.clip_seconds": 3})
    songs, _ = prepare_data(run, config)
    assert songs["status"].tolist()[:6] == ["ok"] * 6 and "ok" not in songs["status"].tolist()[6:]
    assert list_songs(config)[2][:6] == there
    assert songs["file"][0] == "up.wav", "the table that goes with a run names no folders"
    new = list_below(tmp_path) - before
    assert {path.relative_to(tmp_path).parts[0] for path in new} == {"run", "cache"}


@pytest.mark.parametrize("name", ["../x.json", "a/../../x.json", "/tmp/x.json", ".."])
def test_an_artifact_lies_in_its_run(tmp_path, name):
    run = Run(tmp_path / "run")
    for use in (lambda: run.save(name, {"units": {}}), lambda: run.load(name)):
        with pytest.raises(MusemoError, match="must stay inside"):
            use()
    assert not list_below(tmp_path)


@pytest.mark.parametrize("emotion", ["../../../out", "/../../out", HOSTILE])
def test_no_emotion_of_a_table_leads_out_of_the_run(copied, emotion):
    outside = list_below(copied.folder.parent) - list_below(copied.folder)
    table = copied.load("synthetic.csv")
    table["emotion"] = table["emotion"].where(table["emotion"].isna(), emotion)
    copied.save("synthetic.csv", table)
    if emotion == HOSTILE:  # an odd name is a name
        assert HOSTILE in render_emotions(copied, load_config(copied))["record"]["emotions"]
    else:
        with pytest.raises(MusemoError, match="must stay inside"):
            render_emotions(copied, load_config(copied))
    assert list_below(copied.folder.parent) - list_below(copied.folder) == outside


class Page(HTMLParser):
    "A page as a browser takes it: what it shows, and what it would execute."

    def __init__(self, text: str):
        super().__init__()
        self.shown, self.executed, self.tag = "", "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tag = tag
        for name, value in attributes:
            acts = name.startswith("on") or (value or "").strip().lower().startswith("javascript:")
            if acts:
                self.executed += f"{value} "
            else:
                self.shown += f"{value} "

    def handle_endtag(self, tag):
        self.tag = ""

    def handle_data(self, data):
        if self.tag == "script":
            self.executed += data
        else:
            self.shown += data


def check_page(text: str) -> None:
    "A hostile name is shown as it is, and nothing of it is executed."
    page = Page(text)
    assert "666" not in page.executed and HOSTILE in page.shown


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    "The first sections on data that call themselves all that is bad, with secrets around."
    place = tmp_path_factory.mktemp("hostile")
    data = write_deam(place / HOSTILE)
    (data / "README.txt").write_bytes(HOSTILE.encode() + b" \xff\n\nmore")
    rows = [["song_id", "artist"], *([i, f"{HOSTILE} {i}"] for i in range(1, 13))]
    with open(data / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    (data / f"DEAM_audio/MEMD_audio/{HOSTILE}.mp3").write_bytes(b"no sound")
    command = [
        sys.executable,
        "-m",
        "musemo",
        "run",
        "--preset",
        "smoke",
        "--until",
        "3",
        "--quiet",
    ]
    command += ["--data", data, "--out", place / "run" / HOSTILE, "--set", f"data.cache={place}/c"]
    command += ["--set", "audio.clip_seconds=3"]
    env = os.environ | SECRETS | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=place)
    assert done.returncode == 0, done.stderr
    return Run(place / "run" / HOSTILE), done.stdout + done.stderr


def test_pages_show_hostile_names_and_execute_none(hostile_run):
    run, _ = hostile_run
    check_page(run.path("index.html").read_text())
    for name in ("01_core", "02_config", "03_data"):
        check_page(run.path(f"reports/{name}.html").read_text())
    index = Page(run.path("index.html").read_text()).shown
    assert index.count(HOSTILE) >= 3, "the run's name, the data's name, and what the data says"
    songs = run.load("songs.csv")
    assert songs["artist"].dropna().str.startswith(HOSTILE).all()
    words = shlex.split(command_line("run", run, load_config(run)))
    assert words[words.index("--data") + 1] == load_config(run).data.path


def test_secrets_of_the_environment_reach_nothing_that_a_run_leaves(hostile_run):
    run, said = hostile_run
    told = said.encode() + b"".join(path.read_bytes() for path in list_below(run.folder))
    for name, secret in SECRETS.items():
        assert secret.encode() not in told, name
    assert run.has("environment.json", "run.log", "index.html")


@pytest.mark.parametrize("field", ["data.path", "data.cache", "vit.weights", "quality.embedding"])
def test_a_configuration_holds_no_secret_and_does_not_repeat_one(field):
    token = SECRETS["HF_TOKEN"]
    for value in (token, f"https://me:{token}@hub.co/x", "https://a:passw0rd@b.c/d", "x?token=abc"):
        with pytest.raises(MusemoError, match=f"{field}: looks like a password") as caught:
            configure("smoke", [f"{field}={value}"])
        assert all(part not in str(caught.value) for part in (token, "passw0rd", "abc"))


@pytest.mark.parametrize("path", ["C:/me@home/deam", "/music/key=C/songs", "/a:b@c", "me@b/token"])
def test_paths_that_only_look_odd_are_taken(path):
    assert make_config("smoke", {"data.path": path}).data.path == path


@pytest.mark.parametrize(
    "value",
    ['__import__("os").mkdir("{0}")', "$(mkdir {0})", "`mkdir {0}`", "{{{{7*7}}}}; mkdir {0}"],
)
def test_set_evaluates_nothing(tmp_path, mark, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    value = value.format(mark)
    assert configure("smoke", [f"quality.embedding={value}"]).quality.embedding == value
    assert configure("full", [f"vit.weights={value}"]).vit.weights == value
    for field in ("seed", "gan.epochs", "generators", "training.unfreeze", "data.test"):
        for text in (value, f"[{value}]"):
            result = CliRunner().invoke(app, ["config", "--set", f"{field}={text}"])
            assert isinstance(result.exception, MusemoError) and field in str(result.exception)
    result = CliRunner().invoke(app, ["config", "--preset", "smoke", "--set", f"data.path={value}"])
    assert result.exit_code == 0, result.output


def test_index_and_comparison_escape_what_artifacts_say(copied, smoke_run, tmp_path):
    config, audio = load_config(copied), copied.load("audio/audio.json")
    audio["emotions"] = {f"{HOSTILE} {k}": x for k, x in audio["emotions"].items()}
    for x in audio["emotions"].values():
        x["file"] = x["nearest_song"]["file"] = f"audio/{HOSTILE}.wav"
    copied.save("audio/audio.json", audio)
    copied.save("synthetic.csv", copied.load("synthetic.csv").assign(generator=HOSTILE))
    environment = copied.load("environment.json")
    environment |= {"device": HOSTILE, "packages": {HOSTILE: HOSTILE}}
    copied.save("environment.json", environment)
    for name in ("03_data", "12_evaluation"):
        copied.save(f"figures/{name}.json", {"number": HOSTILE, "units": {}})
    check_page(write_index(copied, config).read_text())
    check_page(compare_runs([copied.folder, smoke_run], tmp_path / "page.html").read_text())


@pytest.mark.parametrize("name", ["03_data", "08_audio", "12_evaluation"])
def test_reports_escape_what_sections_print_and_draw(copied, name):
    path = copied.path(f"reports/{name}.ipynb")
    report, said = nbformat.read(path, as_version=4), {"valence": 0.1, "arousal": 0.2}
    said |= {f"{axis}_1_9": 5.0 for axis in said} | {"emotion": HOSTILE, "seconds": 3.0}
    said |= {f"{axis}_1_9_interval": None for axis in ("valence", "arousal")} | {"note": HOSTILE}
    wave, picture = np.zeros(2205), b"PNG"
    audio = load_config(copied).audio
    shown = [emotions_table([Path(f"{HOSTILE}.mp3")], [said])._repr_html_()]
    shown += [
        player(wave, 22050, label=HOSTILE).data,
        card(HOSTILE, picture, wave, audio, seconds=1),
    ]
    for text in shown:
        check_page(text)
    make = nbformat.v4.new_output
    outputs = [make("display_data", {"text/html": text, "text/plain": "x"}) for text in shown]
    outputs += [
        make("stream", name="stdout", text=f"{HOSTILE}\n"),
        make("stream", text="a  b " + HOSTILE),
    ]
    outputs.append(make("execute_result", {"text/plain": repr(HOSTILE)}))
    next(c for c in report.cells if c.cell_type == "code").outputs = outputs
    nbformat.write(report, path)
    copied.save(f"figures/{name}.json", {"number": HOSTILE, "units": {}})
    page = write_report(copied, name).read_text()
    check_page(page)
    assert Page(page).shown.count(HOSTILE) > 5


def test_a_song_may_be_called_like_a_formula(tmp_path):
    curve = pd.DataFrame({"seconds": [0, 0.5], "valence": [0, 0.1], "arousal": [0, 0.1]})
    for name in ("$$.mp3", r"A$AP $ong \frac{.mp3", HOSTILE):
        assert write_curve(curve, tmp_path / name, title=name).stat().st_size > 1000
