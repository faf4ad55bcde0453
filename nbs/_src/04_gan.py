# %%
#| default_exp gan

# %% [markdown]
# # Generators
#
# > GANs draw a spectrogram for an emotion in one stroke, a flow clears it out of noise in steps.
#
# In comes noise with a wanted valence and arousal; out comes a log-mel window in [-1, 1], the
# scale of section 3. Nothing here knows a loss or an optimiser: section 5 trains. All
# networks fit any number of frames, and the configuration alone gives their size.
#
# Shapes: B batch, M mel bands, T frames, C channels, D numbers of the condition.

# %%
#| export
import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from musemo.config import Config
from musemo.pieces import in_full

# %%
#| export pieces
import torch
from torch import nn

# %%
#| export flow
import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from musemo.config import Config, FlowConfig
from musemo.pieces import blend_windows, in_full, window_starts

# %%
#| export drawing
import numpy as np
import torch
from torch import nn

from musemo.config import Config
from musemo.core import MusemoError, Run, autocast, progress
from musemo.flow import Flow
from musemo.gan import Generator

# %%
#| hide
import tempfile
from pathlib import Path

from fastcore.test import test_close, test_eq, test_fail

from musemo.config import FlowConfig
from musemo.presets import make_config
from musemo.core import cut_windows, load_part, plot_log_mel, subplots


# %% [markdown]
# ## The condition
#
# Two numbers are little beside 128 of noise, and a network would learn to overhear them. The
# specification's two-layer MLP spreads valence and arousal over as many numbers as a layer needs.


# %%
#| export
def condition_mlp(
    hidden: int,
    size: int,  # D, numbers of the embedding
) -> nn.Sequential:
    "Build the two-layer MLP that embeds valence and arousal: (B, 2) -> (B, D)."
    return nn.Sequential(nn.Linear(2, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, size))


# %%
test_eq(condition_mlp(4, 6)(torch.zeros(3, 2)).shape, (3, 6))


# %% [markdown]
# ## Attention with a way around it
#
# A convolution sees its neighbours; a beat repeats far away. Self-attention lets every place
# look at every other. `gamma` starts at zero, so the layer is the identity until training
# finds a use for it. The fused kernel never holds the whole table of places by places.


# %%
#| export
class SelfAttention(nn.Module):
    "Self-attention over all places of a map, added to its input with a learned weight."

    def __init__(
        self,
        channels: int,  # C, even
        heads: int = 2,
    ):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))  # Zhang 2019, SAGAN

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        "Mix places: (B, C, m, t) -> (B, C, m, t)."
        batch, channels, rows, columns = x.shape
        shape = (3, self.heads, channels // self.heads, rows * columns)
        q, k, v = self.qkv(x).unflatten(1, shape[:3]).flatten(4).transpose(3, 4).unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, heads, m * t, C / heads)
        mixed = mixed.transpose(2, 3).reshape(batch, channels, rows, columns)
        return x + self.gamma * self.out(mixed)


# %%
attention, x = SelfAttention(8), torch.randn(2, 8, 3, 5)
assert torch.equal(attention(x), x)
attention.gamma.data.fill_(1.0)
# Attention has no notion of place: mirrored in, mirrored out.
test_close(attention(x.flip(3)), attention(x).flip(3), eps=1e-5)


# %% [markdown]
# ## What is struck rings on
#
# Music is struck and fades: it rises at once and falls slowly. A GAN has to find that out cell by
# cell, and in the minutes that a hundred songs are worth it does not; adding up energy says it in
# one line. So the generator draws strikes, and by how much each band falls.


# %%
#| export
def ring(
    strikes: torch.Tensor,  # (B, M, T) level that each cell is struck with
    falls: torch.Tensor,  # (B, M, T) by how much what sounded before falls in a frame, > 0
    *,
    sharpness: float = 8.0,  # in one unit of level; 11.5 would add energies on the suite's scale
) -> torch.Tensor:  # (B, M, T) level
    "Let strikes ring on: what sounds is a cell's strike and what is left of the frame before."
    fallen = sharpness * falls.cumsum(2)
    return (torch.logcumsumexp(sharpness * strikes + fallen, dim=2) - fallen) / sharpness


# %% [markdown]
# A single strike falls along a straight line. Where falls are steep nothing rings, and the
# strikes are the picture.

# %%
strike = torch.full((1, 1, 8), -9.0)
strike[..., 2] = 0.0
test_close(ring(strike, torch.full_like(strike, 0.1))[0, 0, 2:], -0.1 * torch.arange(6), eps=1e-5)
x = torch.randn(2, 4, 8)
test_close(ring(x, torch.full_like(x, 9.0)), x, eps=1e-5)


# %% [markdown]
# ## Up-sampling that passes on what it has
#
# Bands are channels here, and convolutions run along time: a layer knows its bands by name, a
# chord is one column. Each layer doubles the columns by a transposed convolution, and adds the
# result to the columns themselves, repeated: in a few hundred steps, layers that replace what
# they get lose it (section 5 has the figures).
#
# Every layer adds chance at each of its times, so that no two beats are alike. A condition that
# enters only at the seed is washed out on the way: each layer normalises its channels and lets the
# condition set their level and contrast anew.


# %%
#| export
class UpSampling(nn.Module):
    "Double a sequence of columns, add chance at each time, hear the condition."

    def __init__(
        self,
        channels: int,  # C, a multiple of 8
        condition: int,  # D, numbers of the embedded condition
        chances: int,  # random numbers at each time
    ):
        super().__init__()
        self.first = nn.ConvTranspose1d(channels, channels, kernel_size=4, stride=2, padding=1)
        self.second = nn.Conv1d(channels, channels, kernel_size=5, padding=2)
        self.norm = nn.GroupNorm(8, channels, affine=False)
        self.chance = nn.Conv1d(chances, channels, 1, bias=False)
        nn.init.normal_(self.chance.weight, std=1.2 / chances**0.5)
        self.style = nn.Linear(condition, 2 * channels)
        nn.init.normal_(self.style.weight, std=0.05)
        nn.init.zeros_(self.style.bias)

    def forward(
        self,
        x: torch.Tensor,  # (B, C, t)
        condition: torch.Tensor,  # (B, D)
        noise: torch.Tensor,  # (B, chances, 2t)
    ) -> torch.Tensor:  # (B, C, 2t)
        "Up-sample a sequence."
        contrast, level = self.style(condition)[:, :, None].chunk(2, dim=1)
        inner = self.norm(self.first(F.leaky_relu(x, 0.2))) + self.chance(noise)
        inner = self.second(F.leaky_relu(inner * (1 + contrast) + level, 0.2))
        return F.interpolate(x, scale_factor=2.0) + inner


# %%
layer = UpSampling(16, 6, 4)
test_eq(layer(torch.randn(2, 16, 5), torch.randn(2, 6), torch.randn(2, 4, 10)).shape, (2, 16, 10))


# %% [markdown]
# ## Half precision stops before the picture
#
# In half precision, steps near 1 are as wide as .004, which is .2 dB on the suite's scale. So
# what a GPU computes in halves, the last layer of each generator turns into a picture in full.


# %%
#| export pieces
def in_full(
    layer: nn.Module,
    x: torch.Tensor,  # in any precision
) -> torch.Tensor:  # float32
    "Apply a layer in float32, also where autocast is on."
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())


# %%
line, x = nn.Linear(3, 2), torch.randn(4, 3)
with torch.autocast("cpu", dtype=torch.bfloat16):
    test_eq((line(x).dtype, in_full(line, x).dtype), (torch.bfloat16, torch.float32))
assert torch.equal(in_full(line, x), line(x))


# %% [markdown]
# ## The generator
#
# Chance for a whole piece and chance for each column of its seed start it, four layers double
# it, the last one says strikes and falls. Falls have a limit: 99 of 100 steps in the demo songs
# fall by less. A column more at both ends is drawn and cut off: sound that began before rings in.
# Its layers take any width, and draw it in one stroke: there is nothing to blend.
#
# Three things are measured and not learnt, so that not a step is spent on them: the songs' mean
# spectrum, how it leans with valence and arousal (`level`, a straight line), and which bands go
# together. The last layer starts with these directions (the leading ones as loud as in songs): even
# untrained columns are chords of the right material, as loud as the emotion asks.


# %%
#| export
class Generator(nn.Module):
    "Draw log-mel windows for wanted emotions, as strikes that ring."

    chances, seed_chances = 8, 32  # random numbers at each time, and at each seed column

    def __init__(self, config: Config):
        super().__init__()
        gan, audio, channels = config.gan, config.audio, config.gan.channels
        bands, self.latent, self.frames = audio.n_mels, gan.latent, gan.frames
        self.attention_after = gan.attention_after
        frame = 2 / (audio.db_max - audio.db_min) * audio.hop / audio.sample_rate  # of a dB/s
        self.steepest = frame * gan.steepest_fall
        share = gan.first_fall / gan.steepest_fall
        self.first = math.log(share / (1 - share))
        self.condition = condition_mlp(gan.condition, gan.condition)
        self.whole = nn.Linear(gan.latent + gan.condition, channels)
        self.seed = nn.Conv1d(self.seed_chances, channels, kernel_size=3, padding=1)
        self.layers = nn.ModuleList(
            UpSampling(channels, gan.condition, self.chances) for _ in range(4)
        )
        self.attention = SelfAttention(channels)
        self.norm = nn.GroupNorm(8, channels, affine=False)
        self.last = nn.Conv1d(channels, 2 * bands, 1)  # strikes, then falls
        self.level = nn.Linear(2, bands)
        nn.init.normal_(self.whole.weight, std=2 / self.whole.in_features**0.5)
        nn.init.normal_(self.seed.weight, std=1 / (3 * self.seed_chances) ** 0.5)
        nn.init.normal_(self.last.weight, std=0.02)
        for zeros in (self.last.bias, self.level.weight, self.level.bias):
            nn.init.zeros_(zeros)

    def noise_parts(self, frames: int) -> list[int]:
        "Count the noise of a piece: of the whole, of its seed columns, then of each layer."
        columns = math.ceil(frames / 16) + 2
        layers = [self.chances * (columns << i) for i in range(1, 5)]
        return [self.latent, self.seed_chances * columns, *layers]

    def noise_size(self, frames: int) -> int:
        "Say how many numbers of noise a piece of some frames grows from."
        return sum(self.noise_parts(frames))

    def forward(
        self,
        noise: torch.Tensor,  # (B, noise_size(T)), standard normal
        labels: torch.Tensor,  # (B, 2) valence and arousal in [-1, 1]
        frames: int | None = None,  # T; None: those of a training window
    ) -> torch.Tensor:  # (B, 1, M, T) in [-1, 1]
        "Draw one window, or one longer piece, for each row."
        condition, frames = self.condition(labels), frames or self.frames
        whole, seed, *parts = noise.split(self.noise_parts(frames), dim=1)
        x = self.whole(torch.cat([whole, condition], dim=1))[:, :, None]
        x = x + self.seed(seed.unflatten(1, (self.seed_chances, -1)))
        for i, layer in enumerate(self.layers):
            x = self.attention(x[:, :, None])[:, :, 0] if i == self.attention_after else x
            x = layer(x, condition, parts[i].unflatten(1, (self.chances, -1)))
        strikes, falls = in_full(self.last, self.norm(x)).chunk(2, dim=1)  # (B, M, T + 32)
        falls = self.steepest * torch.sigmoid(falls + self.first)
        sound = ring(strikes + in_full(self.level, labels)[:, :, None], falls)
        return torch.tanh(sound[:, None, :, 16 : 16 + frames])

    @torch.no_grad()
    def start_from(
        self,
        line: torch.Tensor,  # (M, 3) level of each band, and its slopes by valence and arousal
        directions: torch.Tensor,  # (M, K) in which songs' columns differ, as long as they differ
        *,
        contrast: float = 0.85,  # share of their length; ringing adds some
    ) -> None:
        "Start at the songs' levels and directions; take off what ringing adds to the level."
        bands, count = len(line), min(directions.shape[1], self.last.in_channels)
        self.level.bias.copy_(line[:, 0])
        self.level.weight.copy_(line[:, 1:])
        self.last.weight[:bands, :count, 0] = contrast * directions[:, :count]
        noise = torch.randn(16, self.noise_size(self.frames), device=line.device)
        drawn = self(noise, noise.new_zeros(16, 2))
        drawn = drawn.clamp(-0.99, 0.99).atanh().mean((0, 1, 3))
        self.level.bias += line[:, 0] - drawn


# %% [markdown]
# Any width comes out as asked, also the 30 s of the specification, and the same noise with
# another condition gives another picture. Started from songs, it is as loud as they are.

# %%
tiny = {"gan.channels": 16, "gan.narrowest": 8, "gan.latent": 8, "gan.condition": 4}
labels = torch.tensor([[0.8, 0.7], [-0.8, -0.6]])
small = make_config("smoke", tiny)
generator = Generator(small)
for frames in (64, 100, 1292):
    drawn = generator(torch.randn(2, generator.noise_size(frames)), labels, frames)
    test_eq(drawn.shape, (2, 1, 128, frames))
    assert drawn.abs().max() <= 1
noise = torch.randn(32, generator.noise_size(64))
assert not torch.equal(generator(noise[:2], labels), generator(noise[:2], labels.flip(0)))
line = torch.tensor([[-0.5, 0.0, 0.4]]).repeat(128, 1)
generator.start_from(line, 0.1 * torch.eye(128))
for arousal in (-0.5, 0.5):
    drawn = generator(noise, torch.tensor([[0.0, arousal]]).repeat(32, 1)).detach()
    test_close(drawn.atanh().mean(), -0.5 + 0.4 * arousal, eps=0.05)


# %% [markdown]
# ## The discriminator
#
# It sees two things, the spectrogram and the condition drawn as a map of the same size. A label
# holds for the whole window, so its map varies over bands and repeats over frames.
# Spectral norm bounds every layer: the verdict cannot jump for a change nobody would hear.
#
# Bounded layers overhear what is small. So pictures come in with the songs' band means taken
# off and divided by their deviation, and the map is as loud as a picture.
#
# Three verdicts where the original has one. Each place of the last map gives its own: texture is
# judged everywhere at once, and a batch teaches hundreds of times as much. So does each column
# over all bands: an onset crosses them, and no place alone would miss it. Last the whole window,
# which also reads how much columns and pictures differ: one picture for everyone is found out.


# %%
#| export
def smooth_std(x: torch.Tensor, dim: int) -> torch.Tensor:
    "Give the standard deviation along a dimension; its gradient is finite where all is alike."
    return (x.float().var(dim=dim, correction=0) + 1e-8).sqrt()  # in half precision 1e-8 is 0


# %%
alike = torch.ones(2, 3, requires_grad=True)
smooth_std(alike, 1).sum().backward()
test_eq(alike.grad.isfinite().all().item(), True)


# %% [markdown]
# In a few hundred steps a discriminator finds what is large, levels and contrasts, and the
# generator weaves chords and beats into cloth: bands by frames, the same chord at each beat. Where
# notes come and go is small beside that, and so it is shown: what the means of bands and frames
# leave over, and the steps from cell to cell in time and in frequency, `gan.zoom` times as loud.


# %%
#| export
def look_closely(
    x: torch.Tensor,  # (B, 1, M, T) standardised
    zoom: float,  # how much louder the small things are shown
) -> torch.Tensor:  # (B, 4, M, T) picture, notes, steps in time, steps in frequency
    "Put what is small but makes music beside a picture."
    frames = x.mean(2, keepdim=True)
    notes = x - x.mean(3, keepdim=True) - frames + frames.mean(3, keepdim=True)
    onsets, edges = F.pad(x.diff(dim=3), (1, 0)), F.pad(x.diff(dim=2), (0, 0, 1, 0))
    return torch.cat([x, zoom * notes, zoom * onsets, zoom * edges], dim=1)


# %%
of_bands, of_frames = torch.randn(1, 1, 6, 1), torch.randn(1, 1, 1, 9)
_, notes, onsets, edges = look_closely(of_bands + of_frames, 2.0)[0]
test_close(notes, torch.zeros(6, 9), eps=1e-5)  # cloth: nothing is left over
test_close(onsets[:, 1:], 2 * of_frames[0, 0].diff(dim=1).expand(6, -1), eps=1e-5)
test_close(edges[1:], 2 * of_bands[0, 0].diff(dim=0).expand(-1, 9), eps=1e-5)


# %%
#| export
def halving(inputs: int, outputs: int) -> nn.Module:
    "Make a strided convolution: (B, inputs, m, t) -> (B, outputs, m / 2, t / 2)."
    return nn.Conv2d(inputs, outputs, kernel_size=4, stride=2, padding=1)


class Discriminator(nn.Module):
    "Tell real windows from drawn ones, given the emotion; the verdicts are logits."

    def __init__(
        self,
        config: Config,
        layer: Callable[[int, int], nn.Module] = halving,
        bound: Callable[[nn.Module], nn.Module] = spectral_norm,  # wraps each layer with weights
    ):
        super().__init__()
        gan, bands = config.gan, config.audio.n_mels
        self.bands, self.zoom = bands, gan.zoom
        sizes = [4 + 1, *(max(gan.channels >> i, gan.narrowest) for i in (3, 2, 1, 0))]
        mlp = condition_mlp(gan.condition, bands)
        self.condition = nn.Sequential(bound(mlp[0]), mlp[1], bound(mlp[2]))
        self.layers = nn.ModuleList(bound(layer(a, b)) for a, b in pairwise(sizes))
        self.position = nn.Parameter(torch.zeros(1, sizes[1], bands // 2, 1))
        self.place = bound(nn.Conv2d(gan.channels, 1, 1))
        self.over_bands = bound(nn.Conv2d(gan.channels, gan.channels, (bands // 16, 1)))
        self.column = bound(nn.Conv1d(gan.channels, 1, 1))
        self.whole = bound(nn.Linear(2 * gan.channels + 1, 1))
        self.register_buffer("band_means", torch.zeros(bands, 1))
        self.register_buffer("deviation", torch.ones(1))

    def condition_map(self, labels: torch.Tensor, frames: int) -> torch.Tensor:
        "Draw valence and arousal as a map: (B, 2) -> (B, 1, M, frames)."
        bands = self.condition(labels) * self.bands**0.5
        return bands[:, None, :, None].expand(-1, 1, -1, frames)

    def forward(
        self,
        pictures: torch.Tensor,  # (B, 1, M, T) in [-1, 1]
        labels: torch.Tensor,  # (B, 2) valence and arousal in [-1, 1]
    ) -> tuple[torch.Tensor, ...]:  # logits, above 0: real; (B, 1), (B, T / 16), (B, M T / 256)
        "Judge the whole window, each column and each place, by look and emotion."
        x = F.pad(pictures, (0, -pictures.shape[3] % 16, 0, 0), mode="replicate")
        x = (x - self.band_means) / self.deviation
        x = torch.cat([look_closely(x, self.zoom), self.condition_map(labels, x.shape[3])], dim=1)
        for i, layer in enumerate(self.layers):
            x = layer(x) if i else layer(x) + self.position
            x = F.leaky_relu(x, 0.2)
        columns = F.leaky_relu(self.over_bands(x)[:, :, 0], 0.2)  # (B, C, T / 16)
        seen = torch.cat([columns.mean(2), smooth_std(columns, 2)], dim=1)
        spread = 10 * smooth_std(seen, 0).mean()  # Karras 2018, over the batch
        whole = self.whole(torch.cat([seen, spread.expand(len(x), 1)], dim=1))
        return whole, self.column(columns)[:, 0], self.place(x).flatten(1)


# %% [markdown]
# Every layer's largest singular value is 1, whatever its weights were: that is spectral norm.
# The estimate is sharpened by one round a training step, so a few rounds come first.

# %%
torch.manual_seed(0)
discriminator = Discriminator(small)
pictures = torch.randn(4, 1, 128, 50).tanh()
for _ in range(60):
    verdicts = discriminator(pictures, torch.randn(4, 2).tanh())
test_eq([verdict.shape[1] for verdict in verdicts], [1, 4, 32])
test_eq(discriminator.condition_map(labels, 50).shape, (2, 1, 128, 50))
for layer in discriminator.modules():
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
        test_close(torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item(), 1, eps=0.05)


# %% [markdown]
# ## Both, as the configuration says
#
# One call builds the pair. Its sizes are easy to check by hand, and so should be.


# %%
#| export
def build_gan(config: Config) -> tuple[Generator, Discriminator]:
    "Build the untrained generator and discriminator from torch's global random state."
    return Generator(config), Discriminator(config)


def network_sizes(**networks: nn.Module) -> dict[str, int]:
    "Count the trainable parameters of each named network."
    return {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items()}


# %%
L, D, C = 8, 4, 16  # the tiny pair: latent, condition, channels
up = (C * C * 4 + C) + (C * C * 5 + C) + 8 * C + (D * 2 * C + 2 * C)
attention = (C * 3 * C + 3 * C) + (C * C + C) + 1
start = ((L + D) * C + C) + (32 * C * 3 + C)
drawing = (2 * D + D) + (D * D + D) + start + 4 * up + attention + (C * 256 + 256) + (2 * 128 + 128)
downs = sum(a * b * 16 + b for a, b in [(5, 8), (8, 8), (8, 8), (8, 16)]) + 8 * 64
heads = (16 + 1) + (16 * 16 * 8 + 16) + (16 + 1) + (33 + 1)
judging = (2 * D + D) + (D * 128 + 128) + downs + heads
pair = dict(zip(("generator", "discriminator"), build_gan(small), strict=True))
test_eq(network_sizes(**pair), {"generator": drawing, "discriminator": judging})

# %% [markdown]
# ## A judge without bounds
#
# Today's plain baseline (Huang 2024, R3GAN) puts other bricks into the judge: each layer adds to
# what passes beside it, no weight is bounded, and the loss of section 5 keeps the peace. The
# generator and the three verdicts are the same.

# %%
#| export residual
import torch
import torch.nn.functional as F
from torch import nn

from musemo.config import Config
from musemo.gan import Discriminator, Generator


# %%
#| export residual
class ResidualDown(nn.Module):
    "Halve a map by its mean, and add what two convolutions make of it."

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        "Down-sample: (B, C, m, t) -> (B, outputs, m / 2, t / 2)."
        return self.skip(F.avg_pool2d(x, 2)) + self.second(F.leaky_relu(self.first(x), 0.2))


def build_residual(config: Config) -> tuple[Generator, Discriminator]:
    "Build the untrained generator and a residual judge from torch's global random state."
    return Generator(config), Discriminator(config, ResidualDown, lambda layer: layer)


# %%
residual = dict(zip(("generator", "discriminator"), build_residual(small), strict=True))
test_eq(
    [x.shape[1] for x in residual["discriminator"](torch.randn(2, 1, 128, 64), labels)], [1, 4, 32]
)
print(", ".join(f"{name}: {size:,} parameters" for name, size in network_sizes(**residual).items()))


# %% [markdown]
# ## Longer pieces
#
# A flow, which comes next, looks at whole windows of one width, and may be asked for more. Then
# windows that overlap by half are drawn together and blended on the way, not at the end: where two
# of them meet, later steps see one picture, and no seam is left to hear.


# %%
#| export pieces
def window_starts(
    length: int,  # of the piece
    width: int,  # of a window
) -> list[int]:
    "Place windows evenly over a piece, each overlapping the next by half or a little more."
    more = -(-2 * max(length - width, 0) // width)  # windows beside the first
    return [round(i * (length - width) / more) for i in range(more + 1)] if more else [0]


def blend_windows(
    windows: torch.Tensor,  # (B, K, C, m, t)
    length: int,  # T of the piece, at least t where there is more than one window
) -> torch.Tensor:  # (B, C, m, T)
    "Lay windows over a piece, each fading in and out; a single one is left as it is."
    width = windows.shape[4]
    if windows.shape[1] == 1:
        return windows[:, 0, ..., :length]
    places = torch.arange(width, device=windows.device, dtype=windows.dtype)
    fade = 1 - (2 * (places + 0.5) / width - 1).abs()
    total = windows.new_zeros(*windows.shape[:1], *windows.shape[2:4], length)
    weight = fade.new_zeros(length)
    for window, start in zip(windows.unbind(1), window_starts(length, width), strict=True):
        total[..., start : start + width] += fade * window
        weight[start : start + width] += fade
    return total / weight


# %% [markdown]
# Each frame lies in two windows, but for half a window at both ends. Windows cut out of one
# piece blend back into it.

# %%
test_eq((window_starts(64, 64), window_starts(100, 64)), ([0], [0, 18, 36]))
piece = torch.randn(2, 1, 4, 100)
cuts = torch.stack([piece[..., start : start + 64] for start in window_starts(100, 64)], dim=1)
test_close(blend_windows(cuts, 100), piece, eps=1e-5)


# %% [markdown]
# ## The flow
#
# A GAN must find a picture in one stroke. A rectified flow (Liu 2023) takes small ones: on the
# straight line from noise (t = 0) to a picture (t = 1), a network guesses where the line ends,
# and the sampler walks a little towards the guess. No judge, no contest, nothing to balance.
#
# First, how the network hears the time and the condition: features of different speeds, and a
# flag that says whether an emotion was asked for at all.


# %%
#| export flow
def time_features(
    t: torch.Tensor,  # (B,) 0: noise, 1: picture
    count: int = 32,  # even
) -> torch.Tensor:  # (B, count)
    "Spread the time over sines and cosines of rising speed (Vaswani 2017)."
    speeds = torch.exp(torch.linspace(0, math.log(1000), count // 2, device=t.device))
    angles = t[:, None] * speeds
    return torch.cat([angles.sin(), angles.cos()], dim=1)


# %%
test_eq(time_features(torch.zeros(3), 4), torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 3))


# %% [markdown]
# One block: two convolutions around a skip, the first normalised to the level and contrast that
# time and condition ask for (FiLM, Perez 2018). The last convolution starts at zero, so that
# an untrained block is the identity.
#
# A convolution sees a few neighbours. But a stroke sounds in all bands at once, and a held note
# goes on for seconds: so each place also hears the mean of its frame and of its band (strip
# pooling, Hou 2020). It costs next to nothing. Without it, strokes fall apart into specks: on the
# demo music the flow's score was 56 and 64 for seeds 0 and 1, with it 66 and 70.


# %%
#| export flow
class FlowBlock(nn.Module):
    "Two convolutions beside a skip, their contrast and level set from time and condition."

    def __init__(
        self,
        inputs: int,  # channels in, a multiple of 8
        outputs: int,  # channels out, a multiple of 8
        condition: int,  # D, numbers of the embedded time and condition
    ):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, size) for size in (inputs, outputs))
        self.style = nn.Linear(condition, 2 * outputs)
        self.convs = nn.ModuleList(
            nn.Conv2d(size, outputs, 3, padding=1) for size in (inputs, outputs)
        )
        self.strips = nn.ModuleList(nn.Conv2d(inputs, outputs, 1, bias=False) for _ in range(2))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.convs[1].weight)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        "Mix neighbours, frames and bands: (B, C, m, t), (B, D) -> (B, outputs, m, t)."
        contrast, level = self.style(condition)[:, :, None, None].chunk(2, dim=1)
        inner = F.silu(self.norms[0](x))
        means = inner.mean(2, keepdim=True), inner.mean(3, keepdim=True)  # of frames, of bands
        strips = [hear(mean) for hear, mean in zip(self.strips, means, strict=True)]
        inner = self.convs[0](inner) + strips[0] + strips[1]
        inner = self.norms[1](inner) * (1 + contrast) + level
        return self.skip(x) + self.convs[1](F.silu(inner))


# %%
block, x = FlowBlock(8, 8, 6), torch.randn(2, 8, 3, 5)
block.convs[1].bias.data.zero_()
assert torch.equal(block(x, torch.randn(2, 6)), x)

# %% [markdown]
# Trained, it hears a change anywhere in its frame and in its band, and nowhere else.

# %%
block.convs[1].weight.data.normal_()
block.norms = nn.ModuleList([nn.Identity(), nn.Identity()])  # these look at the whole map
x, condition = torch.randn(1, 8, 9, 9), torch.zeros(1, 6)
change = torch.zeros_like(x)
change[:, :, 4, 4] = 1
heard = (block(x + change, condition) - block(x, condition)).abs().sum((0, 1)) > 1e-6
# Two convolutions of three carry it two places far, the second one its strips by one.
test_eq([int(row.sum()) for row in heard], [3, 3, 5, 9, 9, 9, 5, 3, 3])


# %% [markdown]
# Attention again, for beats far apart, in the form that a flow needs: normalised, and zero at
# the start.


# %%
#| export flow
class FlowAttention(nn.Module):
    "Normalised self-attention over all places of a map, added to its input."

    def __init__(
        self,
        channels: int,  # C, a multiple of 8
        heads: int = 4,
    ):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        "Mix places: (B, C, m, t) -> (B, C, m, t)."
        shape = (3, self.heads, x.shape[1] // self.heads)
        q, k, v = self.qkv(self.norm(x)).unflatten(1, shape).flatten(4).transpose(3, 4).unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, heads, m * t, C / heads)
        return x + self.out(mixed.transpose(2, 3).reshape(x.shape))


# %%
attention = FlowAttention(8)
attention.out.weight.data.normal_()
test_close(attention(x.flip(3)), attention(x).flip(3), eps=1e-5)


# %% [markdown]
# ## The U-Net
#
# A U-Net is a level that holds a coarser level: a block, half the size and whatever is inside,
# back to the full size, and a block that sees both. Coarse levels look afar as well.


# %%
#| export flow
class FlowLevel(nn.Module):
    "A size of the U-Net, with all coarser sizes inside."

    def __init__(
        self,
        sizes: tuple[int, ...],  # channels of this and of the coarser levels
        condition: int,  # D
        *,
        looks: bool,  # whether this level has attention
    ):
        super().__init__()
        size, inner = sizes[0], sizes[1] if len(sizes) > 1 else 0
        self.down = FlowBlock(size, size, condition)
        self.up = FlowBlock(size + inner, size, condition)
        self.looks = nn.ModuleList(FlowAttention(size) for _ in range(2 * looks))
        self.shrink = nn.Conv2d(size, inner, 3, stride=2, padding=1) if inner else None
        self.inner = FlowLevel(sizes[1:], condition, looks=True) if inner else None

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        "Mix near and far: (B, C, m, t), (B, D) -> (B, C, m, t)."
        x = self.down(x, condition)
        x = self.looks[0](x) if self.looks else x
        if self.inner:
            inside = self.inner(self.shrink(x), condition)
            x = torch.cat([x, F.interpolate(inside, scale_factor=2.0)], dim=1)
        x = self.up(x, condition)
        return self.looks[1](x) if self.looks else x


# %%
level = FlowLevel((8, 16), 6, looks=False)
test_eq(level(torch.randn(2, 8, 4, 6), torch.randn(2, 6)).shape, (2, 8, 4, 6))


# %% [markdown]
# Squares of 4 x 4 cells become channels first: a sixteenth of the places, and nothing lost. A
# convolution cannot tell bass from treble, so every row of that map has a position to learn.
# Valence and arousal also come as two flat planes, since level is decided everywhere.
#
# Pictures are worked on with the level that such songs have taken off each band (a straight line in
# valence and arousal) and divided by one deviation from it; both travel with the weights, so that
# what comes out is in [-1, 1] again. What a line can tell of an emotion need not be learnt.
#
# What should the network say? The picture itself is hard to say where it is nearly seen: all of
# its detail would have to pass through the network. Seen from the origin, the line is a quarter
# of a circle, x = sine picture + cosine noise, and the network says which way it turns, cosine
# picture - sine noise (Salimans & Ho 2022). That is as large everywhere, and the picture follows
# from it: near noise it is the network's, near the picture it is what was seen. The noise in
# the answer need not squeeze through the U-Net: a share of the input goes past it.


# %%
#| export flow
def circle(
    t: torch.Tensor,  # (B,) 0: noise, 1: picture
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # (B, 1, 1, 1) each
    "Find sine and cosine of a place on the line, and its size against the circle's."
    t = t[:, None, None, None]
    size = (t * t + (1 - t) ** 2).sqrt()
    return t / size, (1 - t) / size, size


# %%
sine, cosine, size = circle(torch.tensor([0.0, 0.5, 1.0]))
test_close(sine.flatten(), torch.tensor([0, 0.5**0.5, 1]), eps=1e-6)
test_close(sine**2 + cosine**2, torch.ones(3, 1, 1, 1), eps=1e-6)


# %%
#| export flow
class Flow(nn.Module):
    "Draw log-mel windows for wanted emotions, out of noise in a few steps."

    def __init__(self, config: Config):
        super().__init__()
        self.flow, self.shape = config.flow, (config.audio.n_mels, config.gan.frames)
        sizes, width = self.flow.channels, 2 * self.flow.channels[-1]
        self.embed = nn.Sequential(nn.Linear(32 + 3, width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Conv2d(16 + 2, sizes[0], 3, padding=1)
        self.position = nn.Parameter(torch.zeros(sizes[0], config.audio.n_mels // 4, 1))
        self.level = FlowLevel(sizes, width, looks=False)
        self.norm = nn.GroupNorm(8, sizes[0])
        self.last = nn.Conv2d(sizes[0], 16, 3, padding=1)
        self.mix = nn.Linear(width, 2 * 16)  # what goes past the U-Net, and what comes out of it
        nn.init.zeros_(self.mix.weight)
        self.mix.bias.data = torch.tensor([0.0, 1.0]).repeat_interleave(16)
        self.register_buffer("line", torch.zeros(config.audio.n_mels, 3))  # level at (0, 0), slopes
        self.register_buffer("deviation", torch.ones(1))

    def levels(self, labels: torch.Tensor) -> torch.Tensor:
        "Say the level of each band in songs of an emotion: (B, 2) -> (B, 1, M, 1)."
        slopes = (labels[:, None] * self.line[:, 1:]).sum(2)  # (B, M), in full precision
        return (self.line[:, 0] + slopes)[:, None, :, None]

    def noise_size(self, frames: int) -> int:
        "Say how many numbers of noise a piece of some frames grows from: one for each cell."
        return self.shape[0] * frames

    def forward(
        self,
        noise: torch.Tensor,  # (B, noise_size(T)), standard normal
        labels: torch.Tensor,  # (B, 2) valence and arousal in [-1, 1]
        frames: int | None = None,  # T; None: those of a training window
    ) -> torch.Tensor:  # (B, 1, M, T) in [-1, 1]
        "Draw one window, or one longer piece, for each row."
        start = noise.unflatten(1, (1, self.shape[0], frames or self.shape[1]))
        drawn = draw_flow(self, start, labels, guidance=self.flow.guidance)
        return (drawn * self.deviation + self.levels(labels)).clamp(-1, 1)

    def turn(
        self,
        x: torch.Tensor,  # (B, 1, M, T) a place on the circle, standardised
        t: torch.Tensor,  # (B,) 0: noise, 1: picture
        labels: torch.Tensor,  # (B, 2) in [-1, 1]
        asked: torch.Tensor,  # (B, 1) 1: the labels hold, 0: any emotion
    ) -> torch.Tensor:  # (B, 1, M, T) standardised
        "Say which way the circle goes from here: what the network learns."
        frames, labels = x.shape[3], labels * asked
        x = F.pad(x, (0, -frames % 16, 0, 0), mode="replicate")
        x = F.pixel_unshuffle(x, 4)  # (B, 16, m, t)
        planes = labels[:, :, None, None].expand(-1, -1, *x.shape[2:])
        condition = F.silu(self.embed(torch.cat([time_features(t), labels, asked], dim=1)))
        past, out = self.mix(condition)[:, :, None, None].chunk(2, dim=1)
        inner = self.level(self.first(torch.cat([x, planes], dim=1)) + self.position, condition)
        x = past * x + out * in_full(self.last, F.silu(self.norm(inner)))
        return F.pixel_shuffle(x, 4)[..., :frames]

    def guess(
        self,
        x: torch.Tensor,  # (B, 1, M, T) a place on the line, standardised
        t: torch.Tensor,  # (B,) 0: noise, 1: picture
        labels: torch.Tensor,  # (B, 2) in [-1, 1]
        asked: torch.Tensor,  # (B, 1) 1: the labels hold, 0: any emotion
    ) -> torch.Tensor:  # (B, 1, M, T) standardised
        "Guess the picture at the end of the line."
        sine, cosine, size = circle(t)
        return sine * x / size + cosine * self.turn(x / size, t, labels, asked)


# %% [markdown]
# ## Walking the line
#
# How loud and how dense a window is gets decided near t = 0, so the steps crowd there. Guidance
# (Ho 2022) walks past the guess for the emotion asked, away from the guess for any emotion:
# what the emotion changes is drawn larger. Late steps draw detail and go without.
#
# The last step leaps to the guess, and a guess from afar is soft: the more evenly steps lie, the
# later that leap, and the sharper the strokes, if the flow has learnt strokes. One that has not
# brings out noise instead. Section 6's score on the demo music:
#
# | trained on | drawn in | crowded | score | seeds |
# |---|---|---|---|---|
# | 5,000 steps of 4 | 24 steps | 6 x | 76, 79 | 1, 2 |
# | | **24** | **3 x** | **83, 82** | 1, 2 |
# | | 24 | 2 x | 83, 80 | 1, 2 |
# | | 36 | 3 x | 84, 81 | 1, 2 |
# | | 12 | 3 x | 75, 77 | 1, 2 |
# | 900 steps of 4, as the demo has | **12** | **6 x** | **65** | 0 |
# | | 12 | 3 x | 51 | 0 |
# | | 24 | 6 x | 51 | 0 |
#
# Of a longer piece, overlapping windows are guessed apart and the guesses blended at each step
# (Bar-Tal 2023): neighbours agree before there is anything to hear.


# %%
#| export flow
def flow_times(flow: FlowConfig) -> list[float]:  # 0 .. 1, one more than there are steps
    "Place the steps on the line, crowded near noise."
    even = (step / flow.draw_steps for step in range(flow.draw_steps + 1))
    return [s / (s + flow.crowding * (1 - s)) for s in even]


def guess_piece(
    net: Flow,
    x: torch.Tensor,  # (B, 1, M, T) a place on the line, any T
    t: float,  # 0: noise, 1: picture
    labels: torch.Tensor,  # (B, 2) in [-1, 1]
    asked: float,  # 1: the labels hold, 0: any emotion
) -> torch.Tensor:  # (B, 1, M, T)
    "Guess the end of the line in windows of the training's width, blended."
    width = min(net.shape[1], x.shape[3])
    starts = window_starts(x.shape[3], width)
    windows = torch.cat([x[..., start : start + width] for start in starts])
    labels = labels.repeat(len(starts), 1)
    flags = labels.new_full((len(labels), 1), asked)
    guesses = net.guess(windows, t * flags.new_ones(len(labels)), labels, flags)
    return blend_windows(guesses.unflatten(0, (len(starts), -1)).transpose(0, 1), x.shape[3])


def draw_flow(
    net: Flow,
    start: torch.Tensor,  # (B, 1, M, T) standard normal, any T
    labels: torch.Tensor,  # (B, 2) valence and arousal in [-1, 1]
    *,
    guidance: float,  # 1: follow the condition, 0: ignore it, above 1: exaggerate it
) -> torch.Tensor:  # (B, 1, M, T) standardised
    "Walk from noise to pictures in Euler's steps."
    x = start
    for t, after in pairwise(flow_times(net.flow)):
        picture = guess_piece(net, x, t, labels, 1.0)
        if guidance != 1 and t < net.flow.guidance_until:
            free = guess_piece(net, x, t, labels, 0.0)
            picture = free + guidance * (picture - free)
        x = x + (after - t) / (1 - t) * (picture - x)
    return x


# %% [markdown]
# Odd widths come out as asked, the same noise gives the same window, and with guidance 1 the
# steps are those of the conditional guess alone.

# %%
odd = {"flow.channels": [8, 16, 16], "gan.frames": 50, "dataset.window_frames": 50}
small_flow = make_config("smoke", odd)
net = Flow(small_flow).eval()
noise = torch.randn(2, net.noise_size(50))
labels = torch.tensor([[0.8, 0.7], [-0.8, -0.6]])
with torch.no_grad():
    drawn = net(noise, labels)
    test_eq(drawn.shape, (2, 1, 128, 50))
    assert drawn.abs().max() <= 1 and torch.equal(net(noise, labels), drawn)
    for frames in (37, 130):
        piece = net(torch.randn(1, net.noise_size(frames)), labels[:1], frames)
        test_eq(piece.shape, (1, 1, 128, frames))
times = flow_times(FlowConfig())
test_eq((times[0], times[-1]), (0, 1))
assert times[1] < 0.03 and sorted(times) == times


# %% [markdown]
# ## Drawing on demand
#
# The one way to windows and longer pieces for the sections that follow. A generator is anything
# that says how much noise a piece needs and makes one of it. Every row grows its noise from its
# own seed: row 1234 can be made again alone, on any device. Batch size and count decide memory
# and time, not the music (to the last bits of a float).


# %%
#| export drawing
def check_conditions(
    conditions: np.ndarray,  # (K, 2) valence and arousal
    what: str = "condition",  # they are, for the message
) -> np.ndarray:  # float32
    "Refuse conditions that are no emotions; raises MusemoError."
    conditions = np.asarray(conditions, dtype=np.float32)
    if conditions.ndim != 2 or conditions.shape[1] != 2:
        raise MusemoError(f"{what}s of shape {conditions.shape}: needed is (K, 2)")
    bad = np.flatnonzero(~(np.abs(conditions) <= 1).all(1))  # NaN is bad, too
    if len(bad):
        valence, arousal = conditions[bad[0]]
        raise MusemoError(
            f"{what} {bad[0]} is valence {valence:g}, arousal {arousal:g}: "
            "both must be in [-1, 1]; map (x - 5) / 4 from the 1-9 scale"
        )
    return conditions


def row_noise(
    seeds: list[int],  # a row's own seed
    size: int,  # numbers of noise
) -> torch.Tensor:  # (B, size) standard normal
    "Draw the noise of each row from its own seed, on the CPU whatever the device."
    rows = [torch.randn(size, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(rows)


# %%
#| export drawing
@torch.inference_mode()
def generate(
    generator: nn.Module,  # noise_size(T); (B, noise_size), (B, 2), T -> (B, 1, M, T) in [-1, 1]
    conditions: np.ndarray,  # (K, 2) valence and arousal, [-1, 1]
    *,
    seeds: list[int],  # K; rows of one seed grow from one noise
    frames: int,  # T of each piece
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
    out: np.ndarray | None = None,  # (K, M, T) float16 to write into, e.g. on disk
) -> np.ndarray:  # (K, M, T) float16 in [-1, 1]
    "Generate a piece for each condition; raises MusemoError for odd conditions or seeds."
    conditions, device = torch.from_numpy(check_conditions(conditions)), torch.device(device)
    if len(seeds) != len(conditions):
        raise MusemoError(
            f"{len(seeds)} seeds for {len(conditions)} conditions: give one to each row; "
            "rows may share theirs"
        )
    generator, size = generator.to(device).eval(), generator.noise_size(frames)
    count = len(conditions)
    if not count:  # one piece is drawn and left out: it says how many bands there are
        conditions, seeds = torch.zeros(1, 2), [0]
    for start in progress(range(0, len(conditions), batch_size), desc="drawing"):
        asked = conditions[start : start + batch_size]
        noise = row_noise(seeds[start : start + batch_size], size)
        with autocast(device, precision):
            pieces = generator(noise.to(device), asked.to(device), frames)[:, 0].float()
        pieces = pieces.cpu().numpy()
        if not np.isfinite(pieces).all():
            raise MusemoError(f"the generator drew NaN after row {start}: train it again")
        if out is None:
            out = np.empty((count, *pieces.shape[1:]), dtype=np.float16)
        out[start : start + batch_size] = np.clip(pieces[: count - start], -1, 1)
    return out


# %%
#| export drawing
def build_generator(
    config: Config,
    name: str,  # gan, residual or flow
) -> nn.Module:
    "Build one of the generators, untrained, from torch's global random state."
    return Flow(config) if name == "flow" else Generator(config)


# %%
wanted = np.array([[0.8, 0.7], [-0.8, -0.6], [0, 0]])
for name in ("gan", "residual", "flow"):
    drawer = build_generator(small, name)
    drawn = generate(drawer, wanted, seeds=[1, 2, 3], frames=64)
    test_eq((drawn.shape, drawn.dtype), ((3, 128, 64), np.float16))
    test_close(generate(drawer, wanted, seeds=[1, 2, 3], frames=64, batch_size=2), drawn, eps=2e-3)
    test_eq(generate(drawer, wanted[:1], seeds=[1], frames=150).shape, (1, 128, 150))
options = {"seeds": [1], "frames": 64}
test_eq(generate(generator, np.empty((0, 2)), seeds=[], frames=64).shape, (0, 128, 64))
test_fail(lambda: generate(generator, wanted, **options), contains="1 seeds for 3 conditions")
test_fail(lambda: generate(generator, [[0, 1.5]], **options), contains="arousal 1.5")
test_fail(lambda: check_conditions([[0, 0], [4.2, 0]]), contains="condition 1 is valence 4.2")
test_fail(lambda: check_conditions([[np.nan, 0]]), contains="must be in [-1, 1]")


# %% [markdown]
# Weights mean something only on the audio scale and at the width that they were trained for.
# Many such settings change no shape: weights for 8 kHz load without complaint where bands end at
# 7, and draw everything out of tune. So what they depend on is written beside them, and compared.


# %%
#| export drawing
def weight_settings(
    config: Config,
    name: str,  # gan, residual or flow
) -> dict[str, object]:  # dotted field -> value, as JSON has it
    "List the settings that a generator's weights fit; with others they mean nothing."
    audio = config.audio.model_dump(mode="json", exclude={"clip_seconds"})
    if name == "flow":
        own = {"gan": {"frames": config.gan.frames}, "flow": {"channels": [*config.flow.channels]}}
    else:
        sizes = {"frames", "latent", "condition", "channels", "attention_after"}
        sizes |= {"steepest_fall", "first_fall"}
        own = {"gan": config.gan.model_dump(mode="json", include=sizes)}
    return {f"{part}.{k}": v for part, x in ({"audio": audio} | own).items() for k, v in x.items()}


# %%
#| export drawing
def check_weight_settings(
    found: dict[str, object],  # what weight_settings listed in training
    config: Config,
    name: str,
) -> None:
    "Raise MusemoError with the field in which weights are of another configuration."
    for field, needed in weight_settings(config, name).items():
        if found.get(field) != needed:
            raise MusemoError(
                f"{name}.safetensors is of another configuration: {field} is {found.get(field)}, "
                f"this one needs {needed}; train again (--from 5), or set {field} back"
            )


# %%
lower = make_config("smoke", {**tiny, "audio.f_max": 7000})
check_weight_settings(weight_settings(small, "gan"), small, "gan")
for name in ("gan", "residual", "flow"):
    known = weight_settings(small, name)
    test_fail(
        lambda known=known, name=name: check_weight_settings(known, lower, name),
        contains="audio.f_max is 8000.0, this one needs 7000.0",
    )


# %% [markdown]
# A checkpoint is opened with its settings compared first, then every shape.


# %%
#| export drawing
def load_generator(
    run: Run,
    config: Config,
    name: str,  # one of config.generators
) -> nn.Module:
    "Load a generator; raises MusemoError where the checkpoint is of another configuration."
    weights, history = run.load(f"{name}.safetensors"), run.load(f"{name}_history.json")
    check_weight_settings(history.get("settings", {}), config, name)
    weights = {k.removeprefix("generator."): v for k, v in weights.items() if k[:3] == "gen"}
    generator = build_generator(config, name)
    wanted = generator.state_dict()
    missing = sorted(wanted.keys() ^ weights.keys())
    wrong = [k for k in wanted if k in weights and weights[k].shape != wanted[k].shape]
    if missing or wrong:
        key = (wrong or missing)[0]
        found, needed = (tuple(w[key].shape) if key in w else None for w in (weights, wanted))
        raise MusemoError(
            f"{name}.safetensors does not fit {name}_history.json: {key} is {found}, needed is "
            f"{needed}; train again (--from 5)"
        )
    generator.load_state_dict(weights)
    return generator


# %%
with tempfile.TemporaryDirectory() as folder:
    run, values = Run(Path(folder)), {"gan.narrowest": 8, "audio.n_mels": 32}
    config, other, lower = (
        make_config("smoke", values | {"gan.channels": n, "audio.f_max": top})
        for n, top in ((16, 8000), (32, 8000), (16, 7000))
    )
    weights = build_generator(config, "gan").state_dict()
    weights = {f"generator.{k}": v.contiguous() for k, v in weights.items()}
    run.save("gan.safetensors", weights)
    about = {"settings": weight_settings(config, "gan"), "units": {"settings": "as in config"}}
    run.save("gan_history.json", about)
    trained = load_generator(run, config, "gan")
    test_eq(generate(trained, [[0.8, 0.7]], seeds=[0], frames=100).shape, (1, 32, 100))
    test_fail(lambda: load_generator(run, other, "gan"), contains="gan.channels is 16")
    test_fail(lambda: load_generator(run, lower, "gan"), contains="audio.f_max is 8000.0")
    run.save("gan.safetensors", dict(list(weights.items())[1:]))
    test_fail(lambda: load_generator(run, config, "gan"), contains="does not fit gan_history")

# %% [markdown]
# ## On the run
#
# The pair at this run's size, before any training: what the generator draws is the floor that
# training has to leave.

# %% tags=["parameters"]
run_folder = None  # a run's folder; None: a run at the smoke size, made on the spot

# %%
#| hide
from musemo.opening import open_run

run, config = open_run(run_folder, before=4)

# %%
import librosa

# %%
torch.manual_seed(config.seed)
generator, discriminator = build_gan(config)
sizes = network_sizes(generator=generator, discriminator=discriminator)
print(
    f"The GAN: {sizes['generator'] / 1e6:.2f} M parameters draw, "
    f"{sizes['discriminator'] / 1e6:.2f} M judge."
)

# %% [markdown]
# Left: a window of a real song. Right: the untrained generator, before it is told of any song.

# %%
songs, log_mel = load_part(run, "train")
real, _ = cut_windows(log_mel[:1], songs["frames"].to_numpy()[:1], config.gan.frames)
labels = songs[["valence", "arousal"]].to_numpy()[:1]
drawn = generate(generator, labels, seeds=[config.seed], frames=config.gan.frames)
bands = librosa.mel_frequencies(
    config.audio.n_mels, fmin=config.audio.f_min, fmax=config.audio.f_max
)
figure, axes = subplots(1, 2, size=(4.5, 2.8))
for panel, picture, title in zip(axes, (real[0], drawn[0]), ("Real", "Untrained"), strict=True):
    plot_log_mel(
        panel,
        config.audio.to_db(picture),
        sample_rate=config.audio.sample_rate,
        hop=config.audio.hop,
        bands=bands,
        limits=(config.audio.db_min, config.audio.db_max),
        title=title,
    )
drawers = {name: build_generator(config, name) for name in config.generators}
millions = ", ".join(f"{name} {n / 1e6:.2f} M" for name, n in network_sizes(**drawers).items())
run.headline("04_gan", f"parameters that draw: {millions}", figure)
