"""Costs that grow with the songs, their length, and the generated songs; work.size is how many."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from tests.bench.work import Work, gan_setting


def songs(work: Work) -> Callable[[], int]:
    "Decode songs and make their table and log-mels, as section 3 does."
    from musemo.core import Run
    from musemo.data import prepare_data
    from musemo.presets import make_config

    paths, rng = work.paths(work.size), np.random.default_rng(0)
    table = pd.DataFrame({"file": [str(path) for path in paths]})
    table[["valence", "arousal"]] = rng.uniform(1, 9, (len(paths), 2))
    table.to_csv(work.folder / "songs.csv", index=False)
    values = {"data.path": str(work.folder / "songs.csv"), "data.cache": str(work.folder / "cache")}
    config = make_config("full", values)
    return lambda: len(prepare_data(Run(work.folder / "run"), config)[0])


def frames(work: Work) -> Callable[[], int]:
    "Train the specification's GAN for two rounds on windows of so many frames."
    import torch

    from musemo.gan_training import GanLearner
    from musemo.generator_training import train

    config, songs = gan_setting(work.size, batch=2, songs=4)
    learner = GanLearner(config, songs, torch.device("cpu"))
    return lambda: len(train(learner, songs, "gan", seed=0))


def drawn(work: Work) -> Callable[[], int]:
    "Draw songs with the specification's GAN into a file, as section 7 does."
    import torch

    from musemo.drawing import generate
    from musemo.gan import build_gan

    torch.manual_seed(0)
    config, _ = gan_setting(128, batch=16, songs=16)
    asked = np.random.default_rng(0).uniform(-1, 1, (work.size, 2))
    shape = (work.size, config.audio.n_mels, 128)
    if not work.size:  # a file of nothing cannot be mapped
        return lambda: len(generate(build_gan(config)[0], asked, seeds=[], frames=128))
    out = np.lib.format.open_memmap(work.folder / "drawn.npy", "w+", np.float16, shape)
    generator, seeds = build_gan(config)[0], list(range(work.size))
    return lambda: len(generate(generator, asked, seeds=seeds, frames=128, out=out))


def generated(work: Work) -> Callable[[], int]:
    "Read an epoch of pictures: 1802 songs of 30 s, and as many generated ones as `size` says."
    from musemo.core import Run
    from musemo.dataset import make_loader, read_datasets
    from musemo.presets import make_config

    run, config, songs = Run(work.folder), make_config("full"), 180 if work.quick else 1802
    rng = np.random.default_rng(0)
    for name, count in (("logmel", songs), ("synthetic", work.size + 5)):  # 5 named emotions
        # Files with nothing written in them cost no disk, and are read like others.
        shape = (count, config.audio.n_mels, config.audio.frames)
        np.lib.format.open_memmap(work.folder / f"{name}.npy", "w+", np.float16, shape)
    table = pd.DataFrame(rng.uniform(-1, 1, (songs, 2)), columns=["valence", "arousal"])
    parts = np.repeat(
        ["train", "val", "test"], np.diff([0, *(songs * np.array([13, 16])) // 20, songs])
    )
    run.save("songs.csv", table.assign(frames=config.audio.frames, row=range(songs), split=parts))
    made = pd.DataFrame(rng.uniform(-1, 1, (work.size + 5, 2)), columns=["valence", "arousal"])
    run.save("synthetic.csv", made.assign(emotion=[None] * work.size + ["named"] * 5))

    def job():
        loader = make_loader(read_datasets(run, config)["train"], config)
        return sum(len(labels) for _, labels, _ in loader)

    return job
