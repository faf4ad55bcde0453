"""The widgets: what they answer, what they say of bad input, and one in a real JupyterLab."""

import base64
import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import nbformat
import numpy as np
import pytest
import soundfile

from musemo.cli_options import configure
from musemo.core import MusemoError, Run
from musemo.drop_song import SongDrop
from musemo.drop_zone import open_drop_zone
from musemo.form import ConfigForm
from musemo.prediction import EmotionModel
from musemo.presets import (
    PRESETS,
    config_call,
    config_command,
    field_table,
    flatten,
    make_config,
)
from musemo.song_browser import SongBrowser
from tests.conftest import CHROMIUM, in_chromium


def watch(widget, trait="value"):
    "Collect what a widget shows from now on."
    seen = []
    widget.observe(lambda change: seen.append(change["new"]), trait)
    return seen


def test_the_form_knows_every_field_and_starts_from_any_configuration():
    form = ConfigForm(make_config("full"))
    fields = field_table(make_config("full")).query("field != 'preset'").set_index("field")
    assert set(form.controls) == set(form.notes) == set(fields.index)
    for name, row in fields.iterrows():
        assert form.controls[name].description == name.rpartition(".")[2]
        assert row["source"] in form.notes[name].value
    for preset in PRESETS:
        form.preset.value = preset
        assert form.config == make_config(preset)
        assert config_call(form.config) in form.told.value.replace("&#x27;", "'")
    assert ConfigForm(make_config("demo", {"seed": 3})).config.seed == 3


def test_the_form_says_what_is_wrong_beside_the_field():
    form = ConfigForm(make_config("smoke"))
    notes, controls = form.notes, form.controls
    controls["gan.epochs"].value = "0"
    assert "greater than or equal to 1" in notes["gan.epochs"].value
    assert "role='alert'" in notes["gan.epochs"].value and "To mend first" in form.told.value
    with pytest.raises(ValueError, match="gan.epochs = '0'"):
        _ = form.config
    controls["flow.channels"].value = "[8, 16"
    controls["data.test"].value = "0.79"  # a rule between two fields: the section's
    assert "alert" in notes["flow.channels"].value and "alert" not in notes["data.test"].value
    assert "data: validation + test must leave" in form.told.value
    titles = set(form.sections.titles)
    assert {"gan, 1 changed, 1 wrong", "data, 1 changed, 1 wrong", "audio"} <= titles
    controls["gan.epochs"].value, controls["flow.channels"].value = "4", "[8, 16, 24]"
    controls["data.test"].value = "0.2"  # what the preset has: no change any more
    assert form.values == {"gan.epochs": "4", "flow.channels": "[8, 16, 24]"}
    assert "the preset has 2" in notes["gan.epochs"].value and "alert" not in form.told.value
    assert form.config == make_config("smoke", {"gan.epochs": 4, "flow.channels": [8, 16, 24]})
    controls["training.recipe"].value = "spec"
    controls["training.cache"].value = False
    assert (form.config.training.recipe, form.config.training.cache) == ("spec", False)
    form.reset.click()
    assert form.config == make_config("smoke") and controls["training.cache"].value is True


def test_what_the_form_shows_makes_the_same_configuration(tmp_path):
    values = {"data.path": str(tmp_path / "a song's folder"), "training.unfreeze": [[1, 2], [3, 4]]}
    values |= {"training.cache": False, "generators": ["flow"], "gan.learning_rate": 1e-5}
    config = make_config("demo", values)
    assert eval(config_call(config)) == config
    words = shlex.split(config_command(config))
    assert words[:5] == ["musemo", "run", "--preset", "demo", "--data"]
    assert set(words[6::2]) == {"--set"}
    assert flatten(configure(words[3], words[7::2], path=words[5])) == flatten(config)


def test_a_click_on_the_plane_shows_and_plays_the_nearest_song(smoke_run, small_config):
    browser = SongBrowser(Run(smoke_run), small_config)
    songs = Run(smoke_run).load("songs.csv").query("status == 'ok'")
    assert len(browser.list.options) == len(songs) and browser.sound.autoplay is False
    shown, sounds = watch(browser.picture), watch(browser.sound)
    side = int(len(browser.buttons) ** 0.5)
    middles = (2 * np.arange(side) + 1) / side - 1
    target = songs.iloc[5]
    column, row = (np.abs(middles - target[axis]).argmin() for axis in ("valence", "arousal"))
    at = np.array([middles[column], middles[row]])
    away = np.hypot(*(songs[["valence", "arousal"]].to_numpy() - at).T)
    browser.buttons[(side - 1 - row) * side + column].click()
    nearest = songs.iloc[away.argmin()]
    words = f"song {nearest.song_id} ({nearest.split}): valence {nearest.valence:+.2f} (raters +-"
    assert browser.label.value.startswith(words)
    assert f"{nearest.valence_std:.2f}" in browser.label.value
    assert [x[:4] for x in sounds] == [b"", b"RIFF"] and browser.sound.autoplay is True
    assert shown[-1][1:4] == b"PNG" and browser.plane.value[1:4] == b"PNG"
    assert f"{nearest.song_id}  V" in browser.list.label


def test_a_second_click_goes_on_to_the_next_song_there(smoke_run, small_config):
    browser = SongBrowser(Run(smoke_run), small_config)
    browser.songs[["valence", "arousal"]] = 0.5
    browser.songs.loc[:1, ["valence", "arousal"]] = -0.53  # two songs near one button
    browser.fill()
    browser.go(-0.533, -0.533)
    seen = [browser.shown]
    for _ in range(2):
        browser.go(-0.533, -0.533)
        seen.append(browser.shown)
    assert seen == [0, 1, 0]


def test_the_list_is_filtered_and_leads_to_every_song(smoke_run, small_config):
    browser = SongBrowser(Run(smoke_run), small_config)
    songs = Run(smoke_run).load("songs.csv").query("status == 'ok'")
    browser.part.value = "test"
    assert len(browser.list.options) == (songs["split"] == "test").sum()
    browser.go(0.0, 0.0)
    assert "(test)" in browser.label.value  # the plane knows the songs of the list only
    browser.part.value, browser.search.value = "", "16.mp3"
    assert [label.split()[-1] for label, _ in browser.list.options] == ["16.mp3"]
    browser.search.value = "<no such song>"
    assert browser.list.options == () and "&lt;no such song&gt;" in browser.label.value
    browser.go(0.0, 0.0)  # nothing to go to, and no error
    browser.search.value = ""
    seen = set()
    for _, index in browser.list.options[1:]:
        browser.list.value = index
        seen.add(browser.label.value.partition(":")[0])
    assert len(seen) == len(songs) - 1
    browser.files = {}
    browser.show(0, play=True)
    assert "there is no such file" in browser.label.value and browser.sound.value == b""


@pytest.fixture
def drop(smoke_run, small_config):
    "The widget of section 12 on the smoke run's model, with two songs to choose from."
    songs = sorted(Path(small_config.data.path).rglob("*.mp3"))[:2]
    return SongDrop(EmotionModel.from_run(smoke_run), small_config, {x.name: x for x in songs})


def test_a_dropped_song_is_answered_and_explained(drop, small_config, tmp_path):
    song = next(Path(small_config.data.path).rglob("*.mp3"))
    wave, rate = soundfile.read(song)
    long = np.tile(wave, 4)  # 14 s
    soundfile.write(tmp_path / "long.wav", long, rate)
    assert drop.answer.layout.display == "none"
    drop.take("long.wav", (tmp_path / "long.wav").read_bytes())
    said = EmotionModel.predict(drop.model, tmp_path / "long.wav")
    assert f"{said['arousal']:+.2f}" in drop.told.value and "long.wav" in drop.told.value
    assert said["emotion"] in drop.told.value and drop.answer.layout.display == ""
    highest = drop.curve.loc[drop.curve["arousal"].idxmax(), "seconds"]
    assert drop.moment.value == highest and drop.moment.max > 12
    whole, left = (sound.value for sound in drop.sounds)
    assert whole[:4] == left[:4] == b"RIFF" and whole != left
    pictures = watch(drop.picture)
    far = drop.moment.min if highest > 6 else drop.moment.max
    drop.moment.value = far  # the song's other end: another part is explained
    assert len(pictures) == 1 and drop.sounds[0].value != whole
    drop.axis.value = 0
    assert drop.moment.value == drop.curve.loc[drop.curve["valence"].idxmax(), "seconds"]
    assert len(pictures) == 2 and not any(sound.autoplay for sound in drop.sounds)


def test_a_chosen_song_is_answered_and_a_bad_one_named(drop, smoke_run):
    drop.songs.value = drop.songs.options[2][1]
    assert drop.songs.options[2][0] in drop.told.value and drop.line.value[1:4] == b"PNG"
    drop.take("../<words>.mp3", b"no sound at all")
    assert drop.told.value.startswith("&lt;words&gt;.mp3: cannot be read as sound")
    assert "/tmp" not in drop.told.value and drop.answer.layout.display == "none"
    with pytest.raises(MusemoError, match="other audio settings"):
        SongDrop(drop.model, make_config("full"))


def test_pages_have_the_widgets_static_twins(smoke_run):
    pages = {path.stem: path.read_text() for path in (smoke_run / "reports").glob("*.html")}
    for name in ("02_config", "03_data", "08_audio", "12_evaluation"):
        assert "widget-view" not in pages[name] and len(pages[name]) < 15e6
    blocks = re.findall(r"<pre[^>]*>([^<]*)</pre>", pages["02_config"])  # to copy, each alone
    assert sum(x.startswith("musemo run --preset smoke --data") for x in blocks) == 1
    assert sum(x.startswith("make_config(") and x.endswith(")") for x in blocks) == 1
    assert (
        "data.demo_songs" in pages["02_config"] and "composed where no data" in pages["02_config"]
    )
    assert pages["03_data"].count("raters +- 0.2") >= 6  # three songs with players, two labels each
    assert pages["03_data"].count("<audio") >= 3
    assert pages["08_audio"].count('aria-label="valence') >= 25
    players = re.findall(r'<audio[^>]*aria-label="([^"]*)', pages["12_evaluation"])
    for ending in (", as it was", "its most relevant 20%, the rest 30 dB lower"):
        assert sum(label.endswith(ending) for label in players) == 1
    assert sum("its beginning; the whole song: valence" in label for label in players) == 1
    curve = r'<img[^>]*alt="On the run: A test song[^"]*where along the song it hears what'
    assert len(re.findall(curve, pages["12_evaluation"])) == 1


def test_without_anywidget_a_button_takes_the_song(drop, monkeypatch):
    "As on Kaggle, where nothing is installed."
    taken = []
    monkeypatch.setattr("musemo.drop_zone.find_spec", lambda name: None)
    button = open_drop_zone(lambda *file: taken.append(file))
    facts = {"type": "audio/mpeg", "size": 6, "last_modified": datetime.now().astimezone()}
    button.value = [facts | {"name": "a.mp3", "content": memoryview(b"a song")}]
    assert taken == [("a.mp3", b"a song")]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab of our own on loopback, with a token and an empty folder; gives both."
    token, home = secrets.token_hex(16), tmp_path_factory.mktemp("lab")
    folder = home / "notebooks"
    folder.mkdir()
    places = {f"JUPYTER_{x}_DIR": str(home / x) for x in ("CONFIG", "DATA", "RUNTIME")}
    environment = os.environ | places | {"IPYTHONDIR": str(home / "ipython")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1"]
    command += ["--ServerApp.port=0", f"--ServerApp.root_dir={folder}", "--allow-root"]
    command += [f"--IdentityProvider.token={token}"]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        begun = time.monotonic()
        while not (found := list((home / "RUNTIME").glob("jpserver-*.json"))):
            assert server.poll() is None, (home / "log").read_text()
            assert time.monotonic() - begun < 120
            time.sleep(0.2)
        port = json.loads(found[0].read_text())["port"]
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?reset&token={token}", folder
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def run_cell(lab):
    "Run code as the one cell of a notebook in a real JupyterLab; gives the page."
    from playwright.sync_api import sync_playwright

    address, folder = lab
    # The sandbox wants rights that a container's root has not.
    flags = ["--disable-gpu", "--mute-audio"] + ["--no-sandbox"] * (os.geteuid() == 0)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)

        def run(name: str, code: str):
            notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
            notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
            nbformat.write(notebook, folder / name)
            page = browser.new_page(viewport={"width": 1200, "height": 1000})
            page.set_default_timeout(90_000)
            page.goto(address.format(name))
            # A cell that is run before the notebook has its kernel runs nowhere.
            page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
            page.locator(".jp-Notebook .jp-Cell").first.click()
            page.keyboard.press("Shift+Enter")
            return page

        yield run
        browser.close()


OPEN_RUN = """from pathlib import Path
from musemo.core import Run
from musemo.records import load_config
run = Run(Path({folder!r}))
config = load_config(run)
"""


@in_chromium
def test_a_song_is_clicked_in_a_real_jupyterlab(run_cell, smoke_run):
    code = OPEN_RUN.format(folder=str(smoke_run)) + (
        "from musemo.song_browser import SongBrowser\nSongBrowser(run, config).box"
    )
    page = run_cell("songs.ipynb", code)
    from playwright.sync_api import expect

    output = page.locator(".jp-OutputArea-output")
    label, sound = output.locator(".widget-html"), output.locator("audio")
    expect(label).to_contain_text("song 1 (", timeout=90_000)
    assert sound.evaluate("x => x.paused")  # silent until someone clicks
    spectrogram = output.locator("img").last
    before = spectrogram.get_attribute("src")
    output.get_by_title("valence +0.7, arousal +0.8", exact=True).click()
    songs = Run(smoke_run).load("songs.csv").query("status == 'ok'")
    away = np.hypot(songs["valence"] - 2 / 3, songs["arousal"] - 0.8)
    expect(label).to_contain_text(f"song {songs.loc[away.idxmin(), 'song_id']} (")
    expect(spectrogram).not_to_have_attribute("src", before)
    page.wait_for_function("document.querySelector('audio').currentTime > 0.1")
    assert sound.evaluate("x => x.duration") == pytest.approx(3, abs=0.6)


@in_chromium
def test_a_song_is_dropped_and_another_chosen_in_a_real_jupyterlab(run_cell, smoke_run, tmp_path):
    "The dropped one is larger than a message of Jupyter's may be."
    code = OPEN_RUN.format(folder=str(smoke_run)) + (
        "from musemo.drop_song import SongDrop\n"
        "from musemo.prediction import EmotionModel\n"
        "SongDrop(EmotionModel.from_run(run.folder), config).box"
    )
    page = run_cell("drop.ipynb", code)
    from playwright.sync_api import expect

    noise = np.random.default_rng(0).normal(0, 0.1, (44100 * 64, 2))
    for name, wave in (("large.wav", noise), ("small.wav", noise[: 44100 * 8])):
        soundfile.write(tmp_path / name, wave, 44100)
    content = (tmp_path / "large.wav").read_bytes()
    assert len(content) > 10 * 2**20
    output = page.locator(".jp-OutputArea-output")
    zone, answer = output.get_by_text("Drop a song here"), output.locator("table")
    data = page.evaluate_handle(
        """async text => {
            const bytes = await (await fetch("data:audio/wav;base64," + text)).blob();
            const data = new DataTransfer();
            data.items.add(new File([bytes], "large.wav", {type: "audio/wav"}));
            return data;
        }""",
        base64.b64encode(content).decode(),
    )
    zone.wait_for()
    for event in ("dragenter", "dragover", "drop"):
        zone.dispatch_event(event, {"dataTransfer": data})
    expect(answer).to_contain_text("large.wav", timeout=90_000)
    expect(answer).to_contain_text("64")  # seconds heard
    for player in output.locator("audio").all():
        page.wait_for_function("x => x.duration > 1", arg=player.element_handle())
    choose = page.get_by_label("Drop a song here")
    choose.focus()
    assert choose.evaluate("x => x === document.activeElement")
    choose.set_input_files(tmp_path / "small.wav")
    expect(answer).to_contain_text("small.wav", timeout=90_000)
