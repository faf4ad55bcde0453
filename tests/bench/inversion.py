"""Measure the inversion on real clips, musemo beside librosa: python tests/bench/inversion.py

Each run sends every clip through both, one after the other, so that both meet the same machine.
Exits with 1 where a clip's error or the ratio of times (median of the runs) misses its bound.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import librosa
import numpy as np
import pandas as pd
import torch

from musemo.audio import invert_log_mel, round_trip_error, to_power, wave_log_mel
from musemo.config import Config
from musemo.core import MusemoError
from musemo.data import decode
from musemo.presets import make_config

WORST, LEAST = 0.76, 6.0  # dB of a clip's round trip; times as fast as librosa
CLIPS = Path(__file__).resolve().parents[3] / "shared/data/deam/DEAM_audio/MEMD_audio"


def theirs(log_mel: np.ndarray, config: Config) -> np.ndarray:
    "Invert with librosa, on the same filters and with as many Griffin-Lim rounds."
    audio = config.audio
    wave = librosa.feature.inverse.mel_to_audio(
        to_power(log_mel, audio)[0].numpy(),
        sr=audio.sample_rate,
        n_fft=audio.n_fft,
        hop_length=audio.hop,
        n_iter=config.inversion.iterations,
        fmin=audio.f_min,
        fmax=audio.f_max,
    )
    return wave[None]


def inversion_job(
    paths: list[Path], invert: Callable[[np.ndarray, Config], np.ndarray]
) -> Callable[[], np.ndarray]:
    "Prepare clips for the bench, which times how they are inverted; returns errors in dB."
    config = make_config("full")
    log_mels = [wave_log_mel(decode(path, config.audio)[None], config.audio) for path in paths]
    invert(log_mels[0][..., :32], config)  # compiles and caches

    def job():
        backs = [invert(log_mel, config) for log_mel in log_mels]
        pairs = zip(log_mels, backs, strict=True)
        return np.array([round_trip_error(*pair, config.audio)[0] for pair in pairs])

    return job


def measure(path: Path, config: Config) -> dict:
    "Send one clip there and back by both ways: errors and level in dB, processor seconds."
    wave = decode(path, config.audio)[None]
    log_mel, facts = wave_log_mel(wave, config.audio), {"clip": path.stem}
    ways = {
        "musemo": lambda: invert_log_mel(log_mel, config, seed=0),
        "librosa": lambda: theirs(log_mel, config),
    }
    for name, way in ways.items():
        begun = time.perf_counter(), time.process_time()
        back = way()
        facts[f"{name} (s)"] = time.perf_counter() - begun[0]
        facts[f"{name} (CPU s)"] = time.process_time() - begun[1]
        facts[f"{name} error (dB)"] = round_trip_error(log_mel, back, config.audio)[0]
        facts[f"{name} level (dB)"] = 20 * np.log10(back.std() / wave.std())
    return facts


def missed(per_clip: pd.DataFrame, ratio: float) -> list[str]:
    "Say which bounds were missed."
    errors = per_clip["musemo error (dB)"]
    rules = {
        f"clip {errors.idxmax()}: {errors.max():.2f} dB, at most {WORST}": errors.max() > WORST,
        f"{ratio:.1f} times as fast as librosa, at least {LEAST}": ratio < LEAST,
    }
    return [rule for rule, is_missed in rules.items() if is_missed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="times that each clip is measured")
    parser.add_argument("--clips", type=Path, default=CLIPS, help="folder of .mp3 files")
    parser.add_argument("--most", type=int, default=10, help="clips")
    options = parser.parse_args()
    paths = sorted(options.clips.glob("*.mp3"), key=lambda p: (len(p.stem), p.stem))
    paths = paths[: options.most]
    if not paths:
        print(f"skipped: no .mp3 in {options.clips}; name a folder with --clips")
        return
    config = make_config("full")
    measure(paths[0], config)  # compiles and caches
    rows = []
    for run in range(options.runs):
        for path in paths:
            rows.append({"run": run} | measure(path, config))
            print(f"run {run + 1}, clip {path.stem}", file=sys.stderr)
    table = pd.DataFrame(rows)
    per_clip = table.drop(columns="run").groupby("clip", sort=False).median()
    print(per_clip.round(2).to_string())
    print(f"\nmeans over {len(paths)} clips\n{per_clip.mean().round(2).to_string()}")
    ratios = {}
    for unit in ("s", "CPU s"):
        sums = table.groupby("run")[[f"musemo ({unit})", f"librosa ({unit})"]].sum()
        ratio = sums[f"librosa ({unit})"] / sums[f"musemo ({unit})"]
        print(
            f"librosa's time / musemo's, {unit}: median {ratio.median():.1f} of {len(ratio)} runs "
            f"({ratio.min():.1f}-{ratio.max():.1f}); {torch.get_num_threads()} threads"
        )
        ratios[unit] = ratio.median()
    faults = missed(per_clip, ratios["s"])
    if faults:
        sys.exit("missed: " + "; ".join(faults))


if __name__ == "__main__":
    try:
        main()
    except MusemoError as error:
        sys.exit(f"{error}")
