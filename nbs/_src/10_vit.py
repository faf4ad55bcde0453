# %%
#| default_exp vit

# %% [markdown]
# # ViT
#
# > A Vision Transformer that reads a spectrogram as a picture and answers with valence and arousal.
#
# The network, its weights, and which parts of it may move. It knows no loss, no optimiser and no
# file of the run. Pretrained weights come from where section 2 finds them; training from scratch
# is a choice (`vit.weights=scratch`), never what happens when the others fail.
#
# Shapes: B batch, P patches, D token width.

# %%
#| export backbone
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import transformers  # loads its models when they are named, not here
from torch import nn

from musemo.weights import WAYS_OUT, WeightsError

# %%
#| export
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn

from musemo.backbone import read_backbone, read_normalisation
from musemo.config import Config
from musemo.descriptors import (
    band_statistics,
    harmony_statistics,
    pitch_classes,
    rhythm_statistics,
    tempo_lags,
)
from musemo.readout import Trees, pool_window_tokens
from musemo.weights import find_weights

# %%
#| export descriptors
import librosa
import numpy as np
import torch

from musemo.config import AudioConfig, SmallConfig

# %%
#| export readout
import numpy as np
import torch
from torch import nn

from musemo.config import SmallConfig

# %%
#| hide
import tempfile

from fastcore.test import test_close, test_eq
from sklearn.ensemble import GradientBoostingRegressor

from musemo.presets import make_config


# %% [markdown]
# ## A picture in, two numbers out
#
# The class token goes through dropout and one linear layer. The output is linear while training:
# a tanh would flatten the slopes just where predictions already hug the middle. When the model
# is used, answers are clipped to the scale, which can only bring them closer to a label.


# %%
#| export
class EmotionViT(nn.Module):
    "A ViT with a regression head: (B, 3, H, W) pixels -> (B, 2) valence and arousal."

    reads_pixels = False  # the head sees tokens alone

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dropout: float = 0.1,  # share, before the head
        mean: tuple[float, ...] = (0.5,) * 3,  # of the pretraining's pictures, a channel
        std: tuple[float, ...] = (0.5,) * 3,
        source: str = "scratch",  # where the weights come from
    ):
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(backbone.config.hidden_size, 2)
        self.mean, self.std, self.source = tuple(mean), tuple(std), source

    def describe(self, pixels: torch.Tensor) -> torch.Tensor:  # (B, D)
        "Give what the head reads of a picture."
        return self.pool(self.backbone(pixel_values=pixels).last_hidden_state, pixels)

    def pool(self, tokens: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        "Take the class token of (B, 1 + P, D)."
        return tokens[:, 0]

    def answer(self, features: torch.Tensor) -> torch.Tensor:  # (B, D) -> (B, 2)
        "Read valence and arousal; within [-1, 1] once the model is in eval mode."
        emotion = self.head(self.dropout(features))
        return emotion if self.training else emotion.clamp(-1, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        "Predict valence and arousal."
        return self.answer(self.describe(pixels))


# %%
tiny = transformers.ViTConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    image_size=32,
    patch_size=16,
)
model = EmotionViT(transformers.ViTModel(tiny, add_pooling_layer=False)).eval()
pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
test_eq(model(pixels).shape, (3, 2))
model.head.bias.data.fill_(5.0)
test_eq(model(pixels).detach().numpy(), torch.ones(3, 2).numpy())


# %% [markdown]
# ## The floor as a starting point
#
# With zero weights in the head and the training songs' mean label as its bias, the model begins
# as the mean predictor. Whatever it learns is gained on that floor, and no epoch is spent on
# finding the middle of the scale.


# %%
#| export
def start_at_mean(
    model: EmotionViT,
    labels: torch.Tensor,  # (N, 2) valence and arousal of the training songs, [-1, 1]
) -> None:
    "Make the untrained head answer the mean label, whatever it sees."
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.as_tensor(labels).float().mean(dim=0))


# %%
start_at_mean(model, torch.tensor([[0.2, 0.0], [0.4, -0.2]]))
test_close(model(pixels).detach().numpy(), [[0.3, -0.1]] * 3, eps=1e-6)


# %% [markdown]
# ## For small data
#
# A network that is trained on a hundred labels loses to a ridge regression on the spectrogram's
# statistics: on 200 piano pieces, five folds, R2 .42 for arousal against .55. Three things turn
# that around, and none of them needs pretrained weights: the network learns from the sound
# alone before it sees a label (section 11), it then stays as it is, and plain regressions read
# its tokens beside statistics of the same windows.


# %%
#| export descriptors
def band_statistics(
    windows: torch.Tensor,  # (B, 1, M, T) log-mel
) -> torch.Tensor:  # (B, 3 * M / 2)
    "Describe windows by mean, spread and mean absolute step of pairs of mel bands."
    bands = windows[:, 0].unflatten(1, (-1, 2)).mean(2)  # (B, M / 2, T)
    step = bands.diff(dim=2, prepend=bands[..., :1]).abs().mean(2)
    return torch.cat([bands.mean(2), bands.std(2, correction=0), step], dim=1)


# %%
busy = torch.tensor([0.0, 0.5]).repeat(1, 1, 16, 5)  # (1, 1, 16, 10)
test_close(band_statistics(busy)[0, [0, 8, 16]].numpy(), [0.25, 0.25, 0.45], eps=1e-6)


# %% [markdown]
# What listeners name when asked for the cues of valence is tempo and mode (Gabrielsson 2001), and
# neither shows in a mean over time. So windows are also described by their pulse: how strong
# onsets are, and how well they repeat after the time of a beat, from slow to fast.


# %%
#| export descriptors
def tempo_lags(audio: AudioConfig, small: SmallConfig) -> torch.Tensor:  # (L,) frames
    "Say how many frames a beat takes, from the slowest tempo to the fastest."
    beats = np.geomspace(small.slowest, small.fastest, small.tempi)  # a minute
    return torch.from_numpy(np.round(60 * audio.sample_rate / audio.hop / beats)).long()


def rhythm_statistics(
    windows: torch.Tensor,  # (B, 1, M, T) log-mel
    lags: torch.Tensor,  # (L,) frames
) -> torch.Tensor:  # (B, L + 4)
    "Describe the pulse: autocorrelation of onsets at each lag, mean, spread, density, best repeat."
    onsets = windows[:, 0].diff(dim=2).clamp(min=0).mean(1)  # (B, T - 1)
    mean, spread = onsets.mean(1, keepdim=True), onsets.std(1, correction=0, keepdim=True)
    waves = torch.fft.rfft(onsets - mean, n=2 * windows.shape[3]).abs().square()
    repeats = torch.fft.irfft(waves)[:, : windows.shape[3] + 1]  # (B, T + 1), none beyond
    repeats = repeats / repeats[:, :1].clamp(min=1e-9)
    around = (lags[:, None] + torch.arange(-1, 2, device=lags.device)).clamp(max=windows.shape[3])
    at_tempo = repeats[:, around].amax(2)  # a beat need not last whole frames
    dense = (onsets > mean + 1.5 * spread).float().mean(1, keepdim=True)
    return torch.cat([at_tempo, mean, spread, dense, at_tempo.amax(1, keepdim=True)], dim=1)


# %% [markdown]
# A click every 20 frames repeats at the lag of 20 and not at 30; silence has no pulse.

# %%
clicks = torch.full((1, 1, 8, 256), -1.0)
clicks[..., ::20] = 0.5
pulse = rhythm_statistics(clicks, torch.tensor([20, 30]))[0]
assert pulse[0] > 0.8 > 0.2 > pulse[1]
test_close(rhythm_statistics(torch.full((1, 1, 8, 64), -1.0), torch.tensor([20, 90])).numpy(), 0)

# %% [markdown]
# And by their harmony: which of the twelve pitch classes sound, turned so that the likeliest tonic
# comes first, how well they fit a major and a minor key, how evenly they are spread and how fast
# they change. Peaks between bands stand for partials; a mel band is a semitone wide only above
# some 500 Hz, so this is a blurred chroma, good enough for a mean over seconds.

# %%
#| export descriptors
# How well each pitch class fits a major and a minor key, from the tonic up (Krumhansl 1990).
MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)


def pitch_classes(audio: AudioConfig, small: SmallConfig) -> torch.Tensor:  # (12, M)
    "Share each mel band out to the two pitch classes that its centre lies between."
    hertz = librosa.mel_frequencies(audio.n_mels, fmin=audio.f_min, fmax=audio.f_max)
    pitch = librosa.hz_to_midi(np.maximum(hertz, 1.0))
    low, bands = np.floor(pitch).astype(int), np.arange(audio.n_mels)
    shares = np.zeros((12, audio.n_mels), np.float32)
    shares[low % 12, bands], shares[(low + 1) % 12, bands] = 1 - (pitch - low), pitch - low
    shares[:, (hertz < small.lowest_pitch) | (hertz > small.highest_pitch)] = 0
    return torch.from_numpy(shares)


def harmony_statistics(
    windows: torch.Tensor,  # (B, 1, M, T) log-mel in [-1, 1]
    classes: torch.Tensor,  # (12, M) as pitch_classes gives it
    decibels: float,  # between -1 and 1
) -> torch.Tensor:  # (B, 17)
    "Describe the harmony: fit to major and minor, their difference, evenness, change, chroma."
    loud = 10 ** (windows[:, 0] * decibels / 40)  # amplitude
    inner = loud[:, 1:-1]
    peaks = inner * (inner >= loud[:, :-2]) * (inner >= loud[:, 2:])
    chroma = classes[:, 1:-1] @ peaks  # (B, 12, T)
    chroma = chroma / chroma.sum(1, keepdim=True).clamp(min=1e-9)
    change = chroma.diff(dim=2).abs().sum(1).mean(1, keepdim=True)
    share = (classes[:, 1:-1] @ peaks).mean(2)
    share = share / share.sum(1, keepdim=True).clamp(min=1e-9)
    even = -(share * share.clamp(min=1e-9).log()).sum(1, keepdim=True)
    fit = torch.stack([key_fit(share, MAJOR), key_fit(share, MINOR)])  # (2, B, 12)
    major, minor = fit.amax(2)[..., None]
    tonic = fit.amax(0).argmax(1, keepdim=True)
    turned = share.gather(1, (tonic + torch.arange(12, device=share.device)) % 12)
    return torch.cat([major, minor, major - minor, even, change, turned], dim=1)


def key_fit(
    share: torch.Tensor,  # (B, 12) of each pitch class
    profile: tuple[float, ...],  # from the tonic up
) -> torch.Tensor:  # (B, 12)
    "Correlate what sounds with a key's profile on each of the twelve tonics."
    key = torch.tensor(profile, device=share.device)
    keys = torch.stack([key.roll(tonic) for tonic in range(12)])
    share, keys = (x - x.mean(1, keepdim=True) for x in (share, keys))
    norms = share.norm(dim=1, keepdim=True).clamp(min=1e-9) * keys.norm(dim=1)
    return share @ keys.T / norms


# %% [markdown]
# Triads built of single bands: G major fits major better than minor, E minor the other way round,
# and moved up by a tone the turned chroma stays.

# %%
sound, small = make_config("full").audio, make_config("full").small
hertz = librosa.mel_frequencies(128, fmin=sound.f_min, fmax=sound.f_max)


def chord(*names):
    played = torch.full((1, 1, 128, 32), -1.0)
    for name in names:
        played[0, 0, np.abs(hertz - librosa.note_to_hz(name)).argmin()] = 0.5
    return harmony_statistics(played, pitch_classes(sound, small), 100.0)[0]


assert chord("G6", "B6", "D7")[2] > 0 > chord("E6", "G6", "B6")[2]
assert (chord("G6", "B6", "D7")[5:] - chord("A6", "C#7", "E7")[5:]).abs().max() < 0.2


# %% [markdown]
# Tokens are summed up in the same spirit: the class token, and the mean and spread of the others.


# %%
#| export readout
def pool_window_tokens(tokens: torch.Tensor) -> torch.Tensor:  # (B, 1 + P, D) -> (B, 3 * D)
    "Describe a window by its class token, and the mean and spread of the others."
    others = tokens[:, 1:]
    return torch.cat([tokens[:, 0], others.mean(1), others.std(1, correction=0)], dim=1)


# %%
test_eq(pool_window_tokens(torch.ones(2, 5, 4)).shape, (2, 12))


# %% [markdown]
# The two plain regressions are scikit-learn's. Leave-one-out on the training songs chooses the
# ridge's penalty, for each target.


# %%
#| export readout
def ridge_regression():
    "Make scikit-learn's ridge regression, unfitted."
    from sklearn.linear_model import RidgeCV  # here: predicting a song needs no fit

    return RidgeCV(alphas=np.logspace(0, 5, 21), alpha_per_target=True)


def boosted_trees(small: SmallConfig, *, seed: int):
    "Make scikit-learn's boosted trees of one target, unfitted (Friedman 2001)."
    from sklearn.ensemble import GradientBoostingRegressor  # here: predicting needs no fit

    return GradientBoostingRegressor(
        n_estimators=small.trees,
        learning_rate=small.tree_rate,
        max_depth=small.tree_depth,
        subsample=small.tree_songs,
        min_samples_leaf=small.tree_leaf,
        max_features="sqrt",
        random_state=seed,
    )


# %%
rows = np.random.default_rng(0).normal(size=(80, 3))
curved = rows[:, 0] + rows[:, 1] ** 2
fits = [
    regression.fit(rows[:60], curved[:60]).score(rows[60:], curved[60:])
    for regression in (ridge_regression(), boosted_trees(make_config("full").small, seed=0))
]
assert fits[0] < fits[1]  # a line cannot bend


# %% [markdown]
# Boosted trees see what a line cannot: that tempo matters more where the music is loud. They are
# fitted by scikit-learn and kept as plain tensors, so that a model is one safetensors file and
# opens without scikit-learn. A leaf points to itself: every row takes as many steps.


# %%
#| export readout
class Trees(nn.Module):
    "Boosted regression trees of valence and arousal: (B, D) -> (B, 2)."

    def __init__(self, trees: int, nodes: int, depth: int):
        super().__init__()
        self.size = {"trees": trees, "nodes": nodes, "depth": depth}
        count = 2 * trees * nodes  # one flat list, valence's trees first
        self.register_buffer("start", torch.zeros(2))
        self.register_buffer("feature", torch.zeros(count, dtype=torch.long))
        self.register_buffer("threshold", torch.zeros(count))
        self.register_buffer("low", torch.arange(count))
        self.register_buffer("high", torch.arange(count))
        self.register_buffer("value", torch.zeros(count))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        "Sum what the leaves say that each row falls into."
        count, nodes = 2 * self.size["trees"], self.size["nodes"]
        place = nodes * torch.arange(count, device=features.device).expand(len(features), -1)
        for _ in range(self.size["depth"]):
            lower = features.gather(1, self.feature[place]) <= self.threshold[place]
            place = torch.where(lower, self.low[place], self.high[place])
        return self.start + self.value[place].unflatten(1, (2, -1)).sum(2)


def plant_trees(
    boosted: list,  # scikit-learn's fitted GradientBoostingRegressor of valence and of arousal
) -> Trees:
    "Copy fitted trees into tensors."
    fitted = [tree.tree_ for model in boosted for tree in model.estimators_[:, 0]]
    nodes, depth = max(t.node_count for t in fitted), max(t.max_depth for t in fitted)
    trees = Trees(len(fitted) // 2, nodes, depth)
    trees.start[:] = torch.tensor([float(model.init_.constant_.item()) for model in boosted])
    for i, tree in enumerate(fitted):
        places, first = slice(i * nodes, i * nodes + tree.node_count), i * nodes
        inner = torch.from_numpy(tree.children_left >= 0)
        trees.feature[places] = torch.from_numpy(tree.feature).clamp(min=0)
        low = tree.threshold.astype(np.float32)  # float64 is not on every GPU
        low = np.where(low > tree.threshold, np.nextafter(low, np.float32(-np.inf)), low)
        trees.threshold[places] = torch.from_numpy(low)  # the same for features of float32
        trees.value[places] = torch.from_numpy(tree.value.ravel() * boosted[0].learning_rate)
        for side, child in ((trees.low, tree.children_left), (trees.high, tree.children_right)):
            side[places] = torch.where(inner, first + torch.from_numpy(child), side[places])
    return trees


# %%
rows, targets = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32), {}
targets = [rows[:, 0] * rows[:, 1], np.abs(rows[:, 2])]
boosted = [GradientBoostingRegressor(n_estimators=9, random_state=0).fit(rows, y) for y in targets]
grown = plant_trees(boosted)(torch.from_numpy(rows))
test_close(grown.numpy(), np.stack([m.predict(rows) for m in boosted], 1), eps=1e-5)


# %% [markdown]
# The line and the trees read the same features and are averaged. Features are standardised by
# the training songs; a feature that never varies there counts as zero.


# %%
#| export
class SmallViT(EmotionViT):
    "A ViT over windows, read beside their statistics: (B, 1, M, T) -> (B, 2)."

    reads_pixels = True

    def __init__(
        self,
        backbone: nn.Module,
        *,
        tempi: int,  # at which onsets may repeat
        trees: dict | None = None,  # the size of Trees
        **options,  # of EmotionViT
    ):
        super().__init__(backbone, **options)
        bands, _ = backbone.config.image_size
        size = 3 * backbone.config.hidden_size + 3 * bands // 2 + (tempi + 4) + 17
        self.head = nn.Linear(size, 2)
        self.register_buffer("lags", torch.ones(tempi, dtype=torch.long))
        self.register_buffer("chroma_bank", torch.zeros(12, bands))
        self.register_buffer("decibels", torch.tensor(100.0))
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        self.trees = Trees(**trees) if trees else None

    def pool(self, tokens: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:  # (B, features)
        "Join what the tokens say of windows with their statistics, the tokens first."
        parts = [pool_window_tokens(tokens), band_statistics(pixels)]
        parts += [rhythm_statistics(pixels, self.lags)]
        parts += [harmony_statistics(pixels, self.chroma_bank, self.decibels)]
        return torch.cat(parts, dim=1)

    def answer(self, features: torch.Tensor) -> torch.Tensor:
        "Read valence and arousal by a line, averaged with trees where there are some."
        line = self.head(self.dropout((features - self.centre) / self.spread))
        if self.training:
            return line
        return (line if self.trees is None else (line + self.trees(features)) / 2).clamp(-1, 1)


# %%
by_columns = {"image_size": [128, 64], "patch_size": [128, 8], "num_channels": 1}
by_columns = transformers.ViTConfig(**{**tiny.to_diff_dict(), **by_columns})
reader = SmallViT(transformers.ViTModel(by_columns, add_pooling_layer=False), tempi=5).eval()
window = torch.rand(2, 1, 128, 64) - 0.5
test_eq(reader.backbone(window).last_hidden_state.shape, (2, 1 + 8, 16))
test_eq(reader.describe(window).shape, (2, 3 * 16 + 192 + (5 + 4) + 17))
test_eq(reader(window).shape, (2, 2))


# %% [markdown]
# ## Pretrained weights, with nothing left to chance
#
# Section 2 says where they come from. transformers fills weights that a checkpoint lacks with
# random numbers and only logs it. Here that is an error. What a checkpoint has too much (a
# classifier, a pooler) is left out: the regression head takes its place.


# %%
#| export backbone
@contextmanager
def _quiet_transformers() -> Iterator[None]:
    "Keep transformers' bars and load reports off the page: what they would say is checked."
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.ERROR)
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


# %%
#| export backbone
def read_backbone(
    folder: Path,  # with config.json and *.safetensors
) -> nn.Module:
    "Read a pretrained ViT whole; raises WeightsError where a weight is missing or does not fit."
    try:
        with _quiet_transformers():
            backbone, info = transformers.ViTModel.from_pretrained(
                folder, add_pooling_layer=False, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # safetensors and transformers each raise their own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise WeightsError(f"{folder}: cannot be read as a ViT ({reason}); {WAYS_OUT}") from error
    lacking = [*info["missing_keys"], *info["mismatched_keys"]]
    if lacking:
        raise WeightsError(
            f"{folder}: {len(lacking)} weights are missing or misshapen and would start at "
            f"random, e.g. {sorted(map(str, lacking))[0]}; {WAYS_OUT}"
        )
    return backbone.float()  # a checkpoint in half precision would stay in it


# %% [markdown]
# A checkpoint says how its pictures were normalised, and the pictures it gets from us must be
# normalised alike. Where it says nothing, transformers' own default for ViT holds: mean and
# deviation .5 in each channel.


# %%
#| export backbone
def read_normalisation(
    folder: Path,
) -> tuple[tuple[float, ...], tuple[float, ...]]:  # mean and std, a channel
    "Read how the pretraining normalised its pictures."
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    if not settings.get("do_normalize", True):
        return (0.0,) * 3, (1.0,) * 3
    default = [0.5, 0.5, 0.5]
    mean, std = (settings.get(f"image_{key}") or default for key in ("mean", "std"))
    return tuple(mean), tuple(std)


# %% [markdown]
# ## Building it
#
# From scratch, the configuration gives the size. Its patches are squares of the resized picture
# or, where the picture is the window itself, columns over all bands: a token is then a moment of
# the song, and 6 s are 32 tokens instead of 196.


# %%
#| export
def scratch_backbone(config: Config) -> nn.Module:
    "Make a ViT with random weights in the configuration's size."
    vit, side, bands = config.vit, config.dataset.image_size, config.audio.n_mels
    picture = {"image_size": side, "patch_size": vit.patch}
    if not side:  # the window itself, in columns
        window = [bands, config.window]
        picture = {"image_size": window, "patch_size": [bands, vit.patch], "num_channels": 1}
    return transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=vit.hidden,
            num_hidden_layers=vit.layers,
            num_attention_heads=vit.heads,
            intermediate_size=4 * vit.hidden,
            hidden_dropout_prob=0.0,
            **picture,
        ),
        add_pooling_layer=False,
    )


# %%
#| export
def build_vit(
    config: Config,
    *,
    kaggle: str | Path = "/kaggle/input",  # where Kaggle mounts inputs
) -> EmotionViT:
    "Build the model with the weights that vit.weights names; raises WeightsError without them."
    dropout = config.vit.dropout
    if config.vit.weights == "scratch":
        if config.training.recipe == "spec":
            return EmotionViT(scratch_backbone(config), dropout=dropout)
        model = SmallViT(scratch_backbone(config), dropout=dropout, tempi=config.small.tempi)
        model.lags[:] = tempo_lags(config.audio, config.small)
        model.chroma_bank[:] = pitch_classes(config.audio, config.small)
        model.decibels.fill_(config.audio.db_max - config.audio.db_min)
        return model
    folder, source = find_weights(config, kaggle)
    mean, std = read_normalisation(folder)
    return EmotionViT(read_backbone(folder), dropout=dropout, mean=mean, std=std, source=source)


# %%
with tempfile.TemporaryDirectory() as folder:
    model.backbone.save_pretrained(folder)
    settings = {"vit.weights": folder, "dataset.image_size": 32}
    loaded = build_vit(make_config("full", settings))
    test_close(loaded.backbone(pixels)[0].detach(), model.backbone(pixels)[0].detach())


# %% [markdown]
# ## A model that can be read back
#
# A trained model must open again without the hub: its description goes beside its weights. The
# weights then fit exactly or not at all.


# %%
#| export
def describe_vit(model: EmotionViT) -> dict:  # for a .json file
    "Describe a model, so that `revive_vit` can build it again around its weights."
    backbone = model.backbone.config.to_diff_dict()
    plain = {k: v for k, v in backbone.items() if isinstance(v, int | float | str | bool | list)}
    del plain["transformers_version"]
    parts = {"mean": list(model.mean), "std": list(model.std), "recipe": "spec"}
    if isinstance(model, SmallViT):
        parts |= {"recipe": "small", "trees": model.trees.size if model.trees else None}
        parts["tempi"] = len(model.lags)
    return {"source": model.source, "dropout": model.dropout.p, "backbone": plain} | parts


_RENAMED = {  # a ViT's weights in transformers up to 5.6, and since 5.20 at the latest
    "backbone.encoder.layer.": "backbone.layers.",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def rename_weights(
    state: dict[str, torch.Tensor],  # as any version of transformers names them
    model: nn.Module,  # with an EmotionViT in it
) -> dict[str, torch.Tensor]:
    "Name weights as the installed transformers does."
    fresh = any("backbone.layers." in name for name in model.state_dict())
    pairs = _RENAMED.items() if fresh else [(new, old) for old, new in _RENAMED.items()]
    renamed = {}
    for name, weight in state.items():
        for before, after in pairs:
            name = name.replace(before, after)
        renamed[name.replace("classes", "chroma_bank")] = weight  # as musemo named it first
    return renamed


def revive_vit(
    description: dict,  # from describe_vit
    state: dict[str, torch.Tensor] | None = None,  # the weights; None: to be loaded into it
) -> EmotionViT:
    "Build a described model around its weights, ready to predict."
    parts = dict(description)
    backbone = transformers.ViTModel(
        transformers.ViTConfig(**parts.pop("backbone")), add_pooling_layer=False
    )
    model = {"spec": EmotionViT, "small": SmallViT}[parts.pop("recipe")](backbone, **parts)
    if state is not None:
        model.load_state_dict(rename_weights(state, model))
    return model.eval()


# %%
weights, older = loaded.state_dict(), {}
for name, weight in weights.items():
    for before, after in _RENAMED.items():
        name = name.replace(after, before)
    older[name] = weight
assert "backbone.encoder.layer.0.attention.output.dense.weight" in older
test_eq(set(rename_weights(older, loaded)), set(weights))
for state in (weights, older):
    again = revive_vit(json.loads(json.dumps(describe_vit(loaded))), state)
    test_close(again(pixels).detach().numpy(), loaded.eval()(pixels).detach().numpy(), eps=1e-6)


# %% [markdown]
# ## A song's answer
#
# A song is judged once: what the network says of its windows is averaged, and the head reads the
# average. Ten windows of one song are not ten songs.


# %%
#| export
@torch.no_grad()
def describe_windows(
    model: EmotionViT,
    loader: Iterable,  # batches of pixels (B, C, H, W), labels, songs' places (B,)
) -> tuple[torch.Tensor, torch.Tensor]:  # features (K, D), places (K,)
    "Describe windows, in the loader's order."
    model.eval()
    device = model.head.weight.device
    features, places = [], []
    for pixels, _, place in loader:
        features.append(model.describe(pixels.to(device)).float().cpu())
        places.append(place)
    return torch.cat(features), torch.cat(places)


def average_songs(
    features: torch.Tensor,  # (K, D)
    places: torch.Tensor,  # (K,) of the windows' songs; -1: of none
) -> tuple[torch.Tensor, torch.Tensor]:  # songs' means (N, D), by place; windows of no song
    "Average each song's windows."
    own, counts = places >= 0, places[places >= 0].bincount()
    sums = torch.zeros(len(counts), features.shape[1]).index_add_(0, places[own], features[own])
    return sums / counts[:, None], features[~own]


@torch.no_grad()
def predict_songs(
    model: EmotionViT,
    loader: Iterable,  # as for describe_windows
    *,
    dtype: torch.dtype = torch.float32,  # of the forward pass
) -> np.ndarray:  # (N, 2) valence and arousal on [-1, 1], in the order of the loader's songs
    "Predict each song from the mean over its windows."
    device = model.head.weight.device
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        windows = describe_windows(model, loader)
    return model.answer(average_songs(*windows)[0].to(device)).cpu().numpy()


# %%
six = torch.randn(6, 3, 32, 32)
again.head.bias.data.zero_()
again.head.weight.data.div_(10)  # answers that no clipping touches
batches = [(six[:4], None, torch.tensor([0, 0, 1, 1])), (six[4:], None, torch.tensor([2, 2]))]
by_hand = again(six).detach().view(3, 2, 2).mean(dim=1).numpy()
test_close(predict_songs(again, batches), by_hand, eps=1e-5)
made = [(six, None, torch.tensor([0, 0, 1, 1, -1, -1]))]  # the last two are synthetic
test_eq([len(part) for part in average_songs(*describe_windows(again, made))], [2, 2])


# %% [markdown]
# ## Freezing
#
# Pretrained features are worth keeping until the head makes sense of them. Blocks thaw from
# the last one back; the final layer norm goes with the first of them. Asking for all
# blocks or more frees the patch and position embeddings as well.


# %%
#| export
def vit_blocks(backbone: nn.Module) -> nn.ModuleList:
    "Give the transformer blocks, first to last, under the name that this transformers has."
    return backbone.layers if hasattr(backbone, "layers") else backbone.encoder.layer


def run_through(parts: Iterable[nn.Module], inputs: torch.Tensor) -> torch.Tensor:
    "Call modules one after the other."
    for part in parts:
        outputs = part(inputs)
        inputs = outputs[0] if isinstance(outputs, tuple) else outputs  # transformers 4: a tuple
    return inputs


def freeze_backbone(model: EmotionViT) -> None:
    "Leave only the head trainable."
    model.backbone.requires_grad_(False)
    model.head.requires_grad_(True)


def unfreeze_last(model: EmotionViT, blocks: int) -> None:
    "Make exactly the head and the last `blocks` blocks trainable; all of it if there are fewer."
    freeze_backbone(model)
    layers = vit_blocks(model.backbone)
    if blocks >= len(layers):
        model.backbone.requires_grad_(True)
    elif blocks > 0:
        model.backbone.layernorm.requires_grad_(True)
        layers[-blocks:].requires_grad_(True)


def count_trainable(model: nn.Module) -> int:
    "Count the numbers that training may change."
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


# %% [markdown]
# By hand, for D = 16 and 32 hidden units in the perceptron: a block has 4 (D² + D) numbers for
# attention, 2 x 2D for its norms and 2 x 32 D + 32 + D for the perceptron; the head has 2D + 2
# and the last norm 2D.

# %%
block = 4 * (16 * 16 + 16) + 2 * 2 * 16 + (2 * 32 * 16 + 32 + 16)
freeze_backbone(model)
test_eq(count_trainable(model), 2 * 16 + 2)
unfreeze_last(model, 1)
test_eq(count_trainable(model), block + 2 * 16 + 2 * 16 + 2)
unfreeze_last(model, 64)
test_eq(count_trainable(model), sum(weight.numel() for weight in model.parameters()))
unfreeze_last(model, 0)
test_eq(count_trainable(model), 2 * 16 + 2)


# %% [markdown]
# The backbone moves at a tenth of the head's rate, so each is a group of its own. Frozen
# weights are in no group: an optimiser made anew at each step of the schedule never sees them.


# %%
#| export
def parameter_groups(
    model: EmotionViT,
    rate: float,  # learning rate of the head
    backbone_rate: float,  # the backbone's share of it
) -> list[dict]:
    "Group the trainable weights by learning rate, for an optimiser."
    groups = [
        {"params": list(model.head.parameters()), "lr": rate},
        {"params": list(model.backbone.parameters()), "lr": rate * backbone_rate},
    ]
    for group in groups:
        group["params"] = [weight for weight in group["params"] if weight.requires_grad]
    return [group for group in groups if group["params"]]


# %%
test_eq(len(parameter_groups(model, 1e-4, 0.1)), 1)
unfreeze_last(model, 1)
test_close([group["lr"] for group in parameter_groups(model, 1e-4, 0.1)], [1e-4, 1e-5], eps=1e-9)

# %% [markdown]
# ## On the run
#
# The model of this run, before training: where its weights come from and how many of them each
# step of the schedule may change.

# %% tags=["parameters"]
run_folder = None  # a run's folder; None: a run at the smoke size, made on the spot

# %%
#| hide
import pandas as pd

from musemo.core import COLORS, subplots
from musemo.opening import open_run

run, config = open_run(run_folder, before=10)

# %%
untrained = build_vit(config)
steps = dict([(1, 0), *config.training.unfreeze])  # a later pair of the same epoch wins
counts = []
for blocks in steps.values():
    unfreeze_last(untrained, blocks)
    counts.append(count_trainable(untrained))
total = sum(weight.numel() for weight in untrained.parameters())
pd.DataFrame(
    {
        "from epoch": list(steps),
        "trainable blocks": [min(n, len(vit_blocks(untrained.backbone))) for n in steps.values()],
        "trainable parameters": counts,
        "share (%)": np.round(100 * np.array(counts) / total, 1),
    }
)

# %% [markdown]
# What the network sees: one picture is cut into patches, and each patch becomes a token. More
# tokens cost more time; attention compares each with each.

# %%
tokens = untrained.backbone.embeddings.position_embeddings.shape[1]
figure, axes = subplots(size=(6, 2.6))
axes.barh([f"from epoch {epoch}" for epoch in steps], counts, color=COLORS["model"])
axes.axvline(total, color=COLORS["floor"], linestyle="--")
axes.set(
    title=f"Trainable of {total:,} parameters; {tokens} tokens a picture",
    xlabel="parameters (count)",
)
axes.invert_yaxis()
run.headline("10_vit", f"{total / 1e6:.1f} M parameters, weights: {untrained.source}", figure)
