"""The stages of the bench, their floors, and what is made of the seconds that were measured."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

DECIBELS = 100  # of 1 on the scale of log-mels


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    "Largest difference, as a share of the largest value."
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def decibels(ours: np.ndarray, theirs: np.ndarray) -> float:
    "Largest difference of log-mels on [-1, 1], in dB."
    return float(np.abs(ours - theirs).max() * DECIBELS / 2)


def absolute(ours: np.ndarray, theirs: np.ndarray) -> float:
    "Largest difference."
    return float(np.abs(ours - theirs).max())


def mean_excess(ours: np.ndarray, theirs: np.ndarray) -> float:
    "By how much our mean error is larger."
    return float(ours.mean() - theirs.mean())


@dataclass(frozen=True)
class Rule:
    "A figure made of two ways' seconds, and the limit that it is to keep."

    over: str  # way
    under: str  # way
    least: float | None = None
    most: float | None = None
    times: float = 1.0  # of the seconds of `over`, where a part of it was measured
    minus: bool = False  # the figure is the difference in seconds, not the ratio

    def figure(self, over: float, under: float) -> float:
        "Set the seconds of two ways against each other."
        return self.times * over - under if self.minus else self.times * over / under

    def room(self, figure: float) -> float | None:
        "Say how far inside its limit a figure is, as a share of the limit; below 0: missed."
        if self.least is not None:
            return figure / self.least - 1
        return None if self.most is None else 1 - figure / self.most


@dataclass(frozen=True)
class Stage:
    "The same work in several ways, named module.function in tests/bench."

    name: str
    title: str
    ways: dict[str, str]  # "musemo" and "usual", and others to compare with
    rules: tuple[Rule, ...]
    difference: Callable[[np.ndarray, np.ndarray], float]  # of the results of musemo and usual
    tolerance: float
    unit: str  # of the difference
    clips: bool = False  # needs real clips


STAGES = (
    Stage(
        "decode",
        "decode + log-mel, 200 files of ten clips",
        {
            "musemo": "ours.log_mels",
            "usual": "usual.log_mels",  # librosa.load + melspectrogram in a loop
            "decoding alone": "ours.decoding",
        },
        (Rule("usual", "musemo", least=3), Rule("musemo", "decoding alone", most=2)),
        *(decibels, 0.05, "dB"),
        clips=True,
    ),
    Stage(
        "cached",
        "the same again, out of the cache",
        {"musemo": "ours.log_mels_again", "usual": "usual.log_mels"},
        (Rule("usual", "musemo", least=100),),
        *(decibels, 0.05, "dB"),
        clips=True,
    ),
    Stage(
        "frechet",
        "Frechet distance, n = 200, D = 2048",
        {"musemo": "ours.frechet", "usual": "usual.frechet"},  # numpy.cov + scipy.linalg.sqrtm
        (Rule("usual", "musemo", least=20),),
        *(relative, 1e-3, "of the distance"),
    ),
    Stage(
        "generator",
        "generator epoch, 128 x 1292, batch 8",
        {"musemo": "ours.gan_epoch", "usual": "usual.gan_epoch"},  # the accuracy pass apart
        (Rule("usual", "musemo", least=1.5),),
        *(relative, 1e-2, "of the losses"),
    ),
    Stage(
        "vit",
        "ViT-B/16, 24 epochs of the schedule, 32 songs",
        {
            "musemo": "ours.vit_schedule",
            "usual": "usual.vit_schedule",  # frozen blocks recomputed each epoch
            "unfrozen": "usual.vit_unfrozen",  # 2 epochs; all cost alike
        },
        (
            Rule("usual", "musemo", least=2.5),
            Rule("unfrozen", "musemo", least=4.5, times=12),
        ),
        *(absolute, 2e-3, "of the validation loss"),
    ),
    Stage(
        "inversion",
        "log-mel to sound, each clip's first 30 s",
        {"musemo": "ours.inversion", "usual": "usual.inversion"},  # librosa's mel_to_audio
        (Rule("usual", "musemo", least=6),),
        *(mean_excess, 0.0, "dB more error"),
        clips=True,
    ),
    Stage(
        "prediction",
        "prediction of 100 songs, preset demo",
        {
            "musemo": "ours.prediction",
            "usual": "usual.prediction",  # librosa and the network, one window after the other
            "predict in a loop": "ours.prediction_one_by_one",
        },
        (Rule("usual", "musemo", least=3), Rule("predict in a loop", "musemo")),
        *(absolute, 2e-3, "on [-1, 1]"),
        clips=True,
    ),
    Stage(
        "overhead",
        "the suite at smoke size: notebooks, pages",
        {"musemo": "ours.suite", "usual": "usual.suite"},  # the stages called directly
        (Rule("musemo", "usual", most=90, minus=True),),
        *(absolute, 0.0, "on [-1, 1]"),
    ),
)


@dataclass(frozen=True)
class Growth:
    "A cost at growing sizes; it is to grow no faster than they do."

    name: str
    way: str
    unit: str  # of the sizes
    sizes: tuple[int, ...]
    clips: bool = False  # needs real clips
    most_mb: float = 4000


GROWTHS = (
    Growth("songs", "growth.songs", "songs, decoded and tabled", (50, 100, 200, 400), clips=True),
    Growth("frames", "growth.frames", "frames, 2 GAN rounds of 2", (256, 512, 768, 1292)),
    Growth("drawn", "growth.drawn", "drawn songs of 128 frames", (0, 800, 1600, 3200)),
    Growth("generated", "growth.generated", "generated beside 1802 songs", (0, 800, 1600, 3200)),
)


def judge(stage: Stage, runs: list[dict[str, dict]]) -> list[dict]:
    "Make a row of each rule of a stage from its runs: way -> seconds, cpu, mb, result."
    found = max(stage.difference(r["musemo"]["result"], r["usual"]["result"]) for r in runs)
    same, rows = found <= stage.tolerance, []
    for rule in stage.rules:
        figures, on_cpu = (
            [rule.figure(run[rule.over][unit], run[rule.under][unit]) for run in runs]
            for unit in ("seconds", "cpu")
        )
        middle = float(np.median(figures))
        row = {"stage": stage.name, "title": stage.title, "over": rule.over, "under": rule.under}
        row |= {"median": middle, "lowest": min(figures), "highest": max(figures)}
        row["runs"] = figures
        row |= {"cpu": float(np.median(on_cpu)), "unit": "s" if rule.minus else "x"}
        row |= {"least": rule.least, "most": rule.most, "room": rule.room(middle)}
        row["mb"] = {way: max(run[way]["mb"] for run in runs) for way in (rule.over, rule.under)}
        row |= {"difference": found, "tolerance": stage.tolerance, "of": stage.unit}
        rows.append(row | {"same": same, "kept": (row["room"] or 0) >= 0})
    return rows


def judge_growth(growth: Growth, runs: list[dict[int, dict]]) -> dict:
    "Make a row of a growing cost from its runs: size -> seconds, cpu, mb."
    # Processor seconds: what else the machine does at one size must not look like growth.
    seconds = [float(np.median([run[size]["cpu"] for run in runs])) for size in growth.sizes]
    mb = [float(np.median([run[size]["mb"] for run in runs])) for size in growth.sizes]
    first = next(i for i, size in enumerate(growth.sizes) if size)  # nothing has no logarithm
    times = growth.sizes[-1] / growth.sizes[first]
    powers = [math.log(cost[-1] / cost[first]) / math.log(times) for cost in (seconds, mb)]
    # A tenth is left to noise.
    kept = max(powers) <= 1.1 and max(mb) <= growth.most_mb
    row = {"cost": growth.name, "unit": growth.unit, "sizes": list(growth.sizes)}
    row |= {"cpu": seconds, "mb": mb, "power_cpu": powers[0], "power_mb": powers[1]}
    return row | {"most_mb": growth.most_mb, "kept": kept}


def faults(rows: list[dict], growths: list[dict]) -> list[str]:
    "Name what is below its floor, above its limit, or not the same."
    found = []
    for row in rows:
        if not row["kept"]:
            limit = row["most"] if row["least"] is None else row["least"]
            names = f"{row['stage']}, {row['over']} against {row['under']}"
            found.append(f"{names}: {row['median']:.3g} {row['unit']}, limit {limit:g}")
    for row in rows:
        told = f"{row['stage']}: results differ by {row['difference']:.2g} {row['of']}"
        if not row["same"] and told not in found:
            found.append(told)
    for row in growths:
        if not row["kept"]:
            powers = f"time as n^{row['power_cpu']:.2f}, memory as n^{row['power_mb']:.2f}"
            found.append(f"{row['cost']}: {powers}, {max(row['mb']):.0f} MB")
    return found
