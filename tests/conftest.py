"""What several tests share: small songs on disk, the real data where it is there, one smoke run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musemo.config import Config
from musemo.pipeline import run_suite
from musemo.presets import make_config
from musemo.sections import SECTIONS

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared/data"
CHROMIUM = shutil.which("chromium")
in_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"
)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    "Keep tests of one file in one worker, and those of the smoke run in another: it is made once."
    for item in items:
        group = "smoke run" if "smoke_run" in item.fixturenames else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session", autouse=True)
def _quiet():
    os.environ["MUSEMO_QUIET"] = "1"


@pytest.fixture(scope="session")
def real_data():
    "A folder of real data by name; skips where it is absent."

    def find(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"the real data set {name!r} is not beside this clone")
        return SHARED / name

    return find


def write_deam(folder: Path, *, songs: int = 12, seconds: float = 3.5, header: str = "") -> Path:
    "Write a small data set in DEAM's layout: tones whose level rises with arousal."
    labels = folder / "DEAM_Annotations/annotations/annotations averaged per song/song_level"
    sound = folder / "DEAM_audio/MEMD_audio"
    labels.mkdir(parents=True)
    sound.mkdir(parents=True)
    lines = [header or "song_id, valence_mean, valence_std, arousal_mean, arousal_std"]
    time = np.arange(int(22050 * seconds)) / 22050
    for i in range(1, songs + 1):
        valence, arousal = 1 + 8 * (i * 5 % songs) / songs, 1 + 8 * (i - 1) / songs
        lines.append(f"{i},{valence:.2f},1.1,{arousal:.2f},1.2")
        tone = 0.05 * arousal * np.sin(2 * np.pi * (200 + 60 * valence) * time)
        soundfile.write(sound / f"{i}.mp3", tone, 22050)
    table = labels / "static_annotations_averaged_songs_1_2000.csv"
    table.write_bytes("\r\n".join(lines).encode() + b"\r\n")
    return folder


@pytest.fixture
def deam(tmp_path):
    "A fresh small data set in DEAM's layout."
    return write_deam(tmp_path / "deam")


@pytest.fixture(scope="session")
def small_config(tmp_path_factory):
    "The smoke configuration on a small data set of our own."
    folder = tmp_path_factory.mktemp("music")
    values = {"data.path": str(write_deam(folder / "deam", songs=16)), "data.cache": str(folder)}
    return make_config("smoke", values | {"audio.clip_seconds": 3.0})


@pytest.fixture(scope="session")
def smoke_run(small_config, tmp_path_factory):
    "One whole run of the twelve notebooks at the smoke size, killed once in each section."
    out = tmp_path_factory.mktemp("runs") / "a smoke run"
    for section in SECTIONS:
        process = start_run(small_config, out, "--log", "tensorboard")
        wait_for(lambda name=section.name: begins(out, name), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert section.name not in json.loads((out / "run.json").read_text())["sections"]
    run_suite(small_config, out)
    return out


def start_run(config: Config, out: Path, *arguments: str) -> subprocess.Popen:
    "Start the command line on the small data, in a process group of its own."
    command = [sys.executable, "-m", "musemo", "run", "--preset", "smoke", "--out", out]
    command += ["--data", config.data.path, "--set", f"data.cache={config.data.cache}"]
    command += ["--set", "audio.clip_seconds=3", *arguments]
    options = {"start_new_session": True, "cwd": ROOT, "stderr": subprocess.PIPE}
    # A shell's job in the background ignores Ctrl-C, and what it starts would, too.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, **options)


def begins(out: Path, section: str) -> bool:
    "Say whether a run has begun a section."
    log = out / "run.log"
    return log.exists() and f"{section}: begins" in log.read_text()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    "Wait until something holds, as long as a process works at it."
    begun = time.monotonic()
    while not condition():
        assert process.poll() is None and time.monotonic() - begun < 300
        time.sleep(0.1)
