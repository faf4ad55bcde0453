"""One training in two processes: the single one's result, written once."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from musemo.core import MusemoError, Run
from musemo.dataset import make_loader, read_datasets
from musemo.memory import with_half_batch
from musemo.pipeline import is_done, train_run, write_index
from musemo.presets import make_config, save_config
from musemo.processes import deal, open_accelerator, own_stretch, work_together
from musemo.records import load_record
from musemo.sections import SECTIONS
from musemo.vit import predict_songs, revive_vit
from musemo.vit_training import fit_vit
from tests.conftest import ROOT, wait_for
from tests.test_small import made_songs

TINY = {"vit.hidden": 16, "vit.layers": 3, "vit.heads": 2, "device": "cpu"}
TINY |= {"dataset.windows_per_song": 2}
# 7 a batch: odd in itself, and 23 * 2 + 1 windows leave a last batch that holds 5.
SPEC = {"training.recipe": "spec", "dataset.image_size": 32, "dataset.batch_size": 7}
SPEC |= {"training.unfreeze": [[3, 1], [4, 3]], "training.epochs": 5, "training.views": 2}
SPEC |= {"augmentation.mixup": 0.4, "augmentation.time_masks": 1}
RECIPES = {"spec": SPEC, "small": {"small.steps": 20, "small.batch_size": 15}}
RECIPES["thaw"] = RECIPES["small"] | {"small.thaw": True, "training.epochs": 2}


def prepare(folder, config):
    "Leave what section 11 reads: 32 songs, one made window."
    run, (songs, log_mel) = Run(folder), made_songs(32)
    run.save("songs.csv", songs.assign(split=["train"] * 23 + ["val"] * 5 + ["test"] * 4))
    run.save("logmel.npy", log_mel)
    run.save("synthetic.csv", pd.DataFrame({"valence": [0.1], "arousal": [0.2], "emotion": [""]}))
    run.save("synthetic.npy", np.zeros((1, 128, 64), np.float16))
    save_config(run, config)
    run.save("run.json", {"sections": {x.name: 1 for x in SECTIONS[:10]}, "units": {}})
    return run


def launch(*arguments, options=("--multi_gpu", "--num_processes", "2")):
    "Run musemo in two processes on the CPU; accelerate starts them as a user would."
    command = [sys.executable, "-m", "accelerate.commands.launch", *options]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["-m", "musemo", *map(str, arguments)]
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=quiet, timeout=300)


def answers(run, config):
    "Predict the test songs with the run's model."
    model = revive_vit(run.load("vit_history.json")["model"], run.load("vit.safetensors"))
    return predict_songs(model, make_loader(read_datasets(run, config)["test"], config))


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_train_like_one(recipe, tmp_path):
    config = make_config("smoke", TINY | RECIPES[recipe])
    alone, shared = (prepare(tmp_path / name, config) for name in ("alone", "shared"))
    record = fit_vit(alone, config)
    before = os.listdir(shared.folder)
    done = launch("train", shared.folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("validation loss") == 1
    kept = {"vit.safetensors", "vit_history.json", "run.json", "run.log", ".lock"}
    assert set(os.listdir(shared.folder)) == kept | set(before)
    history = json.loads(shared.path("vit_history.json").read_text())
    assert (record["processes"], history["processes"]) == (1, 2)
    rows = "epochs" if recipe == "spec" else "steps"
    for ours, theirs in zip(record[rows], history[rows], strict=True):
        np.testing.assert_allclose(list(theirs.values()), list(ours.values()), atol=1e-3)
    ours, theirs = (run.load("vit.safetensors") for run in (alone, shared))
    learnt = [name for name in ours if name.startswith(("backbone", "head"))]
    assert max((theirs[name] - ours[name]).abs().max() for name in learnt) < 1e-3
    made = load_record(shared)
    assert "11_vit_training" in made["sections"]  # --only 12 may follow
    # The others are noted as done, and have left no more than section 11 reads.
    shared.save("run.json", made | {"sections": {"11_vit_training": 1}})
    page = write_index(shared, config).read_text()
    assert "made by musemo train, without a page" in page and page.count("not run yet") == 11
    section = SECTIONS[10]  # what was trained by several processes is not trained again by one
    assert is_done(shared, config, section, load_record(shared))
    far = np.abs(answers(shared, config) - answers(alone, config)).max()
    print(f"{recipe}: predictions {far:.1e} apart")
    assert far < 1e-3


def test_a_run_starts_processes_of_its_own(tmp_path):
    config = make_config("smoke", TINY | SPEC)
    alone, shared = (prepare(tmp_path / name, config) for name in ("alone", "shared"))
    fit_vit(alone, config)
    several = make_config("smoke", TINY | SPEC | {"training.processes": 2})
    assert fit_vit(shared, several)["processes"] == 2 and "RANK" not in os.environ
    assert np.abs(answers(shared, config) - answers(alone, config)).max() < 1e-3


def fails_in_the_second(how, config):
    "Wait, as the first process, for another one that fails."
    accelerator = open_accelerator(config)
    if accelerator.process_index:
        how()
    return accelerator.reduce(torch.ones(1))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def run_out_of_memory():
    def work(config):
        raise torch.OutOfMemoryError

    with_half_batch(work, make_config("smoke"), "small")


@pytest.mark.parametrize(
    "how, words",
    [
        (die, "process died.*training.processes"),
        (run_out_of_memory, r"small.batch_size = \d+: lower"),
    ],
)
def test_a_process_that_fails_ends_the_others(how, words):
    config = make_config("smoke", {"device": "cpu", "training.processes": 2})
    begun = time.monotonic()
    with pytest.raises(MusemoError, match=words):
        work_together(partial(fails_in_the_second, how, config), config)
    assert time.monotonic() - begun < 60  # gloo would wait for half an hour
    left = [child.cmdline() for child in psutil.Process().children()]
    assert not [command for command in left if "LokyProcess" in str(command)]


def test_a_process_ends_with_the_one_that_started_it(tmp_path):
    "A second writer in a run would be left, which no lock knows of."
    code = """
import os, time
from pathlib import Path
from musemo.presets import make_config
from musemo.processes import work_together

def work():
    Path(f"{os.getpid()}.pid").touch()
    time.sleep(600)

work_together(work, make_config("smoke", {"device": "cpu", "training.processes": 2}))
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2, parent)
    started = [psutil.Process(int(p.stem)) for p in tmp_path.glob("*.pid")]
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(started, timeout=20)[1] == []


@pytest.mark.parametrize("asked", [0, 2])
def test_processes_that_cannot_start_are_done_without_unless_asked_for(asked, monkeypatch, capsys):
    def fail(*_, **__):
        raise pickle.PicklingError("cannot be sent")

    monkeypatch.setattr("musemo.processes.run_jobs", fail)
    monkeypatch.setattr("musemo.processes.count_processes", lambda config: 2)  # as with two GPUs
    config = make_config("smoke", {"device": "cpu", "training.processes": asked})
    if asked:
        with pytest.raises(pickle.PicklingError):
            work_together(os.getpid, config)
    else:
        assert work_together(os.getpid, config) == os.getpid()
        assert "WARNING: 2 processes do not train together here (cannot be sent)" in (
            capsys.readouterr().out
        )


def test_half_precision_trains_to_nearly_the_same_answers(tmp_path):
    settings = TINY | SPEC
    plain = prepare(tmp_path / "float32", make_config("smoke", settings))
    config = make_config("smoke", settings | {"precision": "bfloat16"})
    half = prepare(tmp_path / "bfloat16", config)
    for run in (plain, half):  # each in a process of its own: a process keeps its precision
        command = [sys.executable, "-m", "musemo", "train", run.folder]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    losses = [pd.DataFrame(run.load("vit_history.json")["epochs"]) for run in (plain, half)]
    assert losses[1].notna().all().all() and not losses[0].equals(losses[1])
    far = np.abs(answers(half, config) - answers(plain, config)).max()
    print(f"predictions {far:.1e} apart")
    assert 0 < far < 0.02


def test_a_launch_of_two_that_starts_one_is_refused(tmp_path):
    run = prepare(tmp_path, make_config("smoke", TINY | SPEC))
    done = launch("train", run.folder, options=("--cpu", "--num_processes", "2"))
    assert done.returncode != 0 and "several need --multi_gpu" in done.stderr
    assert not run.has("vit.safetensors")


def test_what_is_not_whole_is_not_trained_on(tmp_path):
    run = prepare(tmp_path, make_config("smoke", TINY | SPEC))
    run.save("run.json", {"sections": {x.name: 1 for x in SECTIONS[:6]}, "units": {}})
    with pytest.raises(MusemoError, match="lacks section 07_synthesis.*musemo run --until 10"):
        train_run(run)


def test_what_one_process_refuses_ends_all_of_them(tmp_path):
    run = prepare(tmp_path, make_config("smoke", TINY | SPEC))
    run.path("synthetic.npy").unlink()
    done = launch("train", run.folder)
    assert done.returncode != 0 and "synthetic.npy is missing" in done.stderr
    assert not run.has("vit.safetensors")


class Place:
    "One of several processes, as far as dealing asks."

    def __init__(self, process_index, num_processes):
        self.process_index, self.num_processes = process_index, num_processes


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_row_is_computed_once_and_counts_alike(count):
    places = [Place(i, count) for i in range(count)]
    for rows in range(1, 9):
        parts = [deal(rows, place) for place in places]
        weights = np.zeros(rows)
        for own, share in parts:
            weights[own] += share / len(range(rows)[own])
        np.testing.assert_allclose(weights, 1 / rows)
    for items in range(count, 9):
        stretches = [own_stretch(items, place) for place in places]
        assert [item for own in stretches for item in own] == list(range(items))
    if count > 1:
        with pytest.raises(MusemoError, match=f"launch at most {count - 1}"):
            own_stretch(count - 1, places[0])
