# %%
#| default_exp gan_training

# %% [markdown]
# # Training the generators
#
# > Two networks take turns and a rule keeps them level, a flow learns alone; all is on record.
#
# In come the training songs' spectrograms and labels, nothing of the other parts; out come the
# generators, their histories and some windows that section 6 judges. The GAN's rule and its
# numbers are the specification's; what this scale needed on top is said where it stands.
#
# Shapes: B batch, N songs, M mel bands, T frames.

# %%
#| export
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from musemo.config import Config, GanConfig
from musemo.core import (
    MusemoError,
    Run,
    autocast,
    cut_windows,
    load_part,
    pick_device,
    pick_precision,
    progress,
    rng_for,
    seed_everything,
    seed_for,
    torch_rng_for,
)
from musemo.gan import Discriminator, Generator, build_gan, draw_windows

# %%
#| hide
import tempfile
from copy import deepcopy
from pathlib import Path

from fastcore.test import test_close, test_eq, test_fail

from musemo.presets import make_config
from musemo.core import COLORS, plot_log_mel, subplots


# %% [markdown]
# ## Who is ahead
#
# The discriminator's accuracy on real and on drawn windows says who is ahead. It is read off
# the logits of the step that was just made, at no cost. A logit above zero means "real".


# %%
#| export
def accuracies(
    real_logits: torch.Tensor,  # (B,)
    fake_logits: torch.Tensor,  # (B,)
) -> tuple[float, float]:  # shares in [0, 1] judged rightly: of the real, of the drawn
    "Read the discriminator's accuracy off its logits."
    return (real_logits > 0).float().mean().item(), (fake_logits < 0).float().mean().item()


# %%
test_eq(accuracies(torch.tensor([2.0, -1.0]), torch.tensor([-3.0, -0.1])), (0.5, 1.0))


# %% [markdown]
# The balance rule: a discriminator below 60 % gets one more step, up to three; above 95 % one
# fewer, down to one; in between they take turns. The bounds themselves change nothing.


# %%
#| export
def next_steps(
    accuracy: float,  # share in [0, 1], mean of real and drawn
    steps: int,  # of the discriminator in this round
    gan: GanConfig,
) -> int:  # of the discriminator in the next round
    "Choose how often the discriminator steps in the next round."
    if accuracy < gan.weak_below:
        return min(steps + 1, gan.max_steps)
    if accuracy > gan.strong_above:
        return max(steps - 1, gan.min_steps)
    return gan.min_steps


# %%
gan = GanConfig()
test_eq([next_steps(0.59, steps, gan) for steps in (1, 2, 3)], [2, 3, 3])
test_eq([next_steps(0.96, steps, gan) for steps in (1, 2, 3)], [1, 1, 2])
test_eq([next_steps(share, 3, gan) for share in (0.60, 0.80, 0.95)], [1, 1, 1])


# %% [markdown]
# ## Losses
#
# Both sides pay binary cross-entropy on logits, as the specification asks. The discriminator
# gets a third kind of row: a real window with another song's label, to be called false.
# Without it a beautiful picture of the wrong emotion would cost the generator nothing.


# %%
#| export
def verdict_loss(
    logits: torch.Tensor,  # (B,) above 0: judged real
    truth: float,  # 1: real, 0: not
) -> torch.Tensor:  # nats
    "Cross-entropy of the discriminator's verdicts with what they should be."
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth))


# %% [markdown]
# Whoever cannot tell pays ln 2 a kind: that is the level both losses are read against.

# %%
test_close(verdict_loss(torch.zeros(4), 1.0).item(), np.log(2))
test_close(verdict_loss(torch.full((4,), 90.0), 0.0).item(), 90)


# %%
#| export
def check_finite(step: int, **losses: float) -> None:
    "Raise MusemoError with the step and the values where a loss is not a number."
    if not np.isfinite(list(losses.values())).all():
        values = ", ".join(f"{name} = {value}" for name, value in losses.items())
        raise MusemoError(
            f"GAN training stopped at step {step}: {values}; "
            "lower gan.learning_rate, or set precision=float32"
        )


# %%
check_finite(3, generator_loss=0.7)
test_fail(lambda: check_finite(3, generator_loss=float("nan")), contains="step 3: generator_loss")


# %% [markdown]
# ## One side of the contest
#
# A network with its Adam, its decay, its clipping at norm 1 and, in float16, its loss scale.
# The scale is undone before clipping: else the clip would bite on scaled gradients.


# %%
#| export
class Side:
    "A network and what moves it; `step` follows one loss and returns the gradient norm."

    def __init__(self, network: nn.Module, rate: float, gan: GanConfig, *, scaled: bool):
        self.network, self.gan, self.rate = network, gan, rate
        self.optimizer = torch.optim.Adam(network.parameters(), lr=rate, betas=(gan.beta1, 0.999))
        device = next(network.parameters()).device.type
        self.scaler = torch.amp.GradScaler(device, enabled=scaled)

    def step(self, loss: torch.Tensor) -> float:  # norm of the gradient before clipping
        "Follow the gradient of a loss once."
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.gan.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm.item()

    def decay(self) -> None:
        "End an epoch: lower the learning rate."
        self.rate *= self.gan.decay
        self.optimizer.param_groups[0]["lr"] = self.rate


# %% [markdown]
# A gradient of norm 100 arrives as one of norm 1, and the rate falls by 1 % an epoch.

# %%
line = nn.Linear(1, 1, bias=False)
side = Side(line, 0.1, gan, scaled=False)
test_close(side.step(100 * line.weight.sum()), 100)
test_close(line.weight.grad.abs().item(), 1, eps=1e-5)
side.decay()
test_close(side.rate, 0.099)


# %% [markdown]
# ## What both sides share
#
# Drawn windows are asked for emotions that real songs have, moved a little, as section 7 will
# ask. Real labels are moved alike, or the discriminator would know drawn ones by odd numbers.
# Instance noise veils what the discriminator sees, real and drawn: details too fine to learn
# early cannot give a drawing away. It fades to nothing by the end.


# %%
#| export
class Arena:
    "Both sides, where they meet, and the randomness between them."

    def __init__(self, config: Config, device: torch.device, rng: np.random.Generator):
        self.gan, self.device, self.jitter = config.gan, device, config.synthesis.jitter
        self.precision = pick_precision(device, config.precision)
        # Channels last halves the time of a step on a CPU.
        pair = (n.to(device, memory_format=torch.channels_last) for n in build_gan(config))
        scaled = self.precision == torch.float16
        shares = (1.0, self.gan.discriminator_rate)
        self.generator, self.discriminator = (
            Side(network, share * self.gan.learning_rate, self.gan, scaled=scaled)
            for network, share in zip(pair, shares, strict=True)
        )
        self.average = AveragedModel(
            self.generator.network, multi_avg_fn=get_ema_multi_avg_fn(self.gan.averaging)
        )
        self.rng = torch.Generator(device).manual_seed(int(rng.integers(2**31)))
        self.noise = self.gan.instance_noise  # the loop lets it fade

    def normal(self, *shape: int) -> torch.Tensor:
        "Draw normal noise."
        return torch.randn(*shape, generator=self.rng, device=self.device)

    def move(self, labels: torch.Tensor) -> torch.Tensor:
        "Move labels a little within [-1, 1]: (B, 2) -> (B, 2)."
        return (labels + self.jitter * self.normal(*labels.shape)).clamp(-1, 1)

    def veil(self, pictures: torch.Tensor) -> torch.Tensor:
        "Add the present instance noise to what the discriminator sees: (B, 1, M, T)."
        return pictures + self.noise * self.normal(*pictures.shape)

    def ask(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        "Have one window drawn for each label, in another order: (B, 1, M, T), (B, 2)."
        order = torch.randperm(len(labels), generator=self.rng, device=self.device)
        wanted = self.move(labels[order])
        noise = self.normal(len(labels), self.generator.network.latent)
        return self.generator.network(noise, wanted), wanted


# %% [markdown]
# ## The adversarial step
#
# The discriminator's turn. Real and drawn windows go in apart, since it also looks at how much
# a batch differs within itself. What the generator draws here needs no gradient.


# %%
#| export
def discriminator_step(
    arena: Arena,
    real: torch.Tensor,  # (B, 1, M, T) in [-1, 1]
    labels: torch.Tensor,  # (B, 2)
) -> dict[str, float]:  # loss, accuracies, gradient norm
    "Let the discriminator learn once."
    side = arena.discriminator
    with autocast(arena.device, arena.precision):
        with torch.no_grad():
            drawn, wanted = arena.ask(labels)
        own, others = arena.move(labels), arena.move(labels.roll(1, 0))
        turns = (real, own), (drawn, wanted), (real, others)
        logits = [side.network(arena.veil(seen), asked).float() for seen, asked in turns]
    weights = 1 + arena.gan.swapped, 1, arena.gan.swapped  # as much true as false
    loss = sum(w * verdict_loss(x, t) for w, x, t in zip(weights, logits, (1, 0, 0), strict=True))
    row = {"discriminator_loss": loss.item(), "discriminator_norm": side.step(loss)}
    return row | dict(zip(("accuracy_real", "accuracy_fake"), accuracies(*logits[:2]), strict=True))


# %% [markdown]
# The generator's turn. Its loss runs through the discriminator, which must not learn from it:
# the discriminator's weights ask for no gradient meanwhile, which saves their cost as well.


# %%
#| export
def generator_step(
    arena: Arena,
    labels: torch.Tensor,  # (B, 2)
) -> dict[str, float]:  # loss, gradient norm
    "Let the generator learn once; leaves nothing in the discriminator."
    judge = arena.discriminator.network.requires_grad_(False)
    with autocast(arena.device, arena.precision):
        drawn, wanted = arena.ask(labels)
        logits = judge(arena.veil(drawn), wanted)
    loss = verdict_loss(logits.float(), 1)
    norm = arena.generator.step(loss)
    judge.requires_grad_(True)
    arena.average.update_parameters(arena.generator.network)
    return {"generator_loss": loss.item(), "generator_norm": norm}


def play_round(
    arena: Arena,
    real: torch.Tensor,  # (B, 1, M, T) in [-1, 1]
    labels: torch.Tensor,  # (B, 2)
    *,
    steps: int,  # of the discriminator
) -> dict[str, float]:  # what the history keeps of a round
    "Play the discriminator's steps and one of the generator."
    for _ in range(steps):
        row = discriminator_step(arena, real, labels)
    row |= generator_step(arena, labels)
    ratio = row["generator_loss"] / max(row["discriminator_loss"], 1e-8)
    return row | {"loss_ratio": ratio, "discriminator_steps": steps}


# %% [markdown]
# The proof that the generator's loss leaves nothing behind: the discriminator has no gradient
# after it and not a bit of its weights has moved. And each side does learn from its own step.

# %%
tiny = make_config("smoke", {"gan.channels": 16, "gan.latent": 8, "gan.condition": 4})
arena = Arena(tiny, torch.device("cpu"), np.random.default_rng(0))
real, labels = torch.randn(4, 1, 128, 64).tanh(), torch.rand(4, 2) * 2 - 1
before = deepcopy(arena.discriminator.network.state_dict())
row = generator_step(arena, labels)
assert row["generator_norm"] > 0
assert all(weight.grad is None for weight in arena.discriminator.network.parameters())
weights = dict(arena.discriminator.network.named_parameters())
for name, weight in weights.items():
    assert torch.equal(weight, before[name]), name
drawn = deepcopy(arena.generator.network.state_dict())
discriminator_step(arena, real, labels)
assert any(not torch.equal(weight, before[name]) for name, weight in weights.items())
for name, weight in arena.generator.network.state_dict().items():
    assert torch.equal(weight, drawn[name]), name
play_round(arena, real, labels, steps=2)


# %% [markdown]
# ## An epoch of windows
#
# Each song gives a number of windows an epoch, cut anew at random and only as they are needed.
# The last batch is no leftover: batches differ by one window at most.


# %%
#| export
def epoch_batches(
    songs: int,  # N
    gan: GanConfig,
    rng: np.random.Generator,
) -> list[np.ndarray]:  # song indices of each batch
    "Deal the songs of one epoch into batches."
    order = rng.permutation(np.repeat(np.arange(songs), gan.windows_per_song))
    return np.array_split(order, -(-len(order) // gan.batch_size))


def mean_level(
    log_mel: np.ndarray,  # (N, M, T) in [-1, 1]
    frames: np.ndarray,  # (N,) valid frames
) -> torch.Tensor:  # (M, 1), before tanh
    "Find what the generator's `level` must be to draw the songs' mean spectrum."
    parts = [x[:, :n].mean(axis=1, dtype=np.float32) for x, n in zip(log_mel, frames, strict=True)]
    return torch.from_numpy(np.mean(parts, axis=0)[:, None]).clamp(-0.99, 0.99).atanh()


# %%
dealt = epoch_batches(33, gan, np.random.default_rng(0))
test_eq([len(part) for part in dealt], [11, 11, 11])
test_eq(sorted(np.concatenate(dealt)), range(33))
flat = np.full((2, 128, 9), 0.5, dtype=np.float16)
flat[:, :, 5:] = -1  # padding must not count
test_close(mean_level(flat, np.array([5, 5])).tanh().mean().item(), 0.5, eps=1e-3)

# %% [markdown]
# ## The history
#
# Every round and every epoch is kept, as columns. A gradient norm may overflow in float16
# while the loss scale is being found; such a number is kept as empty, never as NaN.

# %%
#| export
HISTORY_UNITS = {
    "generator_loss": "nats; ln 2 where the discriminator is unsure",
    "discriminator_loss": "nats; 2 (1 + swapped) ln 2 where it is unsure",
    "loss_ratio": "generator's loss / discriminator's loss",
    "accuracy_real": "share of real windows judged real",
    "accuracy_fake": "share of drawn windows judged drawn",
    "discriminator_steps": "steps a generator step",
    **dict.fromkeys(("generator_norm", "discriminator_norm"), "gradient's norm before clipping"),
    **dict.fromkeys(("generator_rate", "discriminator_rate"), "learning rate"),
}


def as_columns(rows: list[dict[str, float]]) -> dict[str, list[float | None]]:
    "Turn rows into columns fit for JSON: six decimals, None for what is not finite."
    table = pd.DataFrame(rows, dtype=float).replace([np.inf, -np.inf], np.nan).round(6)
    return table.astype(object).where(table.notna(), None).to_dict("list")


def epoch_row(rounds: list[dict[str, float]], arena: Arena) -> dict[str, float]:
    "Average an epoch's rounds and note the rates they were played at."
    row = {name: np.mean([part[name] for part in rounds]) for name in rounds[0]}
    rates = arena.generator.rate, arena.discriminator.rate
    return row | dict(zip(("generator_rate", "discriminator_rate"), rates, strict=True))


# %%
test_eq(as_columns([{"a": 1}, {"a": float("inf")}]), {"a": [1.0, None]})


# %% [markdown]
# ## The loop
#
# Batch, round, rule, log; at the end of an epoch both rates decay. What comes back is the
# running average of the generator's weights: single steps swing from one fashion to the next,
# and their average draws what they have in common.


# %%
#| export
def train_gan(
    log_mel: np.ndarray,  # (N, M, T) in [-1, 1], training songs only
    frames: np.ndarray,  # (N,) valid frames
    labels: np.ndarray,  # (N, 2) valence and arousal in [-1, 1]
    config: Config,
    device: torch.device,
    rng: np.random.Generator,
) -> tuple[dict, Generator, Discriminator]:
    "Train the pair; raises MusemoError with step and values where a loss is not finite."
    gan, arena = config.gan, Arena(config, device, rng)
    arena.generator.network.level.data.copy_(mean_level(log_mel, frames))
    wanted = torch.as_tensor(np.asarray(labels), dtype=torch.float32, device=device)
    rounds, epochs, steps = [], [], gan.min_steps
    for epoch in range(1, gan.epochs + 1):
        batches = epoch_batches(len(labels), gan, rng)
        for songs in progress(batches, desc=f"GAN, epoch {epoch} of {gan.epochs}"):
            windows, _ = cut_windows(log_mel[songs], frames[songs], gan.frames, rng=rng)
            real = torch.from_numpy(windows)[:, None].to(device)
            arena.noise = gan.instance_noise * (1 - len(rounds) / (gan.epochs * len(batches)))
            row = play_round(arena, real, wanted[songs], steps=steps)
            rounds.append(row)
            check_finite(len(rounds), **{k: v for k, v in row.items() if k.endswith("_loss")})
            steps = next_steps((row["accuracy_real"] + row["accuracy_fake"]) / 2, steps, gan)
        epochs.append(epoch_row(rounds[-len(batches) :], arena))
        arena.generator.decay()
        arena.discriminator.decay()
    history = {"rounds": as_columns(rounds), "epochs": as_columns(epochs), "units": HISTORY_UNITS}
    return history, arena.average.module.eval(), arena.discriminator.network.eval()


# %% [markdown]
# Made-up songs, quiet for low arousal and loud for high: seconds of training at a toy size, and
# the same seed gives the same weights.

# %%
toy_values = {"gan.epochs": 3, "gan.batch_size": 6, "gan.learning_rate": 2e-3}
toy = make_config("smoke", {"gan.channels": 16, **toy_values})
toy_rng = np.random.default_rng(0)
toy_labels = toy_rng.uniform(-1, 1, (12, 2))
toy_songs = np.clip(
    0.5 * toy_labels[:, 1, None, None] + toy_rng.normal(0, 0.2, (12, 128, 80)), -1, 1
)


def train_toy(songs=toy_songs, config=toy):
    seed_everything(0)
    sizes = np.full(len(songs), songs.shape[2])
    rng = np.random.default_rng(1)
    return train_gan(songs, sizes, toy_labels, config, torch.device("cpu"), rng)


history, generator, discriminator = train_toy()
test_eq(len(history["rounds"]["generator_loss"]), 6)
test_close(history["epochs"]["generator_rate"], 2e-3 * 0.99 ** np.arange(3), eps=1e-6)
test_close(history["epochs"]["discriminator_rate"], 1e-3 * 0.99 ** np.arange(3), eps=1e-6)
test_eq(set(history["epochs"]), set(HISTORY_UNITS))
again = train_toy()[1].state_dict()
for name, weight in generator.state_dict().items():
    assert torch.equal(weight, again[name]), name

# %% [markdown]
# A spectrogram with a hole stops the training at once, with the step and both losses.

# %%
broken = np.where(toy_songs > 0.4, np.nan, toy_songs)
test_fail(lambda: train_toy(broken), contains="stopped at step 1: discriminator_loss = nan")


# %% [markdown]
# ## The stage
#
# It reads the training part and nothing else. The windows for section 6 are asked for emotions
# that training songs have, moved a little.


# %%
#| export
def draw_samples(
    generator: Generator,
    labels: np.ndarray,  # (N, 2) of training songs
    config: Config,
) -> tuple[pd.DataFrame, np.ndarray]:  # what was asked, and windows (n, M, T) float16
    "Draw the windows that section 6 judges."
    rng = rng_for(config.seed, "gan_samples")
    chosen = labels[rng.integers(len(labels), size=config.gan.samples)]
    asked = np.clip(chosen + rng.normal(0, config.synthesis.jitter, chosen.shape), -1, 1).round(4)
    noise = torch_rng_for(config.seed, "gan_samples")
    windows = draw_windows(generator, asked, rng=noise, batch_size=config.gan.batch_size)
    return pd.DataFrame(asked, columns=["valence", "arousal"]), windows


def fit_gan(
    run: Run,
    config: Config,
) -> tuple[dict, pd.DataFrame, np.ndarray]:  # history, what was asked, windows drawn
    "Train on the run's training songs, draw samples, and save both."
    songs, log_mel = load_part(run, "train")
    labels, frames = songs[["valence", "arousal"]].to_numpy(), songs["frames"].to_numpy()
    seed_everything(seed_for(config.seed, "gan_training"))
    rng = rng_for(config.seed, "gan_training")
    device = pick_device(config.device)
    history, *pair = train_gan(log_mel, frames, labels, config, device, rng)
    asked, windows = draw_samples(pair[0], labels, config)
    run.save("gan_samples.npy", windows)
    run.save("gan_samples.csv", asked)
    run.save("gan_history.json", history)
    weights = {
        f"{side}.{name}": value.detach().cpu().contiguous()
        for side, network in zip(("generator", "discriminator"), pair, strict=True)
        for name, value in network.state_dict().items()
    }
    run.save("gan.safetensors", weights)
    return history, asked, windows


# %% [markdown]
# A run in which the songs of validation and test are noise leaves the very same files as one in
# which they are silent: the generator has not seen them.


# %%
def fit_toy(folder, value):
    "Run the stage with validation and test songs filled with one value."
    run, songs = Run(Path(folder)), np.concatenate([toy_songs, np.full_like(toy_songs[:4], value)])
    table = pd.DataFrame(
        {"row": np.arange(16), "frames": 80, "split": ["train"] * 12 + ["val"] * 4}
    )
    table[["valence", "arousal"]] = np.concatenate([toy_labels, np.full((4, 2), value)])
    run.save("songs.csv", table)
    run.save("logmel.npy", songs.astype(np.float16))
    fit_gan(run, toy)
    return {p.name: p.read_bytes() for p in run.folder.glob("gan*")}


with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
    left, right = fit_toy(one, -1.0), fit_toy(two, 0.5)
    names = ["gan.safetensors", "gan_history.json", "gan_samples.csv", "gan_samples.npy"]
    test_eq(sorted(left), names)
    assert left == right

# %% [markdown]
# ## The flow's step
#
# A flow is trained like any regression. Take a window and noise, go to a random place on the
# line between them, guess the window. Near the end of the line a small error of the guess is a
# large one of the direction, so the weight grows as 1 / (1 - t)^2, up to a bound. The places of
# a batch are spread evenly: with as much chance as in eight free draws, steps would differ wildly.

# %%
#| export flow_training
import math

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from musemo.config import Config, FlowConfig
from musemo.core import (
    MusemoError,
    Run,
    autocast,
    cut_windows,
    load_part,
    pick_device,
    pick_precision,
    progress,
    rng_for,
    seed_everything,
    seed_for,
    torch_rng_for,
)
from musemo.flow import Flow, build_flow


# %%
#| export flow_training
def flow_loss(
    net: Flow,
    real: torch.Tensor,  # (B, 1, M, T) standardised
    labels: torch.Tensor,  # (B, 2) in [-1, 1]
    rng: torch.Generator,  # on the device of `real`
) -> torch.Tensor:  # squared error of the direction, in deviations squared
    "Guess windows from random places on the line, some of them without their emotion."
    options, count = {"generator": rng, "device": real.device}, len(real)
    t = (torch.arange(count, device=real.device) + torch.rand(count, **options)) / count
    noise = torch.randn(real.shape, **options)
    asked = (torch.rand(count, 1, **options) >= net.flow.unasked).float()
    moved = labels + net.flow.jitter * torch.randn(labels.shape, **options)
    place = t[:, None, None, None]
    guess = net.guess(place * real + (1 - place) * noise, t, moved.clamp(-1, 1), asked)
    weight = 1 / (1 - t).clamp(min=net.flow.near_end).square()
    return (weight * (guess.float() - real).square().mean((1, 2, 3))).mean()


def flow_rate(step: int, flow: FlowConfig) -> float:  # share of the learning rate
    "Rise over the warm-up, then fall as a cosine to zero."
    return min((step + 1) / flow.warm_up, (1 + math.cos(math.pi * step / flow.steps)) / 2)


# %%
toy_flow_values = {"flow.channels": [32, 32, 32], "flow.steps": 30, "flow.warm_up": 5}
small = make_config("smoke", toy_flow_values)
rates = [flow_rate(step, small.flow) for step in range(30)]
test_eq((rates[0], rates.index(max(rates))), (0.2, 4))
assert rates[-1] < 0.01
net, labels = build_flow(small), torch.zeros(4, 2)
loss = flow_loss(net, torch.zeros(4, 1, 128, 64), labels, torch.Generator().manual_seed(0))
assert loss.isfinite()


# %% [markdown]
# Pictures are standardised with the training songs alone: the mean of each band, and one
# deviation for all of them, so that bands keep their differences.


# %%
#| export flow_training
def standard_levels(
    log_mel: np.ndarray,  # (N, M, T) in [-1, 1]
    frames: np.ndarray,  # (N,) valid frames
) -> tuple[torch.Tensor, torch.Tensor]:  # band means (M, 1), deviation (1,)
    "Measure what to take off songs, and what to divide them by."
    songs = [x[:, :n].astype(np.float32) for x, n in zip(log_mel, frames, strict=True)]
    means = np.mean([x.mean(axis=1) for x in songs], axis=0)[:, None]
    spread = np.sqrt(np.mean([np.square(x - means).mean() for x in songs]))
    return torch.from_numpy(means), torch.tensor([max(float(spread), 1e-3)])


# %%
flat = np.zeros((2, 4, 9), dtype=np.float16)
flat[0, :, :5], flat[1, :, :5] = 0.5, -0.5
means, deviation = standard_levels(flat, np.array([5, 5]))
test_close((means.abs().max().item(), deviation.item()), (0, 0.5))


# %% [markdown]
# The loop has no contest to balance: batch, loss, step, log. What comes back is the running
# average of the weights, as in the GAN.


# %%
#| export flow_training
def train_flow(
    log_mel: np.ndarray,  # (N, M, T) in [-1, 1], training songs only
    frames: np.ndarray,  # (N,) valid frames
    labels: np.ndarray,  # (N, 2) valence and arousal in [-1, 1]
    config: Config,
    device: torch.device,
    rng: np.random.Generator,
) -> tuple[dict, Flow]:
    "Train the flow; raises MusemoError with the step where the loss is not finite."
    flow, precision = config.flow, pick_precision(device, config.precision)
    net = build_flow(config)
    net.band_means, net.deviation = standard_levels(log_mel, frames)
    net = net.to(device, memory_format=torch.channels_last)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(flow.averaging))
    optimizer = torch.optim.AdamW(net.parameters(), flow.learning_rate, betas=(0.9, 0.99))
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    draws = torch.Generator(device).manual_seed(int(rng.integers(2**31)))
    wanted = torch.as_tensor(np.asarray(labels), dtype=torch.float32, device=device)
    history = {"loss": [], "norm": [], "rate": []}
    for step in progress(range(flow.steps), desc="flow"):
        optimizer.param_groups[0]["lr"] = flow.learning_rate * flow_rate(step, flow)
        songs = rng.integers(len(wanted), size=flow.batch_size)
        windows, _ = cut_windows(log_mel[songs], frames[songs], config.gan.frames, rng=rng)
        real = torch.from_numpy(windows)[:, None].to(device)
        with autocast(device, precision):
            loss = flow_loss(net, (real - net.band_means) / net.deviation, wanted[songs], draws)
        check_flow_loss(step + 1, loss.item())
        norm = follow_loss(net, loss, optimizer, scaler, flow.clip_norm)
        average.update_parameters(net)
        row = loss.item(), norm, optimizer.param_groups[0]["lr"]
        for column, value in zip(history.values(), row, strict=True):
            column.append(round(value, 6) if math.isfinite(value) else None)
    history["units"] = {"loss": "squared deviations", "norm": "before clipping", "rate": "-"}
    return history, average.module.eval()


# %%
#| export flow_training
def check_flow_loss(step: int, loss: float) -> None:
    "Raise MusemoError with step and value where the loss is not a number."
    if not math.isfinite(loss):
        raise MusemoError(
            f"flow training stopped at step {step}: loss = {loss}; "
            "lower flow.learning_rate, or set precision=float32"
        )


def follow_loss(
    net: nn.Module,
    loss: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    clip_norm: float,
) -> float:  # norm of the gradient before clipping
    "Follow the gradient of a loss once."
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(net.parameters(), clip_norm)
    scaler.step(optimizer)
    scaler.update()
    return norm.item()


# %% [markdown]
# The made-up songs again: the loss falls, and the same seed gives the same weights.


# %%
def train_toy_flow(songs=toy_songs):
    seed_everything(0)
    sizes, rng = np.full(len(songs), songs.shape[2]), np.random.default_rng(1)
    return train_flow(songs, sizes, toy_labels, small, torch.device("cpu"), rng)


flow_history, toy_flow = train_toy_flow()
assert np.mean(flow_history["loss"][-10:]) < 0.7 * np.mean(flow_history["loss"][:10])
for name, weight in train_toy_flow()[1].state_dict().items():
    assert torch.equal(weight, toy_flow.state_dict()[name]), name
test_fail(lambda: train_toy_flow(broken), contains="flow training stopped at step 1: loss = nan")


# %% [markdown]
# ## The flow's stage
#
# It asks for the same emotions as the GAN's: section 6 judges both on equal terms. Each window
# has its own noise.


# %%
#| export flow_training
@torch.inference_mode()
def draw_flow_samples(
    net: Flow,
    labels: np.ndarray,  # (N, 2) of training songs
    config: Config,
) -> tuple[pd.DataFrame, np.ndarray]:  # what was asked, and windows (n, M, T) float16
    "Draw the windows that section 6 judges."
    rng, count = rng_for(config.seed, "gan_samples"), config.gan.samples
    chosen = labels[rng.integers(len(labels), size=count)]
    asked = np.clip(chosen + rng.normal(0, config.synthesis.jitter, chosen.shape), -1, 1).round(4)
    noise, device = torch_rng_for(config.seed, "flow_samples"), net.deviation.device
    parts = []
    for some in progress(torch.tensor(asked, dtype=torch.float32).split(16), desc="flow draws"):
        start = torch.randn(len(some), net.latent, generator=noise)
        parts.append(net(start.to(device), some.to(device))[:, 0].half().cpu().numpy())
    return pd.DataFrame(asked, columns=["valence", "arousal"]), np.concatenate(parts)


def fit_flow(
    run: Run,
    config: Config,
) -> tuple[dict, pd.DataFrame, np.ndarray]:  # history, what was asked, windows drawn
    "Train on the run's training songs, draw samples, and save both."
    songs, log_mel = load_part(run, "train")
    labels, frames = songs[["valence", "arousal"]].to_numpy(), songs["frames"].to_numpy()
    seed_everything(seed_for(config.seed, "flow_training"))
    rng, device = rng_for(config.seed, "flow_training"), pick_device(config.device)
    history, net = train_flow(log_mel, frames, labels, config, device, rng)
    asked, windows = draw_flow_samples(net, labels, config)
    weights = net.state_dict().items()
    run.save("flow_samples.npy", windows)
    run.save("flow_samples.csv", asked)
    run.save("flow_history.json", history)
    run.save(
        "flow.safetensors",
        {f"generator.{name}": value.cpu().contiguous() for name, value in weights},
    )
    return history, asked, windows


# %% [markdown]
# ## On the run
#
# Both losses start near what an unsure judge pays. Neither should run to zero: then one side
# has won, and the other learns no more.

# %% tags=["parameters"]
run_folder = None  # a run's folder; None: a run at the smoke size, made on the spot

# %%
#| hide
from musemo.pipeline import open_run

run, config = open_run(run_folder, before=5)

# %%
history, asked, windows = fit_gan(run, config)
rounds, epochs = (pd.DataFrame(history[part]) for part in ("rounds", "epochs"))
epochs.round(3)

# %% [markdown]
# Thin lines are single rounds, thick ones their running mean. Between the grey bounds the
# discriminator takes one step a round; watch its steps answer when the accuracy leaves them.

# %%
figure, axes = subplots(2, 3, size=(3.8, 2.5))
panels = [
    ("Losses", "loss (nats)", ["generator_loss", "discriminator_loss"]),
    ("Discriminator's accuracy", "share judged rightly", ["accuracy_fake", "accuracy_real"]),
    ("Loss ratio", "generator / discriminator", ["loss_ratio"]),
    ("Discriminator's steps", "steps in a round", ["discriminator_steps"]),
    ("Gradients before clipping", "norm", ["generator_norm", "discriminator_norm"]),
]
width = max(1, len(rounds) // 20)
for panel, (title, unit, names) in zip(axes.flat, panels, strict=False):
    for name, color in zip(names, (COLORS["model"], COLORS["real"]), strict=False):
        mean = rounds[name].rolling(width, min_periods=1).mean()
        panel.plot(rounds[name], color=color, alpha=0.25, linewidth=0.7)
        panel.plot(mean, color=color, label=name.split("_")[0 if "accuracy" not in name else 1])
    panel.set(title=title, xlabel="round", ylabel=unit)
    if len(names) > 1:
        panel.legend()
for bound in (config.gan.weak_below, config.gan.strong_above):
    axes[0, 1].axhline(bound, color=COLORS["floor"], linestyle="--")
axes[0, 0].axhline(np.log(2), color=COLORS["floor"], linestyle="--")
axes[1, 0].set_yticks(range(config.gan.min_steps, config.gan.max_steps + 1))
axes[1, 1].set_yscale("log")
axes[1, 1].axhline(config.gan.clip_norm, color=COLORS["floor"], linestyle="--")
axes[1, 2].plot(epochs["generator_rate"], color=COLORS["model"], label="generator")
axes[1, 2].plot(epochs["discriminator_rate"], color=COLORS["real"], label="discriminator")
axes[1, 2].set(title="Learning rates", xlabel="epoch", ylabel="rate", ylim=(0, None))
axes[1, 2].legend()
right = epochs[["accuracy_real", "accuracy_fake"]].iloc[-1].mean()
number = f"discriminator right in {right:.0%} of the last epoch (50 %: cannot tell; 100 %: always)"

# %% [markdown]
# The flow's loss is noisy, since every step goes to other places on the line; its running mean
# should still fall when the rate runs out.

# %%
drawn = {"gan": (asked, windows)}
if "flow" in config.generators:
    flow_history, *drawn["flow"] = fit_flow(run, config)
    flow_figure, (left, right) = subplots(1, 2)
    losses = pd.Series(flow_history["loss"])
    smooth = losses.rolling(max(1, len(losses) // 20), min_periods=1).mean()
    left.plot(losses, color=COLORS["model"], alpha=0.25, linewidth=0.7)
    left.plot(smooth, color=COLORS["model"])
    left.set(title="The flow's loss", xlabel="step", ylabel="squared deviations")
    left.set_yscale("log")
    right.plot(flow_history["rate"], color=COLORS["model"])
    right.set(title="Its learning rate", xlabel="step", ylabel="rate")
    number = f"{number}; flow: {len(losses)} steps"
run.headline("05_gan_training", f"GAN: {len(rounds)} rounds, {number}", figure)

# %% [markdown]
# For each corner of the valence-arousal plane the nearest training song (above) and what each
# generator drew nearest to it. Look for bands, onsets and level; section 6 measures what you see.

# %%
import librosa

# %%
bands = librosa.mel_frequencies(
    config.audio.n_mels, fmin=config.audio.f_min, fmax=config.audio.f_max
)
songs, log_mel = load_part(run, "train")
real, _ = cut_windows(log_mel, songs["frames"].to_numpy(), config.gan.frames)
rows = {"real": (songs, real), **drawn}
figure, axes = subplots(len(rows), 4, size=(3.2, 2.4), sharex=True, sharey=True)
corners = [(-1, -1), (1, -1), (-1, 1), (1, 1)]
for row, (kind, (table, pictures)) in zip(axes, rows.items(), strict=True):
    plane = table[["valence", "arousal"]].to_numpy()
    for panel, corner in zip(row, corners, strict=True):
        nearest = np.abs(plane - corner).sum(axis=1).argmin()
        valence, arousal = plane[nearest]
        plot_log_mel(
            panel,
            config.audio.to_db(pictures[nearest]),
            sample_rate=config.audio.sample_rate,
            hop=config.audio.hop,
            bands=bands,
            limits=(config.audio.db_min, config.audio.db_max),
            title=f"{kind}: V {valence:+.2f}, A {arousal:+.2f}",
        )
