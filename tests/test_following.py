"""Long work shows itself: bars, the log of a run, curves in TensorBoard and Weights & Biases."""

import json
import os
import shutil
import struct
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from musemo.core import MusemoError, Run, progress
from musemo.execution import _Errors, log, log_to, suite_bar
from musemo.tracking import follow_with, track
from tests.test_gan import write_run
from tests.test_training import FITS, small


@pytest.mark.parametrize("name", FITS)
def test_each_generators_curve_reaches_the_tracker(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MUSEMO_LOG", "")
    follow_with("tensorboard", tmp_path)
    history = FITS[name](write_run(tmp_path / "run", 0.0), small())[0]
    events = EventAccumulator(str(tmp_path / f"logs/{name}")).Reload()
    told = events.Tags()["scalars"]
    assert told and len(events.Scalars(told[0])) == len(next(iter(history["steps"].values())))


class Line:
    "A bar that remembers what it was told to show."

    def __init__(self):
        self.shown = []

    def set_description_str(self, text):
        self.shown.append(text)


def test_a_kernels_bar_is_shown_and_the_rest_is_logged(tmp_path):
    line = Line()
    with log_to(Run(tmp_path)):
        errors = _Errors("05_gan_training", line)
        errors.write("\rflow:  1%|  |\rflow:  99%|# |\r")
        errors.write("a warning of some library\n\x1b[A")
        errors.write("drawing:  50%|  |")
        errors.close()
    assert line.shown == ["flow:  1%|  |", "flow:  99%|# |", "drawing:  50%|  |", ""]
    said = [text.split(" ", 2)[2] for text in (tmp_path / "run.log").read_text().splitlines()]
    assert said == [
        "INFO 05_gan_training: a warning of some library",
        "INFO 05_gan_training: flow:  99%|# |",
        "INFO 05_gan_training: drawing:  50%|  |",
    ]


def test_the_log_keeps_what_stopped_a_run_and_is_appended(tmp_path):
    for reason in ("first", "second"):
        with pytest.raises(MusemoError), log_to(Run(tmp_path)):
            raise MusemoError(reason)
    log.error("nobody listens")
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert [text.rpartition(" ")[2] for text in lines] == ["first", "second"]


@pytest.mark.parametrize("name", ["MUSEMO_QUIET", "CI"])
def test_bars_are_silent_where_asked_and_under_ci(name, monkeypatch, capsys):
    for other in ("MUSEMO_QUIET", "CI"):
        monkeypatch.delenv(other, raising=False)

    def work():
        with suite_bar(2) as (bar, line):
            line.set_description_str("below")
            bar.update()
        return list(progress(range(3), desc="steps"))

    assert work() == [0, 1, 2]
    assert "steps" in capsys.readouterr().err
    monkeypatch.setenv(name, "1")
    assert work() == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_smoke_run_leaves_a_log_of_its_sections(smoke_run):
    text = (smoke_run / "run.log").read_text()
    for section in json.loads((smoke_run / "run.json").read_text())["sections"]:
        assert f"INFO {section}: begins" in text
        assert f"INFO {section}: done in " in text
    assert "Traceback" not in text


def test_curves_reach_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSEMO_LOG", "")
    follow_with("tensorboard", tmp_path)
    for step in range(1, 4):
        track("flow", {"loss": 1 / step, "penalty": None if step == 2 else 0.5}, step)
    monkeypatch.setenv("RANK", "1")
    track("flow", {"loss": 7.0}, 4)  # the second process of a training says nothing
    events = EventAccumulator(str(tmp_path / "logs/flow")).Reload()
    loss, penalty = events.Scalars("loss"), events.Scalars("penalty")
    assert [(e.step, round(e.value, 4)) for e in loss] == [(1, 1.0), (2, 0.5), (3, 0.3333)]
    assert [e.step for e in penalty] == [1, 3]


def test_curves_of_a_run_come_from_its_notebooks(smoke_run):
    found = {folder.name for folder in (smoke_run / "logs").iterdir()}
    assert {"gan", "residual", "flow"} <= found
    for name in found:
        assert EventAccumulator(str(smoke_run / "logs" / name)).Reload().Tags()["scalars"]


@pytest.mark.parametrize("quiet", [False, True], ids=["bars", "quiet"])
def test_the_command_line_shows_bars_or_none_and_sends_curves(quiet, smoke_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(smoke_run, run, ignore=shutil.ignore_patterns("logs"))
    command = [sys.executable, "-m", "musemo", "train", run, "--log", "tensorboard"]
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "MUSEMO_QUIET")}
    told = subprocess.run(
        command + ["--quiet"] * quiet, check=True, env=environment, capture_output=True, text=True
    )
    assert "validation loss" in told.stdout
    assert ("%|" in told.stderr) is not quiet, told.stderr
    (logs,) = (run / "logs").iterdir()
    events = EventAccumulator(str(logs)).Reload()
    assert events.Tags()["scalars"]


def wandb_records(path):
    "Read a short file of Weights & Biases: a LevelDB log of one block, after a head of 7 bytes."
    data, at = path.read_bytes(), 7
    assert len(data) < 32768
    while at < len(data):
        length, kind = struct.unpack_from("<4xHB", data, at)
        assert kind == 1  # a whole record
        yield Record.FromString(data[at + 7 : at + 7 + length])
        at += 7 + length


def test_curves_reach_wandb(tmp_path):
    code = """
import sys
from musemo.tracking import follow_with, track
follow_with("wandb", sys.argv[1])
for step in (1, 2):
    track("vit", {"loss": step / 2}, step)
"""
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    command = [sys.executable, "-c", code, tmp_path / "my run"]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    (file,) = (tmp_path / "my run/logs/wandb").glob("offline-run-*/*.wandb")
    records = list(wandb_records(file))
    begun = next(r.run for r in records if r.HasField("run"))
    assert (begun.project, begun.display_name) == ("musemo", "my run: vit")
    items = [i for r in records if r.HasField("history") for i in r.history.item]
    named = [(i.key or ".".join(i.nested_key), i.value_json) for i in items]
    assert [value for key, value in named if key == "loss"] == ["0.5", "1"]


def test_a_tracker_that_is_missing_or_does_not_start_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSEMO_LOG", "")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MusemoError, match="--log tensorboard: is not installed; pip install"):
        follow_with("tensorboard", tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/gan").write_text("a file where a folder should be")
    monkeypatch.setenv("MUSEMO_LOG", f"tensorboard:{tmp_path / 'logs'}")
    with pytest.raises(MusemoError, match="--log tensorboard: does not start"):
        track("gan", {"loss": 1.0}, 1)
