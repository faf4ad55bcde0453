"""Memory that runs out: half a batch once, with a word, then one clear error. Memory used again."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from musemo import execution
from musemo.core import MusemoError, Run
from musemo.flow_training import FlowLearner, fit_flow
from musemo.vit_training import fit_vit, train_epoch
from tests.test_vit import config_of, make_noisy, run  # noqa: F401 - a fixture


def run_out_above(monkeypatch, most):
    "Let a step on more than `most` windows run out of memory; note how many the others had."
    learn, sizes = FlowLearner.learn, []

    def learn_or_fail(self, real, labels, rows):
        if len(real) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(len(real))
        return learn(self, real, labels, rows)

    monkeypatch.setattr(FlowLearner, "learn", learn_or_fail)
    return sizes


def said_by(work):
    "Name the error that this machine raises, and what it says."
    with pytest.raises((RuntimeError, MemoryError)) as failed:
        work()
    return type(failed.value).__name__, str(failed.value)


def test_a_generator_goes_on_with_half_the_windows(run, monkeypatch, capsys):  # noqa: F811
    make_noisy(run)
    config = config_of(flow__batch_size=4, flow__steps=3, gan__samples=8)
    sizes = run_out_above(monkeypatch, 2)
    history, _, windows = fit_flow(run, config)
    assert sizes == [2, 2, 2] and len(history["steps"]["loss"]) == 3 and len(windows) == 8
    assert capsys.readouterr().out.startswith("memory ran out with flow.batch_size = 4")


def test_a_generator_that_does_not_fit_is_one_clear_error(run, monkeypatch):  # noqa: F811
    make_noisy(run)
    run_out_above(monkeypatch, 1)
    with pytest.raises(MusemoError, match="flow.batch_size = 4 and 2: lower it"):
        fit_flow(run, config_of(flow__batch_size=4, flow__steps=3, gan__samples=8))
    assert not run.has("flow.safetensors")


def test_the_predictor_goes_on_with_half_the_pictures(run, monkeypatch, capsys):  # noqa: F811
    make_noisy(run)
    sizes = []

    def train_or_fail(model, batches, *arguments, **options):
        seen = [len(labels) for _, labels, _ in batches]
        if max(seen) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(max(seen))
        return train_epoch(model, batches, *arguments, **options)

    monkeypatch.setattr("musemo.vit_training.train_epoch", train_or_fail)
    record = fit_vit(run, config_of(dataset__batch_size=6))
    assert set(sizes) == {3} and len(record["epochs"]) == len(sizes) and record["batch_size"] == 3
    assert "memory ran out with dataset.batch_size = 6" in capsys.readouterr().out


def test_a_kernel_that_dies_is_one_clear_error(tmp_path, monkeypatch):
    def die(*arguments, **options):
        raise DeadKernelError("Kernel died")

    monkeypatch.setattr(execution.papermill, "execute_notebook", die)
    with execution.suite_bar(1) as (_, line), pytest.raises(MusemoError) as failed:
        execution.execute(Run(tmp_path), "07_synthesis", line)
    assert (
        "07_synthesis: the kernel died, most likely for want of memory; lower synthesis.songs"
        in (str(failed.value))
    )


@pytest.mark.parametrize(
    ("section", "name", "said", "field"),
    [
        ("05_gan_training", "MemoryError", "", "gan.batch_size or flow.batch_size"),
        (
            "07_synthesis",
            "RuntimeError",
            "[enforce] not enough memory: you tried",
            "synthesis.songs",
        ),
        ("10_vit", *said_by(lambda: torch.empty(2**50)), "dataset.batch_size"),
        ("10_vit", *said_by(lambda: np.empty(2**50)), "dataset.batch_size"),
        (
            "11_vit_training",
            "OutOfMemoryError",
            "CUDA out of memory",
            "small.batch_size or dataset.batch_size",
        ),
    ],
)
def test_a_section_that_runs_out_names_the_setting(
    section, name, said, field, tmp_path, monkeypatch
):
    def run_out(*arguments, **options):
        raise PapermillExecutionError(1, 1, "cell", name, said, [])

    monkeypatch.setattr(execution.papermill, "execute_notebook", run_out)
    with execution.suite_bar(1) as (_, line), pytest.raises(MusemoError) as failed:
        execution.execute(Run(tmp_path), section, line)
    assert f"{section}: memory ran out; lower {field} with --set" in str(failed.value)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or "LD_PRELOAD" in os.environ, reason="needs glibc's own"
)
def test_memory_that_was_let_go_is_used_again():
    code = """
import resource, sys, torch
if "reuse" in sys.argv:
    import musemo.core
pages = []
for _ in range(40):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**23)  # 32 MB
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(pages[20:]) / (20 * 2**15 / 4))
"""
    shares = []
    for how in ("reuse", "as it comes"):
        command = [sys.executable, "-c", code, how]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        shares.append(float(done.stdout))
    if shares[1] < 0.9:
        pytest.skip("the system's pages are larger than 4 kB")
    assert shares[0] < 0.5
