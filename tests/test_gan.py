"""The generator and its training: sizes, rules, what may leak and what must not."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrize

from musemo.config import GanConfig
from musemo.core import MusemoError, Run, seed_for
from musemo.drawing import build_generator, generate
from musemo.gan import build_gan
from musemo.gan_training import (
    GanLearner,
    fit_gan,
    next_steps,
)
from musemo.generator_training import Songs, train
from musemo.movers import Mover
from musemo.presets import make_config

TINY = {
    "gan.channels": 16,
    "gan.narrowest": 8,
    "gan.latent": 8,
    "gan.condition": 4,
    "gan.epochs": 1,
    "gan.batch_size": 4,
    "gan.samples": 8,
}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("MUSEMO_QUIET", "1")


def tiny(**values):
    return make_config("smoke", TINY | values)


def music(count=8, frames=80):
    rng = np.random.default_rng(0)
    labels = rng.uniform(-1, 1, (count, 2))
    log_mel = np.clip(
        labels[:, 1, None, None] / 2 + rng.normal(0, 0.2, (count, 128, frames)), -1, 1
    )
    return log_mel.astype(np.float16), np.full(count, frames), labels


def write_run(folder: Path, held_out: float) -> Run:
    log_mel, frames, labels = music()
    table = pd.DataFrame({"row": np.arange(8), "frames": frames})
    table["split"] = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    labels[4:], log_mel[4:] = held_out, held_out
    table[["valence", "arousal"]] = labels
    run = Run(folder)
    run.save("songs.csv", table)
    run.save("logmel.npy", log_mel)
    return run


def artifacts(run: Run, name: str = "gan") -> dict[str, bytes]:
    "Read all that training left, but for the one file that says how long it took."
    paths = sorted(run.folder.glob(f"{name}*"))
    return {path.name: path.read_bytes() for path in paths if "times" not in path.name}


def learner_of(config, songs=None):
    torch.manual_seed(0)
    return GanLearner(config, songs or Songs(*music()), CPU)


@pytest.mark.parametrize("frames", [16, 64, 101, 1292])
def test_any_width(frames):
    generator, discriminator = build_gan(make_config("full", TINY | {"gan.frames": frames}))
    labels = torch.zeros(2, 2)
    drawn = generator(torch.randn(2, generator.noise_size(frames)), labels)
    assert drawn.shape == (2, 1, 128, frames)
    assert drawn.abs().max() <= 1
    columns = -(-frames // 16)
    assert [x.shape for x in discriminator(drawn, labels)] == [
        (2, 1),
        (2, columns),
        (2, 8 * columns),
    ]


@pytest.mark.parametrize("bands", [16, 64])
@pytest.mark.parametrize("after", [0, 3])
def test_other_bands_and_attention(bands, after):
    config = tiny(**{"audio.n_mels": bands, "gan.attention_after": after})
    generator, discriminator = build_gan(config)
    drawn = generator(torch.randn(3, generator.noise_size(64)), torch.zeros(3, 2))
    assert drawn.shape == (3, 1, bands, 64)
    sum(x.sum() for x in discriminator(drawn, torch.zeros(3, 2))).backward()
    assert all(p.grad is not None for p in generator.parameters())


def test_every_layer_of_the_discriminator_has_spectral_norm():
    discriminator = build_gan(tiny())[1]
    kinds = torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Linear
    layers = [m for m in discriminator.modules() if isinstance(m, kinds)]
    assert len(layers) == 10
    assert all(parametrize.is_parametrized(layer, "weight") for layer in layers)


def test_the_generator_has_the_specified_layers():
    generator = build_gan(tiny())[0]
    transposed = [m for m in generator.modules() if isinstance(m, torch.nn.ConvTranspose1d)]
    assert len(transposed) == 4
    assert len([m for m in generator.condition if isinstance(m, torch.nn.Linear)]) == 2
    assert generator.attention.gamma == 0


def test_balance_rule_at_its_bounds():
    gan = GanConfig()
    table = {(0.599, 1): 2, (0.599, 3): 3, (0.6, 3): 1, (0.95, 2): 1, (0.951, 3): 2, (1.0, 1): 1}
    for (accuracy, steps), wanted in table.items():
        assert next_steps(accuracy, steps, gan) == wanted, (accuracy, steps)


def test_specified_numbers_are_the_defaults():
    gan = make_config("full").gan
    assert (gan.weak_below, gan.strong_above, gan.min_steps, gan.max_steps) == (0.6, 0.95, 1, 3)
    assert (gan.discriminator_rate, gan.clip_norm, gan.decay) == (0.5, 1.0, 0.99)
    assert (gan.epochs, gan.batch_size) == (10, 16)


def test_no_gradient_crosses_sides():
    learner = learner_of(tiny())
    real, labels, options = torch.randn(4, 1, 128, 64).tanh(), torch.zeros(4, 2), {"rate": 1e-3}
    learner.generator_step(real, labels, step=0, **options)
    assert all(p.grad is None for p in learner.discriminator.network.parameters())
    assert all(p.requires_grad for p in learner.discriminator.network.parameters())
    learner.generator.adam.zero_grad()
    learner.discriminator_step(real, labels, step=0, **options)
    assert all(p.grad is None for p in learner.generator.network.parameters())


def test_clipping_bites_after_measuring():
    learner = learner_of(tiny(**{"gan.clip_norm": 1e-3}))
    row = learner.generator_step(None, torch.zeros(4, 2), rate=1e-3, step=0)
    network = learner.generator.network
    norms = [p.grad.norm() for p in network.parameters() if p.grad is not None]
    assert torch.stack(norms).norm().item() == pytest.approx(1e-3, rel=1e-2)
    assert row["generator_norm"] > 1e-2


class Undecided(nn.Module):
    "A discriminator that says the same of everything."

    def __init__(self):
        super().__init__()
        self.verdict = nn.Parameter(torch.zeros(1))

    def forward(self, windows, labels):
        return (self.verdict.expand(len(windows), 1),) * 2


@pytest.mark.parametrize("swapped", [0.0, 0.5, 1.0])
def test_as_much_is_told_to_be_true_as_false(swapped):
    learner, network = learner_of(tiny(**{"gan.swapped": swapped})), Undecided()
    learner.discriminator = Mover(network, betas=(0.5, 0.9), clip=1.0, scaled=False)
    real = torch.randn(4, 1, 128, 64).tanh()
    learner.discriminator_step(real, torch.zeros(4, 2), rate=1e-3, step=0)
    assert network.verdict.grad.abs().item() < 1e-6, "undecided is right: nothing pulls"


def test_the_rule_decides_the_turns():
    learner, (real, labels) = learner_of(tiny()), Songs(*music()).batch(4, 0, width=64, seed=0)
    row = learner.learn(real, labels, [])
    assert row["discriminator_steps"] == 1
    weak = row | {"accuracy_real": 0.5, "accuracy_fake": 0.5}
    assert learner.learn(real, labels, [weak])["discriminator_steps"] == 2


@pytest.mark.parametrize(("count", "batch"), [(1, 2), (2, 2), (3, 16), (5, 4)])
def test_few_songs(count, batch):
    log_mel, frames, labels = music(count, frames=20)
    songs = Songs(log_mel, frames, labels)
    learner = learner_of(tiny(**{"gan.batch_size": batch}), songs)
    rows = train(learner, songs, "gan", seed=0)
    assert len(rows) == -(-count // batch)
    assert np.isfinite([row["generator_loss"] for row in rows]).all()


def test_a_bad_number_stops_training():
    log_mel, frames, labels = music()
    log_mel[:, 5] = np.nan
    with pytest.raises(MusemoError, match=r"stopped at step 1: .*= nan.*gan.learning_rate"):
        train(learner_of(tiny()), Songs(log_mel, frames, labels), "gan", seed=0)


def test_only_training_songs_count_and_runs_repeat(tmp_path):
    runs = [write_run(tmp_path / str(i), value) for i, value in enumerate((-1.0, 0.75))]
    for run in runs:
        fit_gan(run, tiny())
    first, second = map(artifacts, runs)
    assert set(first) == {
        "gan.safetensors",
        "gan_history.json",
        "gan_samples.csv",
        "gan_samples.npy",
    }
    assert first == second
    fit_gan(runs[0], tiny(seed=1))
    assert artifacts(runs[0])["gan.safetensors"] != second["gan.safetensors"]


def test_saved_weights_draw_the_saved_samples(tmp_path):
    run, config = write_run(tmp_path, 0.0), tiny()
    _, asked, windows = fit_gan(run, config)
    saved = load_file(run.path("gan.safetensors"))
    pair = dict(zip(("generator", "discriminator"), build_gan(config), strict=True))
    for name, network in pair.items():
        own = {k.removeprefix(f"{name}."): v for k, v in saved.items() if k.startswith(f"{name}.")}
        network.load_state_dict(own)
    seeds = [seed_for(config.seed, "sample", row) for row in range(8)]
    again = generate(pair["generator"], asked.to_numpy(), seeds=seeds, frames=64)
    np.testing.assert_allclose(again, windows, atol=2e-3)
    assert windows.shape == (8, 128, 64)
    assert windows.dtype == np.float16
    assert asked.abs().to_numpy().max() <= 1


def test_labels_on_another_scale_are_refused(tmp_path):
    run = write_run(tmp_path, 0.0)
    songs = run.load("songs.csv")
    songs.loc[2, "arousal"] = 5.0
    run.save("songs.csv", songs)
    with pytest.raises(MusemoError, match=r"training song 2 is .*arousal 5: .*1-9 scale"):
        fit_gan(run, tiny())
    assert not list(run.folder.glob("gan*"))


def test_conditions_and_seeds_are_counted():
    generator, options = build_gan(tiny())[0], {"frames": 64}
    for kind in ("gan", "residual", "flow"):
        some = build_generator(tiny(), kind)
        assert generate(some, np.empty((0, 2)), seeds=[], **options).shape == (0, 128, 64)
    for seeds in ([1], [1, 2, 3]):
        with pytest.raises(MusemoError, match=f"{len(seeds)} seeds for 2 conditions"):
            generate(generator, np.zeros((2, 2)), seeds=seeds, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_picture_itself_is_made_in_full(dtype):
    "Steps near 1 are .004 and more apart in half precision; the picture has finer ones."
    generator = build_gan(tiny())[0].eval()
    noise, labels = torch.randn(2, generator.noise_size(64)), torch.zeros(2, 2)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        drawn = generator(noise, labels)
    assert drawn.dtype == torch.float32
    assert (drawn != drawn.to(dtype)).float().mean() > 0.5
    with torch.no_grad():
        assert (generator(noise, labels) - drawn).abs().max() < 0.1
