"""A GPU whose memory runs out: half the batch once, with a word, then one clear error."""

import pytest
import torch
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
