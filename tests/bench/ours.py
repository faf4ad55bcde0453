"""Each stage as musemo does it. A function prepares its stage and returns what is timed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.bench.work import Work, emotion_model, features, gan_setting, same_width, smoke_config


def log_mels(work: Work) -> Callable[[], np.ndarray]:
    from musemo.data import decode, extract_log_mels
    from musemo.presets import make_config
    from musemo.spectrum import log_mel_of

    paths = work.paths(20 if work.quick else 200)
    config = make_config("full", {"data.cache": str(work.folder / "cache")})
    second = config.audio.model_copy(update={"clip_seconds": 1})
    log_mel_of(decode(paths[0], second), second)  # librosa loads its parts when they are first used

    def job():
        found = extract_log_mels(paths, config)
        return same_width([np.load(where) for _, where in found[:10]])

    return job


def log_mels_again(work: Work) -> Callable[[], np.ndarray]:
    job = log_mels(work)
    job()
    return job


def decoding(work: Work) -> Callable[[], np.ndarray]:
    "The least that log-mels cost: the same files decoded by the same threads."
    from joblib import delayed

    from musemo.data import decode
    from musemo.jobs import run_jobs
    from musemo.presets import make_config

    paths, audio = work.paths(20 if work.quick else 200), make_config("full").audio

    def job():
        jobs = (delayed(lambda path: len(decode(path, audio)))(path) for path in paths)
        return run_jobs(jobs, workers=-1, desc="decoding", total=len(paths), backend="threading")

    return job


def frechet(work: Work) -> Callable[[], list[float]]:
    from musemo.distance import frechet_distance

    a, b = features()
    return lambda: [frechet_distance(a, b)]


def gan_epoch(work: Work) -> Callable[[], np.ndarray]:
    import torch

    from musemo.gan_training import GanLearner
    from musemo.generator_training import train

    config, songs = gan_setting(256 if work.quick else 1292, batch=8, songs=16)
    torch.manual_seed(0)
    learner = GanLearner(config, songs, torch.device("cpu"))

    def job():
        rows = train(learner, songs, "gan", seed=0)
        return np.array([[row["generator_loss"], row["discriminator_loss"]] for row in rows])

    return job


def vit_schedule(work: Work) -> Callable[[], list[float]]:
    from tests.bench.vit_schedule import schedule_job

    return schedule_job("cached", quick=work.quick)


def inversion(work: Work) -> Callable[[], np.ndarray]:
    from musemo.audio import invert_log_mel
    from tests.bench.inversion import inversion_job

    return inversion_job(
        work.paths(2 if work.quick else 10),
        lambda log_mel, config: invert_log_mel(log_mel, config, seed=0),
    )


def prediction(work: Work) -> Callable[[], np.ndarray]:
    paths, model = work.paths(10 if work.quick else 100), emotion_model()
    return lambda: _emotions(model.predict_all(paths))


def prediction_one_by_one(work: Work) -> Callable[[], np.ndarray]:
    paths, model = work.paths(10 if work.quick else 100), emotion_model()
    return lambda: _emotions([model.predict(path) for path in paths])


def _emotions(said: list[dict]) -> np.ndarray:
    return np.array([[one["valence"], one["arousal"]] for one in said])


def suite(work: Work) -> Callable[[], np.ndarray]:
    from musemo.core import Run
    from musemo.pipeline import run_suite

    config, out = smoke_config(work), Path(work.folder, "run")

    def job():
        run_suite(config, out)
        return Run(out).load("predictions.csv")[["valence_predicted", "arousal_predicted"]]

    return job
