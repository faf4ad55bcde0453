"""Each stage in the usual way, as the specification and librosa's documentation describe it."""

from collections.abc import Callable

import numpy as np

from tests.bench.work import Work, emotion_model, features, gan_setting, same_width, smoke_config


def log_mel(path, *, seconds: float | None) -> np.ndarray:  # (128, T) on [-1, 1]
    "Load a song with librosa; -60 to 40 dB become -1 to 1, and silence at the ends goes."
    import librosa

    # A little more is loaded than is kept: a resampler rings where its sound ends.
    wave, rate = librosa.load(path, sr=22050, duration=seconds and seconds + 0.1)
    wave = wave[: seconds and int(seconds * rate)]
    power = librosa.feature.melspectrogram(
        y=wave, sr=rate, n_fft=2048, hop_length=512, n_mels=128, fmin=20, fmax=8000
    )
    decibels = librosa.power_to_db(power, ref=1.0, top_db=None)
    sounding = np.flatnonzero(decibels.max(axis=0) > -40)
    return (decibels[:, sounding[0] : sounding[-1] + 1].clip(-60, 40) + 10) / 50


def log_mels(work: Work) -> Callable[[], np.ndarray]:
    "Decode one file after the other, and keep each log-mel in a file of its own."
    paths = work.paths(20 if work.quick else 200)
    log_mel(paths[0], seconds=1)  # librosa loads its parts when they are first used

    def job():
        for path in paths:
            np.save(work.folder / path.stem, log_mel(path, seconds=30).astype(np.float16))
        return same_width([np.load(work.folder / f"{path.stem}.npy") for path in paths[:10]])

    return job


def frechet(work: Work) -> Callable[[], list[float]]:
    from scipy import linalg

    a, b = features()

    def job():
        cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        root = linalg.sqrtm(cov_a @ cov_b).real
        means = a.mean(axis=0) - b.mean(axis=0)
        return [means @ means + np.trace(cov_a + cov_b - 2 * root)]

    return job


def gan_epoch(work: Work) -> Callable[[], np.ndarray]:
    "A plain loop: one step of each side, then the discriminator's accuracy in a pass of its own."
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
    from torch.nn.utils import clip_grad_norm_

    from musemo.core import seed_for
    from musemo.gan import build_gan

    config, songs = gan_setting(256 if work.quick else 1292, batch=8, songs=16)
    gan, jitter, rng = config.gan, config.synthesis.jitter, torch.Generator()
    torch.manual_seed(0)
    generator, discriminator = build_gan(config)
    generator.start_from(*songs.spectra())
    discriminator.band_means, discriminator.deviation = songs.levels()
    rates = (generator, gan.learning_rate), (discriminator, gan.learning_rate / 2)
    optimizers = [torch.optim.Adam(x.parameters(), rate, (0.5, 0.999)) for x, rate in rates]

    def move(labels):
        return (labels + jitter * torch.randn(labels.shape, generator=rng)).clamp(-1, 1)

    def draw(labels):
        wanted = move(labels[torch.randperm(len(labels), generator=rng)])
        noise = torch.randn(len(labels), generator.noise_size(gan.frames), generator=rng)
        return generator(noise, wanted), wanted

    def loss_of(pictures, labels, truth):
        parts = discriminator(pictures, labels)
        return sum(cross_entropy(x, torch.full_like(x, truth)) for x in parts) / len(parts)

    def step(network, optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(network.parameters(), gan.clip_norm)
        optimizer.step()
        return loss.item()

    def accuracy(real, labels):
        discriminator.eval()  # so that asking changes nothing
        with torch.no_grad():
            noise = torch.randn(len(labels), generator.noise_size(gan.frames))
            answers = discriminator(real, labels), discriminator(generator(noise, labels), labels)
        discriminator.train()
        told = [torch.stack([part.mean(1) for part in parts]).mean(0) > 0 for parts in answers]
        return (told[0].float().mean() + (~told[1]).float().mean()) / 2

    def job():
        rows, judged = [], []
        for i in range(len(songs.labels) // gan.batch_size):
            rng.manual_seed(seed_for(0, "step", i))
            real, labels = songs.batch(gan.batch_size, i, width=gan.frames, seed=0)
            drawn, wanted = draw(labels)
            own, others = move(labels), move(labels.roll(1, 0))
            loss = 2 * loss_of(real, own, 1) + loss_of(drawn.detach(), wanted, 0)
            loss = loss + loss_of(real, others, 0)  # real, with another song's label
            of_discriminator = step(discriminator, optimizers[1], loss)
            of_generator = step(generator, optimizers[0], loss_of(*draw(labels), 1))
            judged.append(accuracy(real, labels))
            rows.append([of_generator, of_discriminator])
        return np.array(rows)

    return job


def vit_schedule(work: Work) -> Callable[[], list[float]]:
    from tests.bench.vit_schedule import schedule_job

    return schedule_job("plain", quick=work.quick)


def vit_unfrozen(work: Work) -> Callable[[], list[float]]:
    from tests.bench.vit_schedule import schedule_job

    return schedule_job("unfrozen", quick=work.quick)


def inversion(work: Work) -> Callable[[], np.ndarray]:
    from tests.bench.inversion import inversion_job, theirs

    return inversion_job(work.paths(2 if work.quick else 10), theirs)


def prediction(work: Work) -> Callable[[], np.ndarray]:
    "Predict one song after the other, one window after the other."
    import torch

    paths, model = work.paths(10 if work.quick else 100), emotion_model()
    log_mel(paths[0], seconds=1)

    @torch.no_grad()
    def predict(path):
        song = log_mel(path, seconds=None)
        count = max(model.windows_per_song, -(-song.shape[1] // model.window))
        starts = np.linspace(0, song.shape[1] - model.window, count).round().astype(int)
        windows = [song[:, start : start + model.window] for start in starts]
        pixels = [torch.from_numpy(np.float32(window))[None, None] for window in windows]
        features = torch.cat([model.network.describe(x) for x in pixels])
        return model.network.answer(features.mean(0, keepdim=True))[0].numpy()

    return lambda: np.array([predict(path) for path in paths])


def suite(work: Work) -> Callable[[], np.ndarray]:
    "Call the stages themselves: no notebook, no page."
    from musemo.core import Run
    from musemo.sections import SECTIONS

    config, run = smoke_config(work), Run(work.folder / "run")

    def job():
        for section in SECTIONS:
            for stage in section.stages(config):
                stage.make(run, config)
        return run.load("predictions.csv")[["valence_predicted", "arousal_predicted"]]

    return job
