# %%
#| default_exp vit_training

# %% [markdown]
# # ViT training
#
# > Two recipes: thaw a pretrained network block by block, or warm up a small one without labels.
#
# From section 9 come the loaders, from section 10 the model. Out come the model's weights and the
# history of their training. `training.recipe` chooses: `spec` for pretrained weights, `small` for
# a few hundred songs and none. Synthetic windows help to train where they can; whether they do is
# decided by real songs only.
#
# Shapes: B batch, N songs, M mel bands, T frames, P patches, D features.

# %%
#| export processes
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast
from joblib import delayed
from torch import nn

from musemo.config import Config
from musemo.core import MusemoError, pick_device, pick_precision
from musemo.jobs import run_jobs

# %%
#| export activation_cache
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader

from musemo.config import TrainingConfig
from musemo.core import MusemoError, progress
from musemo.processes import exchange, own_stretch
from musemo.vit import EmotionViT, average_songs, describe_windows, run_through, vit_blocks

# %%
#| export
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from musemo.activation_cache import ActivationCache, answer_together, cut_phase
from musemo.augmentation import mix_batch
from musemo.config import Config, TrainingConfig
from musemo.core import (
    MusemoError,
    Run,
    progress,
    rng_for,
    seed_for,
)
from musemo.dataset import WindowDataset, make_loader, read_datasets
from musemo.processes import DealtDropout, deal, open_accelerator, sum_gradients, work_together
from musemo.memory import with_half_batch
from musemo.small_training import gain_over_songs, train_small
from musemo.tracking import track
from musemo.vit import (
    EmotionViT,
    build_vit,
    count_trainable,
    describe_vit,
    parameter_groups,
    start_at_mean,
    unfreeze_last,
)

# %%
#| hide
import os

from fastcore.test import test_close, test_eq, test_fail
from torch.utils.data import TensorDataset
from transformers import ViTConfig, ViTModel

from musemo.presets import make_config
from musemo.vit import predict_songs


# %% [markdown]
# ## A loss with a preference
#
# Valence is the harder of the two, so the specification gives its squared error 60 % of the
# weight and arousal's 40 %.


# %%
#| export
class WeightedEmotionLoss(nn.Module):
    "Weighted squared error of valence and arousal."

    def __init__(self, valence_weight: float = 0.6, arousal_weight: float = 0.4):
        super().__init__()
        self.register_buffer("weights", torch.tensor([valence_weight, arousal_weight]))

    def forward(
        self,
        predicted: torch.Tensor,  # (B, 2) valence, arousal
        rated: torch.Tensor,  # (B, 2)
    ) -> torch.Tensor:  # one number
        "Average the weighted squared error over the batch."
        return ((predicted.float() - rated) ** 2 @ self.weights).mean()


# %%
loss_function = WeightedEmotionLoss()
rated = torch.zeros(5, 2)
test_close(float(loss_function(rated + torch.tensor([1.0, 0.0]), rated)), 0.6, eps=1e-6)
test_close(float(loss_function(rated + torch.tensor([0.0, 1.0]), rated)), 0.4, eps=1e-6)


# %% [markdown]
# ## The schedule
#
# The head learns first, alone; then the last block joins, then the last two, the last three.
# A phase is a stretch of epochs in which the same weights move.


# %%
#| export
def schedule_phases(
    config: TrainingConfig,
) -> list[tuple[int, int, int]]:  # first epoch, epochs that remain from it, trainable blocks
    "List the phases of the unfreezing schedule, from epoch 1 to the last."
    steps = dict([(1, 0), *config.unfreeze])  # a pair for epoch 1 replaces "head only"
    return [
        (first, config.epochs - first + 1, blocks)
        for first, blocks in steps.items()
        if first <= config.epochs
    ]


# %%
full = make_config("full").training
test_eq(schedule_phases(full), [(1, 24, 0), (8, 17, 1), (12, 13, 2), (16, 9, 3)])
test_eq(schedule_phases(make_config("smoke").training), [(1, 3, 64)])


# %% [markdown]
# At each phase the optimiser is made anew, since it must know the weights that have joined, and
# the cosine starts again from the full rate over all epochs that remain, down to `min_rate`.
# The rate falls with every batch.


# %%
#| export
def start_phase(
    model: EmotionViT,
    config: TrainingConfig,
    *,
    blocks: int,  # last blocks that may move
    steps: int,  # batches that remain
) -> tuple[torch.optim.Optimizer, CosineAnnealingLR]:
    "Unfreeze the last blocks and make the optimiser and its cosine anew."
    unfreeze_last(model, blocks)
    groups = parameter_groups(model, config.learning_rate, config.backbone_rate)
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    return optimizer, CosineAnnealingLR(optimizer, T_max=steps, eta_min=config.min_rate)


# %%
tiny = ViTConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    image_size=32,
    patch_size=16,
)
torch.manual_seed(0)
model = EmotionViT(ViTModel(tiny, add_pooling_layer=False), dropout=0.0)
optimizer, cosine = start_phase(model, full, blocks=1, steps=10)
test_close([group["lr"] for group in optimizer.param_groups], [1e-4, 1e-5], eps=1e-9)
for _ in range(10):
    optimizer.step()
    cosine.step()
test_close([group["lr"] for group in optimizer.param_groups], [1e-6, 1e-6], eps=1e-9)

# %% [markdown]
# ## One training, several processes
#
# Where a machine has several GPUs, each gets a process of its own (`training.processes`), and the
# result is the single process's. A notebook cannot split in two, for its CUDA is in use: joblib
# starts fresh processes and sends them the work, with the notebook's own functions where they are
# in no package, and accelerate joins them. Where that fails and nobody has asked for a number of
# processes, one trains, and the page says so.
#
# Across machines accelerate starts them itself, `accelerate launch -m musemo train RUN`. On one
# machine `--multi_gpu --num_processes 2` is its name for several, with GPUs or without; left out on
# a CPU, it starts one and does not say so, which is refused here.

# %%
#| export processes
_precisions = {torch.float32: "no", torch.float16: "fp16", torch.bfloat16: "bf16"}


def open_accelerator(config: Config) -> Accelerator:
    "Join the training's processes; raises MusemoError for a precision that cannot be had here."
    on_cpu = pick_device(config.device).type == "cpu"
    device = PartialState(cpu=on_cpu).device
    precision = _precisions[pick_precision(device, config.precision)]
    if on_cpu and precision == "fp16":  # accelerate would train in float32 and not say so
        raise MusemoError("precision = 'float16' on cpu: needs a GPU; set precision=float32")
    launched = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= set(os.environ)
    if launched and PartialState().num_processes == 1 and "WORLD_SIZE" not in os.environ:
        raise MusemoError(
            "accelerate launch: several processes were asked for and one was started; "
            "on a CPU, too, several need --multi_gpu --num_processes N"
        )
    try:
        return Accelerator(mixed_precision=precision, cpu=on_cpu)
    except ValueError as error:
        raise MusemoError(
            f"precision = {config.precision!r} on {device}: {str(error).splitlines()[0]} "
            "set precision=float32, which works everywhere; another than before needs a new process"
        ) from error


# %%
alone = open_accelerator(make_config("smoke", {"device": "cpu"}))
test_eq((alone.num_processes, alone.device.type, alone.mixed_precision), (1, "cpu", "no"))
half = make_config("smoke", {"device": "cpu", "precision": "float16"})
test_fail(lambda: open_accelerator(half), contains="precision = 'float16' on cpu")


# %%
#| export processes
def count_processes(config: Config) -> int:
    "Say how many processes are to train together; raises MusemoError for more than there are GPUs."
    if "WORLD_SIZE" in os.environ:  # this is one of them
        return 1
    wanted, on_gpu = config.training.processes, pick_device(config.device).type == "cuda"
    if on_gpu and wanted > torch.cuda.device_count():
        raise MusemoError(
            f"training.processes = {wanted}: there are {torch.cuda.device_count()} GPUs; "
            "set training.processes=0 to use them all"
        )
    return wanted or (torch.cuda.device_count() if on_gpu else 1)


def end_with_parent() -> None:
    "End this process within a second of the one that started it: nobody waits for its result then."
    parent, name = psutil.Process(os.getppid()), "end with parent"

    def watch():
        # Windows goes on to name a parent that is gone; elsewhere one may be gone and not removed.
        while os.getppid() == parent.pid and parent.is_running():
            time.sleep(0.5)
        os._exit(1)

    if name not in [thread.name for thread in threading.enumerate()]:
        threading.Thread(target=watch, name=name, daemon=True).start()


def _join(work: Callable[[], Any], place: dict[str, str]) -> Any:
    end_with_parent()
    os.environ.update(place)
    return work()


def work_together(work: Callable[[], Any], config: Config) -> Any:
    "Do the work here, or in new processes that an accelerator joins; give the first one's result."
    count = count_processes(config)
    if count == 1:
        return work()
    torch.cuda.empty_cache()  # for the process that shares the GPU with this one
    with socket.create_server(("127.0.0.1", 0)) as free:
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared |= {"WORLD_SIZE": str(count)}
    places = [shared | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(count)]
    for place in places[1:]:
        place["MUSEMO_QUIET"] = "1"  # one bar is enough
    jobs = (delayed(_join)(work, place) for place in places)
    try:
        return run_jobs(jobs, workers=count, desc=f"training in {count} processes", total=count)[0]
    except Exception as error:  # what one process alone may well do: it takes half the batch, too
        if config.training.processes:  # so many were asked for
            raise
        print(f"WARNING: {count} processes do not train together here ({error}): one does")
        return work()


# %%
test_eq(count_processes(make_config("smoke", {"training.processes": 2, "device": "cpu"})), 2)
test_eq(work_together(lambda: "here", make_config("smoke", {"device": "cpu"})), "here")


# %% [markdown]
# Each process loads the whole batch and computes every second row of it; dropout's mask is drawn
# for the whole batch, too, by all processes alike. A mean over processes
# would be wrong where a batch is uneven: so each weighs its loss by its share of the rows, and
# gradients are summed. A process without a row computes the first one, for nothing: the others
# wait for its sum.


# %%
#| export processes
def deal(
    rows: int,  # of a batch
    accelerator: Accelerator,
) -> tuple[slice, float]:  # rows that this process computes, and their share of the batch
    "Deal a batch over the processes, row by row."
    own = slice(accelerator.process_index, rows, accelerator.num_processes)
    count = len(range(rows)[own])
    return (own, count / rows) if count else (slice(1), 0.0)


class DealtDropout(nn.Dropout):
    "Dropout of a batch that is dealt out: its mask is drawn whole, and a process takes its rows."

    dealt: tuple[int, slice] | None = None  # rows of the batch, and this process's

    def forward(self, own: torch.Tensor) -> torch.Tensor:  # (rows of this process, D)
        "Drop what a single process would."
        if not self.training or not self.dealt:
            return super().forward(own)
        rows, mine = self.dealt
        return own * super().forward(own.new_ones(rows, own.shape[1]))[mine]


def sum_gradients(weights: Iterable[torch.Tensor], accelerator: Accelerator) -> None:
    "Sum the gradients of all processes, in one message."
    if accelerator.num_processes == 1:
        return
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    whole = accelerator.reduce(torch.cat([part.flatten() for part in gradients]), "sum")
    for part, summed in zip(gradients, whole.split([g.numel() for g in gradients]), strict=True):
        part.copy_(summed.view_as(part))


# %% [markdown]
# Five rows over two processes, by hand: shares of 3/5 and 2/5 give the whole batch's gradient.
# Half and half would not.


# %%
class Place:
    "One of several processes, as far as dealing asks."

    def __init__(self, process_index, num_processes=2):
        self.process_index, self.num_processes = process_index, num_processes


whole, places = torch.ones(5, 4), [deal(5, Place(i))[0] for i in (0, 1)]
torch.manual_seed(0)
single, parts = nn.Dropout(0.5)(whole), []
for own in places:
    torch.manual_seed(0)
    dropout = DealtDropout(0.5)
    dropout.dealt = len(whole), own
    parts.append(dropout(whole[own]))
test_eq([part.equal(single[own]) for own, part in zip(places, parts, strict=True)], [True, True])

line, numbers = torch.ones(1, requires_grad=True), torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0])
parts = [deal(5, Place(i)) for i in (0, 1)]
test_eq([share for _, share in parts], [0.6, 0.4])
test_eq(deal(1, Place(1)), (slice(1), 0.0))
sum(share * (line * numbers[own]).mean() for own, share in parts).backward()
test_close(line.grad.item(), numbers.mean().item(), eps=1e-6)
sum_gradients([line], alone)
test_close(line.grad.item(), 4.0, eps=1e-6)


# %% [markdown]
# What does not learn is described in stretches: each process has its own of the windows, then
# all have everything.


# %%
#| export processes
def own_stretch(
    items: int,
    accelerator: Accelerator,
    process: int | None = None,  # None: this one
) -> range:
    "Give a process its stretch of the items; raises MusemoError where one would have none."
    count = accelerator.num_processes
    if items < count:
        raise MusemoError(
            f"{count} processes: {items} windows are too few to deal; launch at most {items}"
        )
    process = accelerator.process_index if process is None else process
    return range(items * process // count, items * (process + 1) // count)


def exchange(
    rows: np.ndarray,  # (N, ...), of which each process has filled its stretch
    accelerator: Accelerator,
    *,
    size: int,  # rows of a message
) -> None:
    "Give every process the rows that the others have filled."
    if accelerator.num_processes == 1:
        return
    for process in range(accelerator.num_processes):
        own = own_stretch(len(rows), accelerator, process)
        for start in own[::size]:
            part = rows[start : min(start + size, own.stop)]
            sent = broadcast(torch.from_numpy(part).to(accelerator.device), from_process=process)
            part[:] = sent.cpu().numpy()


# %%
test_eq([list(own_stretch(5, Place(i))) for i in (0, 1)], [[0, 1], [2, 3, 4]])
test_fail(lambda: own_stretch(1, Place(1)), contains="launch at most 1")
filled = np.arange(4.0)
exchange(filled, alone, size=2)
test_eq(filled, np.arange(4.0))


# %% [markdown]
# ## Nothing twice: the cut
#
# A frozen block answers the same picture alike in every epoch, so there is nothing to gain from
# asking again. The cut lies below the first block that learns. `CutViT` is the same model on the
# same weights with a second way in: it takes pictures, or the tokens that reach the cut.


# %%
#| export activation_cache
def frozen_blocks(model: EmotionViT) -> int:
    "Count the blocks below the first that learns; none where the embeddings learn as well."
    parts = [model.backbone.embeddings, *vit_blocks(model.backbone)]
    learns = [any(weight.requires_grad for weight in part.parameters()) for part in parts]
    return max([*learns, True].index(True) - 1, 0)


# %% [markdown]
# What is frozen stays in eval mode, with the cache and without it: a dropout in there would give
# each epoch other tokens, and no cache could be right.


# %%
#| export activation_cache
class CutViT(nn.Module):
    "A model cut where its frozen blocks end: takes pixels, or the tokens at the cut."

    def __init__(self, model: EmotionViT):
        super().__init__()
        blocks, self.frozen = vit_blocks(model.backbone), frozen_blocks(model)
        self.model, self.head, self.dropout = model, model.head, model.dropout
        self.lower = nn.ModuleList([model.backbone.embeddings, *blocks[: self.frozen]])
        self.upper = nn.ModuleList([*blocks[self.frozen :], model.backbone.layernorm])
        self.train(model.training)

    def train(self, mode: bool = True) -> "CutViT":
        "Set the mode of what learns."
        super().train(mode)
        self.lower.train(mode and not self.frozen)
        return self

    @torch.no_grad()
    def bring_to_cut(self, inputs: torch.Tensor) -> torch.Tensor:
        "Run pixels through what is frozen; tokens, and pixels that the head reads, stay."
        stays = inputs.ndim != 4 or not self.frozen or self.model.reads_pixels
        return inputs if stays else run_through(self.lower, inputs)

    def describe(self, inputs: torch.Tensor) -> torch.Tensor:  # (B, 3, H, W) or (B, 1 + P, D)
        "Give what the head reads, (B, D), of pixels or of tokens at the cut."
        tokens = run_through(self.lower, inputs) if inputs.ndim == 4 else inputs.float()
        return self.model.pool(run_through(self.upper, tokens), inputs)

    def answer(self, features: torch.Tensor) -> torch.Tensor:  # (B, D) -> (B, 2)
        "Read valence and arousal as the whole model does."
        return self.model.answer(features)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        "Predict valence and arousal of pixels, or of tokens at the cut."
        return self.answer(self.describe(inputs))


# %% [markdown]
# Wherever the cut lies, the answer is the plain model's, bit for bit.

# %%
whole = EmotionViT(ViTModel(tiny, add_pooling_layer=False)).eval()
pictures = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
for blocks, frozen in ((0, 2), (1, 1), (2, 0)):
    unfreeze_last(whole, blocks)
    part = CutViT(whole)
    test_eq(part.frozen, frozen)
    for inputs in (pictures, run_through(part.lower, pictures)):
        test_eq(part(inputs).detach().numpy(), whole(pictures).detach().numpy())


# %% [markdown]
# ## A place for the tokens
#
# A window of ViT-B/16 is 197 x 768 numbers, 0.3 MB in half precision. Up to `training.cache_mb`
# they are kept in memory, beyond it in a file that has no name: it goes when nobody reads it any
# more, even if the run is killed.


# %%
#| export activation_cache
def make_store(
    shape: tuple[int, int, int],  # windows, tokens of each, D
    config: TrainingConfig,
    *,
    used: float = 0,  # MB of memory that are taken already
    folder: Path | None = None,  # for what memory must not hold; None: the system's
) -> np.ndarray:
    "Make room for tokens, in memory or on disk; raises MusemoError where neither has enough."
    size = math.prod(shape) * np.dtype(config.cache_precision).itemsize / 1e6  # MB
    if used + size <= config.cache_mb:
        return np.empty(shape, config.cache_precision)
    folder = folder or tempfile.gettempdir()
    free = shutil.disk_usage(folder).free / 1e6
    if size > free:
        raise MusemoError(
            f"training.cache_mb = {config.cache_mb:g}: the cache needs {size:.0f} MB and {folder} "
            f"has {free:.0f}; lower training.views or set training.cache=false"
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, config.cache_precision, "w+", shape=shape)


# %%
with tempfile.TemporaryDirectory() as folder:
    small = make_config("full", {"training.cache_mb": 1}).training
    test_eq(type(make_store((3, 197, 768), small, folder=folder)), np.ndarray)
    test_eq(type(make_store((3, 197, 768), small, used=0.5, folder=folder)), np.memmap)
    test_eq(os.listdir(folder), [])
    test_fail(lambda: make_store((10**12, 197, 768), small), contains="training.cache=false")


# %% [markdown]
# ## A loader that remembers
#
# It gives what its loader gives, in the same order, with tokens in the place of pixels. While
# blocks are frozen an epoch shows one of `training.views` views of the songs, in turn: one is all
# there is of a whole clip, several keep chance in shorter windows. The first epoch that asks for a
# view computes it. With several views each is augmented in its own way; a single one, shown again
# and again, is left as it is.


# %%
#| export activation_cache
class CachedLoader:
    "Batches of tokens at a cut (B, 1 + P, D), labels (B, 2), songs' places (B,)."

    def __init__(
        self,
        loader,  # of pixels, or a CachedLoader at a lower cut; its keys are view * items + item
        lower: nn.ModuleList,  # the frozen modules from there to the cut
        store: np.ndarray,  # (views * items, 1 + P, D), to be filled
        accelerator: Accelerator,
    ):
        self.loader, self.lower, self.store = loader, lower, store
        self.accelerator = accelerator
        self.dataset, self.batch_sampler = loader.dataset, loader.batch_sampler
        self.seen = {}  # view: labels and places of its items

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        return map(self.read, self.batch_sampler)

    def read(self, keys: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        "Look up windows of one view; the first to ask has the view computed."
        view, items = keys[0] // len(self.dataset), np.array(keys) % len(self.dataset)
        if view not in self.seen:
            self.seen[view] = fill_view(self, view)
        labels, places = self.seen[view]
        return torch.from_numpy(self.store[np.array(keys)]), labels[items], places[items]


# %%
#| export activation_cache
def in_order(loader, view: int, accelerator: Accelerator) -> Iterable:
    "Go once over this process's stretch of a view's items, first to last."
    items = len(loader.dataset)
    own = own_stretch(items, accelerator)
    keys = range(view * items, (view + 1) * items)[own.start : own.stop]
    if isinstance(loader, CachedLoader):
        size = loader.batch_sampler.batch_size
        return (loader.read(keys[start : start + size]) for start in range(0, len(keys), size))
    options = {"num_workers": loader.num_workers, "pin_memory": loader.pin_memory}
    options["generator"] = torch.Generator()
    return DataLoader(loader.dataset, loader.batch_size, sampler=keys, **options)


# %%
#| export activation_cache
@torch.no_grad()
def fill_view(cached: CachedLoader, view: int) -> tuple[torch.Tensor, torch.Tensor]:
    "Compute a view's tokens, give labels and places; raises MusemoError for an overflow."
    items, accelerator, notes = len(cached.dataset), cached.accelerator, []
    store = cached.store[view * items : (view + 1) * items]
    own, size = own_stretch(items, accelerator), cached.batch_sampler.batch_size
    row, batches = own.start, in_order(cached.loader, view, accelerator)
    for inputs, *note in progress(batches, desc="frozen blocks", total=-(-len(own) // size)):
        with accelerator.autocast():
            tokens = run_through(cached.lower, inputs.to(accelerator.device).float())
        peak = tokens.abs().max().item()
        if peak > float(np.finfo(store.dtype).max):
            raise MusemoError(
                f"training.cache_precision = {store.dtype}: a token's {peak:.0f} does not fit; "
                "set training.cache_precision=float32"
            )
        store[row : row + len(tokens)] = tokens[:, : store.shape[1]].float().cpu().numpy()
        row, notes = row + len(tokens), [*notes, note]
    exchange(store, accelerator, size=size)
    labels, places = map(torch.cat, zip(*gather_object(notes), strict=True))
    return labels, places


# %% [markdown]
# Three epochs of six pictures in two batches: the frozen part is asked once for each batch, and
# what it said comes back.

# %%
six = DataLoader(TensorDataset(pictures, torch.zeros(6, 2), torch.arange(6)), batch_size=4)
asked = []
whole.backbone.embeddings.register_forward_hook(lambda *_: asked.append(1))
unfreeze_last(whole, 1)
part, store = CutViT(whole), np.zeros((6, 5, 16), np.float16)
cached = CachedLoader(six, part.lower, store, alone)
answers = [predict_songs(part, cached) for _ in range(3)]
test_eq(len(asked), 2)
test_close(answers, [predict_songs(whole, six)] * 3, eps=2e-3)


# %% [markdown]
# ## From phase to phase
#
# A block that thaws moves the cut down. Tokens at the lowest cut of the schedule serve all
# phases: a higher cut is reached from them through the few blocks between, and no picture goes
# through the lower blocks again. With the head alone only the class token is kept, since above
# the last block tokens never meet. Where all of the network learns there is nothing to remember,
# and a model that reads its windows beside the tokens needs the windows.


# %%
#| export activation_cache
class ActivationCache:
    "Tokens of all windows at the lowest cut of a training, and at the cut of its phase."

    def __init__(
        self,
        model: EmotionViT,
        loaders: dict[str, DataLoader],  # train and val
        config: TrainingConfig,
        *,
        blocks: list[int],  # last blocks that learn, in each phase
        accelerator: Accelerator,
        folder: Path | None = None,  # for what memory must not hold; None: the system's
    ):
        self.model, self.loaders, self.config = model, loaders, config
        self.accelerator, self.folder = accelerator, folder
        self.depth, self.base = len(vit_blocks(model.backbone)), None
        cuts = [self.depth - count for count in blocks]
        self.lowest = min([cut for cut in cuts if cut > 0], default=0)


# %%
#| export activation_cache
def remember(
    cache: ActivationCache,
    loaders: dict,  # train and val: of pixels, or of tokens at a lower cut
    lower: nn.ModuleList,  # frozen modules from there to the cut
    *,
    cut: int,  # blocks below it
) -> dict[str, CachedLoader]:  # train and val
    "Make loaders of tokens at a cut, with one store for both."
    rows = cache.config.views * len(loaders["train"].dataset), len(loaders["val"].dataset)
    _, tokens, width = cache.model.backbone.embeddings.position_embeddings.shape
    shape = sum(rows), 1 if cut == cache.depth else tokens, width
    base = cache.base["train"].store.base if cache.base else None  # of both loaders
    used = 0 if base is None or isinstance(base, np.memmap) else base.nbytes / 1e6
    store = make_store(shape, cache.config, used=used, folder=cache.folder)
    parts = {"train": store[: rows[0]], "val": store[rows[0] :]}
    return {k: CachedLoader(loaders[k], lower, v, cache.accelerator) for k, v in parts.items()}


# %%
#| export activation_cache
def cut_phase(
    cache: ActivationCache,
) -> tuple[CutViT, dict]:  # the model as it is trained now; its train and val batches
    "Cut the model where its frozen blocks end now, and give it batches that fit."
    part, loaders, config = CutViT(cache.model), cache.loaders, cache.config
    loaders["train"].sampler.views = config.views if part.frozen else 0
    loaders["train"].dataset.augmented = not part.frozen or config.views > 1
    if part.frozen < cache.lowest:  # what the tokens came through learns now
        cache.base = None
    if not (part.frozen and config.cache) or cache.model.reads_pixels:
        return part, loaders
    cache.lowest = min(cache.lowest, part.frozen)
    below, between = part.lower[: cache.lowest + 1], part.lower[cache.lowest + 1 :]
    cache.base = cache.base or remember(cache, loaders, below, cut=cache.lowest)
    if part.frozen == cache.lowest:
        return part, cache.base
    return part, remember(cache, cache.base, between, cut=part.frozen)


# %% [markdown]
# First the head alone, then one block, over two loaders of two batches: four times the embeddings
# are asked, and never again for the second phase.

# %%
for precision, far in (("float32", 1e-5), ("float16", 2e-3)):
    kept = make_config("full", {"training.cache_precision": precision}).training
    loaders = {"train": six, "val": six}
    cache = ActivationCache(whole, loaders, kept, blocks=[0, 1, 2], accelerator=alone)
    right = predict_songs(whole, six)
    asked.clear()
    for blocks, tokens in ((0, 1), (1, 5)):
        unfreeze_last(whole, blocks)
        part, batches = cut_phase(cache)
        for loader in (batches["train"], batches["val"]):
            test_eq(next(iter(loader))[0].shape, (4, tokens, 16))
            test_close(predict_songs(part, loader), right, eps=far)
    test_eq(len(asked), 4)
    unfreeze_last(whole, 2)
    test_eq(cut_phase(cache)[1], loaders)


# %% [markdown]
# Songs to judge are dealt as well, cached or not: each process describes its stretch of windows,
# and a song's mean is taken over all of them.


# %%
#| export activation_cache
def describe_together(
    model: nn.Module,  # an EmotionViT, whole or cut
    loader,  # of windows that are the same in each epoch, or a CachedLoader
    accelerator: Accelerator,
) -> tuple[torch.Tensor, torch.Tensor]:  # songs' means (N, D); windows of place -1 (K, D)
    "Describe each song as the mean over its windows, by all processes together."
    with accelerator.autocast():
        own = describe_windows(model, in_order(loader, 0, accelerator))
    features, places = map(torch.cat, zip(*gather_object([own]), strict=True))
    return average_songs(features, places)


def answer_together(model: nn.Module, loader, accelerator: Accelerator) -> torch.Tensor:  # (N, 2)
    "Predict each song from the mean over its windows, by all processes together."
    songs, _ = describe_together(model, loader, accelerator)
    with torch.no_grad():
        return model.answer(songs.to(accelerator.device)).cpu()


# %%
test_eq(describe_together(whole, six, alone)[0].shape, (6, 16))
test_close(answer_together(whole, six, alone).numpy(), predict_songs(whole, six), eps=1e-6)


# %% [markdown]
# ## One epoch
#
# Batch, loss, backward, clip, step. A loss that is no number would poison every weight, so it
# stops the run there and then.


# %%
#| export
def train_epoch(
    model: nn.Module,  # an EmotionViT, whole or cut; cut, where `mix` is given
    batches,  # of pixels (B, 3, H, W) or tokens at the cut, labels (B, 2), songs' places (B,)
    loss_function: nn.Module,
    optimizer: torch.optim.Optimizer,
    cosine: CosineAnnealingLR,
    accelerator: Accelerator,
    *,
    clip_norm: float,
    mix: Callable | None = None,  # (inputs, labels) -> the same, mixed; of the whole batch
) -> float:  # mean loss
    "Train for one epoch; raises MusemoError where the loss is no finite number."
    model.train()
    device, total, seen = accelerator.device, 0.0, 0
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for step, (pixels, labels, _) in enumerate(batches, 1):
        if mix:  # at the cut, so that the cache, which keeps what comes out there, changes nothing
            with accelerator.autocast():
                pixels = model.bring_to_cut(pixels.to(device))
            pixels, labels = mix(pixels, labels.to(device))
        own, share = deal(len(labels), accelerator)
        model.dropout.dealt = len(labels), own
        with accelerator.autocast():
            predicted = model(pixels[own].to(device, non_blocking=True))
        loss = share * loss_function(predicted, labels[own].to(device, non_blocking=True))
        whole = accelerator.reduce(loss.detach(), "sum").item()
        if not math.isfinite(whole):
            raise MusemoError(
                f"vit training: loss = {whole} at batch {step}; lower "
                "training.learning_rate or set precision=float32"
            )
        optimizer.zero_grad()
        accelerator.backward(loss)
        sum_gradients(weights, accelerator)
        accelerator.clip_grad_norm_(weights, clip_norm)
        optimizer.step()
        cosine.step()
        total, seen = total + whole * len(labels), seen + len(labels)
    model.dropout.dealt = None  # whoever trains the model on has batches of his own
    return total / seen


# %% [markdown]
# ## Judged by real songs
#
# Once an epoch, and by songs, not windows: what chooses the best epoch is what section 12 will
# measure.


# %%
#| export
def judge_epoch(
    model: nn.Module,  # an EmotionViT, whole or cut
    loader,  # of validation songs
    loss_function: nn.Module,
    accelerator: Accelerator,
) -> dict[str, float]:
    "Judge the model on real validation songs; raises MusemoError for a loss that is no number."
    rated = torch.from_numpy(loader.dataset.labels)
    predicted = answer_together(model, loader, accelerator)
    device = accelerator.device
    loss = loss_function(predicted.to(device), rated.to(device)).item()
    if not np.isfinite(loss):
        raise MusemoError(f"vit training: validation loss = {loss}; lower training.learning_rate")
    valence, arousal = (predicted - rated).abs().mean(dim=0).tolist()
    return {"val_loss": loss, "val_mae_valence": valence, "val_mae_arousal": arousal}


# %% [markdown]
# ## The loop
#
# Early stopping is the specification's: after `patience` epochs without a better validation
# loss, training ends, whatever the schedule still had in store. Validation parts are small and
# noisy, so a run may end before its last block thaws; the history shows where.


# %%
#| export
def train_vit(
    model: EmotionViT,  # on its device
    loaders: dict[str, DataLoader],  # train and val, from section 9
    config: Config,
    *,
    on_epoch: Callable[[dict], None] | None = None,  # called with each epoch's row
    folder: Path | None = None,  # for a cache that is too large for memory; None: the system's
) -> tuple[list[dict], dict[str, torch.Tensor]]:  # a row an epoch; the best epoch's weights
    "Train by the schedule; raises MusemoError where a loss is no number."
    settings, accelerator = config.training, open_accelerator(config)
    model.dropout = DealtDropout(model.dropout.p)
    loss_function = WeightedEmotionLoss(settings.valence_weight, settings.arousal_weight)
    loss_function.to(accelerator.device)
    phases = {first: rest for first, *rest in schedule_phases(settings)}
    blocks = [count for _, count in phases.values()]
    alpha, rng = config.augmentation.mixup, rng_for(config.seed, "mixup")
    mix = partial(mix_batch, alpha=alpha, rng=rng) if alpha else None
    options = {"clip_norm": settings.clip_norm, "mix": mix}
    shared = {"accelerator": accelerator, "folder": folder}
    cache = ActivationCache(model, loaders, settings, blocks=blocks, **shared)
    history, best, best_state = [], {"val_loss": np.inf, "epoch": 0}, {}
    for epoch in progress(range(1, settings.epochs + 1), desc="ViT epochs"):
        if epoch in phases:
            left, blocks = phases[epoch]
            steps = left * len(loaders["train"])
            optimizer, cosine = start_phase(model, settings, blocks=blocks, steps=steps)
            accelerator.free_memory()  # it would scale and clip for earlier optimisers as well
            optimizer = accelerator.prepare(optimizer)
            batches = None  # the last phase's cache goes before the next one is made
            part, batches = cut_phase(cache)
        row = {"epoch": epoch, "trainable": count_trainable(model)}
        row["learning_rate"] = optimizer.param_groups[0]["lr"]
        row["train_loss"] = train_epoch(
            *(part, batches["train"], loss_function, optimizer, cosine, accelerator),
            **options,
        )
        row |= judge_epoch(part, batches["val"], loss_function, accelerator)
        history.append(row)
        track("vit", row, epoch)
        if row["val_loss"] < best["val_loss"]:
            best = row
            best_state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
        if on_epoch:
            on_epoch(row)
        if epoch - best["epoch"] >= settings.patience:
            break
    return history, best_state


# %% [markdown]
# Six made-up songs whose picture is their label, a tiny ViT, and no files: the loss falls, the
# schedule thaws in epoch 3, and what comes back are the weights of the best epoch.


# %%
class MadeSongs(TensorDataset):
    labels = np.linspace(-0.8, 0.8, 6, dtype=np.float32)[:, None].repeat(2, axis=1)


labels = torch.from_numpy(MadeSongs.labels)
pictures = labels[:, :1, None, None] + 0.1 * torch.randn(6, 3, 32, 32)
made = DataLoader(MadeSongs(pictures, labels, torch.arange(6)), batch_size=3)
settings = {"training.epochs": 8, "training.unfreeze": [[3, 1]], "training.patience": 8}
settings |= {"training.learning_rate": 0.01, "training.backbone_rate": 1.0}
config = make_config("smoke", settings)
start_at_mean(model, labels)
history, best_state = train_vit(model, {"train": made, "val": made}, config)
test_eq([row["trainable"] for row in history[1:4]], [34, 34 + 2224 + 32, 34 + 2224 + 32])
best = min(history, key=lambda row: row["val_loss"])
assert best["val_loss"] < 0.5 * history[0]["val_loss"]
model.load_state_dict(best_state)
answers = torch.from_numpy(predict_songs(model, made))
test_close(float(loss_function(answers, labels)), best["val_loss"], eps=1e-5)

# %% [markdown]
# The same schedule with nothing cached asks the frozen part in every epoch, and ends at the same
# loss: the cache changes the time alone.

# %%
losses = {}
for cache in (False, True):
    torch.manual_seed(0)
    fresh = EmotionViT(ViTModel(tiny, add_pooling_layer=False), dropout=0.0)
    start_at_mean(fresh, labels)
    fresh.backbone.embeddings.register_forward_hook(lambda *_: asked.append(1))
    asked.clear()
    changes = {"training.cache": cache, "training.cache_precision": "float32"}
    rows, _ = train_vit(
        fresh, {"train": made, "val": made}, make_config("smoke", settings | changes)
    )
    losses[cache] = [row["val_loss"] for row in rows]
    print(f"cache {cache}: the frozen part ran over {len(asked)} batches")
test_close(losses[True], losses[False], eps=1e-5)

# %% [markdown]
# A rate of zero gain stops early: with `patience` 1 the second epoch without gain is never
# trained. A loss that is no number stops with the way out.

# %%
stuck = make_config("smoke", {"training.patience": 1, "training.learning_rate": 1e-5})
broken = DataLoader(MadeSongs(pictures * torch.nan, labels, torch.arange(6)), batch_size=3)
test_fail(
    lambda: train_vit(model, {"train": broken, "val": made}, stuck),
    contains="loss = nan at batch 1",
)

# %% [markdown]
# ## A warm-up without labels
#
# Labels are few, sound is not: each song has thousands of windows. So the network first learns
# what can be asked of sound alone, as masked autoencoders do (He 2022). Most patches of a window
# are hidden; from the others it has to guess them, and the statistics of the whole window. The
# first teaches it what goes with what in music, the second to sum a window up.
#
# Hidden patches never enter the encoder: that saves more than half of the time.

# %%
#| export pretext
import math
from itertools import islice

import torch
import torch.nn.functional as F
from torch import nn

from musemo.config import Config
from musemo.core import MusemoError, progress, torch_rng_for
from musemo.descriptors import band_statistics
from musemo.processes import deal, open_accelerator, sum_gradients
from musemo.readout import pool_window_tokens
from musemo.tracking import track
from musemo.vit import SmallViT, run_through, vit_blocks


# %%
#| export pretext
def to_columns(
    windows: torch.Tensor,  # (B, 1, M, T)
    frames: int,  # of a patch
) -> torch.Tensor:  # (B, P, M * frames)
    "Cut windows into patches of all bands, as the network does."
    return windows[:, 0].unfold(2, frames, frames).transpose(1, 2).flatten(2)


def take_patches(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    "Pick patches by their places: (B, P, D), (B, K) -> (B, K, D)."
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))


class Pretext(nn.Module):
    "Guess hidden patches, and statistics of the window, from the patches that are left."

    def __init__(self, model: SmallViT, config: Config, sample: torch.Tensor):
        super().__init__()
        vit, bands = model.backbone.config, config.audio.n_mels
        self.model, self.frames = model, vit.patch_size[1]
        width, patches = vit.hidden_size, vit.image_size[1] // self.frames
        self.visible = round(patches * (1 - config.small.hidden_share))
        self.enter, self.empty = nn.Linear(width, width), nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, patches, width))
        heads = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.decoder = nn.TransformerEncoderLayer(
            width, vit.num_attention_heads, 4 * width, **heads
        )
        self.patch = nn.Linear(width, bands * self.frames)
        self.statistics = nn.Linear(3 * width, 3 * bands // 2)
        told = band_statistics(sample)  # sets the scale of both errors
        self.register_buffer("variance", sample.var().clamp(min=1e-6))
        self.register_buffer("centre", told.mean(0))
        self.register_buffer("spread", told.std(0, correction=0).clamp(min=1e-4))

    def forward(
        self,
        windows: torch.Tensor,  # (B, 1, M, T) in [-1, 1]
        chance: torch.Tensor,  # (B, P), of which each window's lowest stay in view
    ) -> tuple[torch.Tensor, torch.Tensor]:  # errors of patches and of statistics; 1: knows nothing
        "Hide most patches and guess."
        backbone, count = self.model.backbone, self.position.shape[1]
        order = chance.argsort(1).to(windows.device)
        seen, hidden = order.split([self.visible, count - self.visible], dim=1)
        tokens = backbone.embeddings(windows)  # (B, 1 + P, D), the class token first
        tokens = torch.cat([tokens[:, :1], take_patches(tokens[:, 1:], seen)], dim=1)
        tokens = run_through([*vit_blocks(backbone), backbone.layernorm], tokens)
        places = seen[..., None].expand(-1, -1, tokens.shape[2])
        canvas = self.empty.expand(len(windows), count, -1)
        canvas = canvas.scatter(1, places, self.enter(tokens[:, 1:])) + self.position
        canvas = self.decoder(torch.cat([tokens[:, :1], canvas], dim=1))[:, 1:]
        guess = self.patch(take_patches(canvas, hidden))
        wrong = F.mse_loss(guess, take_patches(to_columns(windows, self.frames), hidden))
        told = (band_statistics(windows) - self.centre) / self.spread
        return wrong / self.variance, F.mse_loss(self.statistics(pool_window_tokens(tokens)), told)


# %% [markdown]
# Columns are cut as the network cuts them: its own patch layer is a linear map of ours. With all
# patches in view, the walk over the blocks is the network's own.

# %%
shape = {"image_size": [32, 48], "patch_size": [32, 8], "num_channels": 1, "hidden_size": 16}
shape |= {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
torch.manual_seed(0)
little = ViTModel(ViTConfig(**shape, hidden_dropout_prob=0.0), add_pooling_layer=False)
little = SmallViT(little, tempi=3)
windows = torch.rand(5, 1, 32, 48) - 0.5
cut = little.backbone.embeddings.patch_embeddings.projection
by_hand = to_columns(windows, 8) @ cut.weight.flatten(1).T + cut.bias
test_close(by_hand.detach().numpy(), cut(windows).flatten(2).transpose(1, 2).detach().numpy(), 1e-5)

# %% [markdown]
# The rate rises and falls once (Smith 2018). Batches come from the training loader, synthetic
# windows among them; an epoch there has new windows of the same songs. Chance is drawn for the
# whole batch and dealt with it, so several processes hide what one would. Steps are short, and
# stay in full precision.

# %%
#| export pretext
SAMPLED = 8  # batches, which set the scale of the errors


def warm_up(
    model: SmallViT,  # on its device; its backbone learns
    loader,  # training windows, batches of (B, 1, M, T), labels, songs' places; labels are not read
    config: Config,
    *,
    seed: int,
) -> list[dict[str, float]]:  # the errors of each step
    "Teach the backbone what hidden patches hold; raises MusemoError for an error not finite."
    small, accelerator, rng = config.small, open_accelerator(config), torch_rng_for(seed, "pretext")
    device = accelerator.device
    sample = torch.cat([x for x, *_ in islice(loader, SAMPLED)])
    task = Pretext(model, config, sample).to(device).train()
    adam = torch.optim.AdamW(
        task.parameters(), small.learning_rate, betas=(0.9, 0.95), weight_decay=small.weight_decay
    )
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        adam,
        small.learning_rate,
        total_steps=small.steps,
        pct_start=small.warm_up + 1e-9,  # of exactly one step torch would divide by zero
    )
    rows, batches = [], (x for _ in range(small.steps) for x, *_ in loader)
    for step in progress(range(small.steps), desc=f"warm-up, {small.steps} steps"):
        windows = next(batches)
        chance = torch.rand(len(windows), task.position.shape[1], generator=rng)
        own, share = deal(len(windows), accelerator)
        errors = share * torch.stack(task(windows[own].to(device), chance[own]))
        patches, statistics = accelerator.reduce(errors.detach(), "sum").tolist()
        if not math.isfinite(patches + statistics):
            raise MusemoError(
                f"warm-up: loss = {patches + statistics} at step {step + 1}; "
                "lower small.learning_rate"
            )
        adam.zero_grad()
        errors.sum().backward()
        sum_gradients(task.parameters(), accelerator)
        nn.utils.clip_grad_norm_(task.parameters(), small.clip_norm)
        adam.step()
        cycle.step()
        rows.append({"patches": patches, "statistics": statistics})
        track("warm-up", rows[-1], step + 1)
    return rows


# %% [markdown]
# Two kinds of made-up songs, steady and pulsing: after a few steps hidden patches are guessed
# better than by their mean, which would be 1. Broken sound stops the warm-up.

# %%
pulse = 0.4 * torch.sign(torch.sin(torch.arange(48) * torch.pi / 8)).expand(32, 1, 32, -1)
loud = torch.linspace(-0.5, 0.5, 32)[:, None, None, None]
made = TensorDataset(pulse * (torch.arange(32) % 2)[:, None, None, None] + loud, torch.zeros(32))
sounds = DataLoader(made, batch_size=16, shuffle=True, generator=torch.Generator())
quick = {"small.steps": 150, "small.learning_rate": 5e-3, "audio.n_mels": 32}
brief = make_config("smoke", quick)
errors = warm_up(little, sounds, brief, seed=0)
test_eq(len(errors), 150)
test_eq(len(warm_up(little, sounds, make_config("smoke", quick | {"small.steps": 10}), seed=0)), 10)
assert np.mean([row["patches"] for row in errors[-10:]]) < 0.5
silent = DataLoader(TensorDataset(made.tensors[0] * torch.nan, torch.zeros(32)), batch_size=16)
test_fail(lambda: warm_up(little, silent, brief, seed=0), contains="loss = nan at step 1")

# %% [markdown]
# ## A line and trees
#
# The network now stays as it is. Each song's windows are described and averaged, and two plain
# regressions read the description: a ridge, whose penalty leave-one-out chooses for each target,
# and boosted trees. A synthetic window counts as `small.synthetic_weight` of a real song.

# %%
#| export small_training
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from musemo.activation_cache import describe_together
from musemo.config import Config
from musemo.core import seed_for
from musemo.dataset import WindowDataset, make_loader
from musemo.pretext import warm_up
from musemo.processes import open_accelerator
from musemo.readout import boosted_trees, plant_trees, ridge_regression
from musemo.vit import SmallViT


def fit_line(
    model: SmallViT,
    features: np.ndarray,  # (N, D)
    labels: np.ndarray,  # (N, 2) in [-1, 1]
    weights: np.ndarray,  # (N,)
) -> None:
    "Fit the model's line to described songs, in closed form."
    own = weights == 1  # the scale is that of real songs, where there are some
    own |= not own.any()
    centre, spread = features[own].mean(0), features[own].std(0)
    spread = np.where(spread > 1e-6, spread, np.inf)  # what never varies says nothing
    ridge = ridge_regression()
    ridge.fit((features - centre) / spread, labels, sample_weight=weights)
    plain = {"dtype": torch.float32}
    with torch.no_grad():
        model.centre.copy_(torch.as_tensor(centre))
        model.spread.copy_(torch.as_tensor(spread))
        model.head.weight.copy_(torch.as_tensor(ridge.coef_, **plain))
        model.head.bias.copy_(torch.as_tensor(ridge.intercept_, **plain))


def fit_trees(
    model: SmallViT,
    features: np.ndarray,  # (N, D)
    labels: np.ndarray,  # (N, 2) in [-1, 1]
    weights: np.ndarray,  # (N,)
    config: Config,
    *,
    seed: int,
) -> None:
    "Fit the model's trees to described songs."
    boosted = [
        boosted_trees(config.small, seed=seed_for(seed, "trees", i)).fit(
            features, labels[:, i], sample_weight=weights
        )
        for i in range(2)
    ]
    model.trees = plant_trees(boosted).to(model.head.weight.device)


# %%
rng = np.random.default_rng(0)
features = rng.normal(size=(200, 120)).astype(np.float32)
labels = np.stack([0.5 * np.tanh(features[:, 0]), 0.3 * np.abs(features[:, 1])], axis=1)
known = features[:150], labels[:150], np.ones(150)
fit_line(little.eval(), *known)
fit_trees(little, *known, brief, seed=0)
answers = little.answer(torch.from_numpy(features[150:])).detach().numpy()
assert np.corrcoef(answers[:, 0], labels[150:, 0])[0, 1] > 0.6


# %% [markdown]
# The whole recipe: warm up, describe, fit. Labels of validation songs are not read; they stay
# for judging. With `small.thaw` something is tried between line and trees, and they decide it.


# %%
#| export small_training
def describe_training(
    model: SmallViT,
    train: WindowDataset,  # real songs, and synthetic windows where there are some
    config: Config,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # features (N, D), labels (N, 2), weights (N,)
    "Describe what the line and the trees are fitted to."
    fixed = make_loader(replace(train, seed=None), config)
    features = torch.cat(describe_together(model, fixed, open_accelerator(config))).numpy()
    labels, made = train.labels, len(features) - len(train.labels)
    if made:
        labels = np.concatenate([labels, train.synthetic_labels])
    weights = np.repeat([1.0, config.small.synthetic_weight], [len(features) - made, made])
    kept = weights > 0
    return features[kept], labels[kept], weights[kept]


def train_small(
    model: SmallViT,  # on its device
    train: WindowDataset,
    config: Config,
    *,
    seed: int,
    thaw: Callable[[SmallViT], dict]
    | None = None,  # trains the network from the line; says if kept
) -> dict:  # the errors of each step of the warm-up; what thawing said
    "Train by the recipe for small data; the model is ready to predict."
    loader = make_loader(train, config, batch_size=config.small.batch_size)
    record = {"steps": warm_up(model, loader, config, seed=seed)}
    songs = describe_training(model, train, config)
    fit_line(model, *songs)
    if thaw:
        record["thaw"] = thaw(model)
        if record["thaw"]["kept"]:
            songs = describe_training(model, train, config)
    fit_trees(model, *songs, config, seed=seed)
    return record


# %% [markdown]
# ## Thawing from the line
#
# The schedule may go on from there: the line is a head like any other, and the loop is the one
# above. On a few hundred songs it never helped (best epoch: none, in four of five folds), so it
# is off by default, and kept only where the validation songs' squared error falls by more than
# its standard error, song against song. The best epoch was chosen by the same songs, which
# flatters it: what is dropped would not have helped, what is kept may still not.


# %%
#| export small_training
def gain_over_songs(
    before: np.ndarray,  # (N,) squared errors
    after: np.ndarray,  # (N,) of the same songs
) -> dict:  # mean gain, its standard error, songs, kept
    "Say whether errors fall by more than the standard error of the paired differences."
    gains, songs = before - after, len(before)
    error = float(gains.std(ddof=1) / math.sqrt(songs)) if songs > 1 else None
    kept = error is not None and bool(gains.mean() > error)
    return {
        "kept": kept,
        "gain": float(gains.mean()),
        "standard_error": error,
        "songs": songs,
    }


# %%
wrong = np.array([0.3, 0.5, 0.4, 0.2])
test_eq(gain_over_songs(wrong, wrong - [0.1, 0.12, 0.08, 0.1])["kept"], True)
test_eq(gain_over_songs(wrong, wrong - [0.4, -0.2, 0.1, -0.1])["kept"], False)
test_eq(gain_over_songs(wrong, wrong)["kept"], False)
test_eq(gain_over_songs(wrong[:1], wrong[:1] - 0.1)["kept"], False)


# %%
#| export
def thaw_small(
    model: EmotionViT,  # of the recipe small, with its line and without trees
    data: dict[str, WindowDataset],  # train and val
    config: Config,
    *,
    folder: Path | None = None,  # as for train_vit
) -> dict:  # kept or not, gain, standard error, epochs
    "Run the schedule from the line, on real songs; undo it where validation songs do not gain."
    if "val" not in data:
        raise MusemoError("small.thaw = true: needs validation songs; set small.thaw=false")
    train, accelerator = data["train"], open_accelerator(config)
    if len(train.songs):
        train = replace(train, synthetic=None, synthetic_labels=None)
    loaders = {"train": make_loader(train, config), "val": make_loader(data["val"], config)}
    shares = np.array([config.training.valence_weight, config.training.arousal_weight])

    def errors():
        answers = answer_together(model, loaders["val"], accelerator).numpy()
        return (answers - data["val"].labels) ** 2 @ shares

    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    before = errors()
    epochs, best_state = train_vit(model, loaders, config, folder=folder)
    model.load_state_dict(best_state)
    record = gain_over_songs(before, errors())
    if not record["kept"]:
        model.load_state_dict(state)
    return record | {"epochs": epochs}


# %% [markdown]
# ## The stage
#
# One function for both recipes. It leaves the weights, and beside them the history with a
# description of the model: with both, section 12 opens the model again and needs neither hub nor
# checkpoint.


# %%
#| export
def train_model(
    data: dict[str, WindowDataset],  # train and, for the recipe spec or small.thaw, val
    config: Config,
    *,
    seed: int,
    folder: Path | None = None,  # for a cache that is too large for memory; None: the system's
) -> tuple[EmotionViT, dict]:  # the model, on the configuration's device; what training logged
    "Build and train a model by its recipe, with half the batch if need be; raises MusemoError."
    part = "small" if config.training.recipe == "small" else "dataset"

    def attempt(config: Config) -> tuple[EmotionViT, dict]:
        model, record = _train_once(data, config, seed=seed, folder=folder)
        return model, record | {"batch_size": getattr(config, part).batch_size}

    return with_half_batch(attempt, config, part)


def _train_once(
    data: dict[str, WindowDataset], config: Config, *, seed: int, folder: Path | None
) -> tuple[EmotionViT, dict]:
    accelerator = open_accelerator(config)
    torch.manual_seed(seed_for(seed, "vit"))
    model = build_vit(config).to(accelerator.device)
    data = {split: replace(x, mean=model.mean, std=model.std) for split, x in data.items()}
    if config.training.recipe == "small":
        thaw = partial(thaw_small, data=data, config=config, folder=folder)
        thaw = thaw if config.small.thaw else None
        record = train_small(model, data["train"], config, seed=seed, thaw=thaw)
        return model.eval(), record
    loaders = {split: make_loader(data[split], config) for split in ("train", "val")}
    labels = data["train"].labels if len(data["train"].labels) else data["train"].synthetic_labels
    start_at_mean(model, torch.from_numpy(labels))
    epochs, best_state = train_vit(model, loaders, config, folder=folder)
    model.load_state_dict(best_state)
    best = min(epochs, key=lambda row: row["val_loss"])["epoch"]
    early = len(epochs) < config.training.epochs
    return model.eval(), {"best_epoch": best, "stopped_early": early, "epochs": epochs}


# %%
#| export
def fit_vit(run: Run, config: Config) -> dict:  # the content of vit_history.json
    "Train this run's model; raises MusemoError without weights, songs or a finite loss."
    return work_together(partial(_fit_vit, run, config), config)


def _fit_vit(run: Run, config: Config) -> dict:
    data = read_datasets(run, config)
    model, record = train_model(data, config, seed=config.seed, folder=run.folder)
    loss = WeightedEmotionLoss(config.training.valence_weight, config.training.arousal_weight)
    judged = make_loader(replace(data["val"], mean=model.mean, std=model.std), config)
    accelerator = open_accelerator(config)
    judged = judge_epoch(model, judged, loss.to(accelerator.device), accelerator)
    record |= {"recipe": config.training.recipe, "validation": judged}
    record |= {"model": describe_vit(model), "processes": accelerator.num_processes}
    record["units"] = {
        "loss": "weighted squared error on [-1, 1]",
        "val_mae": "on [-1, 1]",
        "learning_rate": "of the head, at the epoch's start",
        "trainable": "parameters",
        "batch_size": "windows",
        "processes": "count, of the training",
        "patches, statistics": "squared error of the warm-up; 1: knows nothing",
        "gain, standard_error": "fall of the weighted squared error, over validation songs",
    }
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if accelerator.is_main_process:
        run.save("vit.safetensors", state)
        run.save("vit_history.json", record)
    accelerator.wait_for_everyone()
    return record


# %% [markdown]
# ## On the run
#
# Training this run's model, and what it then makes of the validation songs, beside the mean
# predictor, which is where training began.

# %% tags=["parameters"]
run_folder = None  # a run's folder; None: a run at the smoke size, made on the spot

# %%
#| hide
import pandas as pd

from musemo.core import COLORS, load_part, subplots
from musemo.opening import open_run

run, config = open_run(run_folder, before=11)

# %%
trained = fit_vit(run, config)
songs = load_part(run, "val")[0][["valence", "arousal"]].to_numpy()
average = load_part(run, "train")[0][["valence", "arousal"]].mean().to_numpy()
shares = np.array([config.training.valence_weight, config.training.arousal_weight])
floor = float(((songs - average) ** 2 @ shares).mean())
wide = [floor, *np.abs(songs - average).mean(axis=0)]
columns = {
    "val_loss": "weighted squared error",
    "val_mae_valence": "MAE, valence",
    "val_mae_arousal": "MAE, arousal",
}
rows = {
    "this model": trained["validation"],
    "mean predictor": dict(zip(columns, wide, strict=True)),
}
pd.DataFrame(rows).T.rename(columns=columns).rename_axis(f"{len(songs)} validation songs").round(4)

# %% [markdown]
# How it learnt, step by step or epoch by epoch. What to look for is said below the picture.

# %%
if trained["recipe"] == "small":
    table = pd.DataFrame(trained["steps"])
    figure, axes = subplots(1, 2, size=(4.2, 2.8))
    titles = {"patches": "Hidden patches", "statistics": "Statistics of the window"}
    for panel, (name, title) in zip(axes, titles.items(), strict=True):
        smooth = table[name].rolling(max(1, len(table) // 20), min_periods=1).mean()
        panel.plot(table[name], color=COLORS["model"], alpha=0.25, linewidth=0.7)
        panel.plot(smooth, color=COLORS["model"], label=f"{smooth.iloc[-1]:.2f} at the end")
        panel.axhline(1, color=COLORS["floor"], linestyle="--", label="guessing the mean")
        panel.set(title=title, xlabel="step", ylabel="squared error (share)")
        panel.legend()
    hint = (
        "The warm-up's errors, on sound alone; 1 is guessing the mean. Still falling at the end: "
        "more steps (small.steps) would teach more."
    )
    moved = f"{len(table)} steps without labels, then a line and trees"
    if "thaw" in trained:
        tried = trained["thaw"]
        moved += f"; thawing {'kept' if tried['kept'] else 'dropped'} (gain {tried['gain']:+.4f})"
        hint += " vit_history.json has the epochs of the thawing."
else:
    table = pd.DataFrame(trained["epochs"]).set_index("epoch")
    figure, axes = subplots(1, 3, size=(3.8, 2.8))
    axes[0].plot(table["train_loss"], color=COLORS["real"], label="training (windows)")
    axes[0].plot(table["val_loss"], color=COLORS["model"], label=f"validation ({len(songs)} songs)")
    axes[0].axhline(floor, color=COLORS["floor"], label="mean predictor, validation")
    axes[0].set(title="Loss", ylabel="weighted squared error")
    axes[1].plot(table["val_mae_valence"], color=COLORS["real"], label="valence")
    axes[1].plot(table["val_mae_arousal"], color=COLORS["model"], label="arousal")
    axes[1].set(title="Validation songs", ylabel="mean absolute error on [-1, 1]")
    axes[2].step(table.index, table["trainable"], where="mid", color=COLORS["third"])
    axes[2].set(title="Trainable", ylabel="parameters (count)", yscale="log")
    for panel in axes:
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.axvline(trained["best_epoch"], color=COLORS["floor"], linestyle="--")
    for panel in axes[:2]:
        panel.legend()
    hint = (
        "Epochs right of the dashed line were thrown away: the validation songs got no better. "
        "The right panel shows how much could move."
    )
    moved = f"best epoch {trained['best_epoch']} of {len(table)}"
print(hint)
run.headline(
    "11_vit_training",
    f"recipe {trained['recipe']}: {moved}; validation loss "
    f"{trained['validation']['val_loss']:.4f}, mean predictor {floor:.4f} ({len(songs)} songs)",
    figure,
)

# %% [markdown]
# Every epoch or the last steps, in numbers.

# %%
warmed = trained["recipe"] == "small"
(table.tail(8).rename_axis("step") if warmed else table).round(4)
