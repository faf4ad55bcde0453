"""What all ways of a stage work on. Nothing of it is timed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Work:
    "Where a way works, and at which size."

    folder: Path  # its own, empty
    shared: str = ""  # folder that all ways share, for what takes long to make
    clips: str = ""  # folder of real .mp3 files
    quick: bool = False
    size: int = 0  # of a growing cost

    def paths(self, count: int) -> list[Path]:
        "List as many copies of the clips in turn, each a file of its own."
        folder, some = Path(self.shared, "clips"), real_clips(self.clips)
        folder.mkdir(parents=True, exist_ok=True)
        turns = (divmod(i, len(some)) for i in range(count))
        return [copy_clip(some[place], folder, turn) for turn, place in turns]


def real_clips(folder: str) -> list[Path]:
    "List at most ten clips of a folder, by the numbers that they are called."
    return sorted(Path(folder).glob("*.mp3"), key=lambda p: (len(p.stem), p.stem))[:10]


def copy_clip(path: Path, folder: Path, i: int) -> Path:
    "Copy a clip with two bytes after its end: no decoder hears them, and no cache knows the file."
    copy = folder / f"{path.stem}-{i:03d}.mp3"
    if not copy.exists():
        copy.write_bytes(path.read_bytes() + i.to_bytes(2, "little"))
    return copy


def check_copies(work: Work) -> None:
    "Make sure that a copy sounds like its clip."
    import soundfile

    some = real_clips(work.clips)
    for path, copy in zip(some, work.paths(2 * len(some))[len(some) :], strict=True):
        a, b = (soundfile.read(x, dtype="float32")[0] for x in (path, copy))
        assert np.array_equal(a, b), f"{copy}: does not sound like {path}"


def same_width(log_mels: list[np.ndarray], frames: int = 1292) -> np.ndarray:
    "Stack log-mels of up to 30 s, silence after the shorter ones."
    padding = [((0, 0), (0, frames - x.shape[1])) for x in log_mels]
    pairs = zip(log_mels, padding, strict=True)
    return np.stack([np.pad(x, pad, constant_values=-1) for x, pad in pairs])


def features() -> tuple[np.ndarray, np.ndarray]:
    "Make two sets of 200 rows of 2048 features that go together, as an embedding's do."
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(256, 2048)) / 16
    rows = (rng.normal(size=(200, 256)) @ mix + 0.1 * rng.normal(size=(200, 2048)) for _ in "ab")
    a, b = rows
    return a, b + 0.1


def gan_setting(frames: int, *, batch: int, songs: int):
    "Make the specification's GAN and some songs of noise for it; one step of each side a round."
    from musemo.generator_training import Songs
    from musemo.presets import make_config

    values = {"gan.frames": frames, "gan.batch_size": batch, "gan.epochs": 1}
    config = make_config("full", values | {"gan.max_steps": 1, "device": "cpu"})
    rng = np.random.default_rng(0)
    shape = songs, config.audio.n_mels, frames
    log_mel = rng.normal(-0.2, 0.3, shape).clip(-1, 1).astype(np.float16)
    return config, Songs(log_mel, np.full(songs, frames), rng.uniform(-1, 1, (songs, 2)))


def emotion_model():
    "Make the demo's predictor with random weights, the same in each process."
    import torch

    from musemo.prediction import FORMAT, EmotionModel
    from musemo.presets import make_config
    from musemo.vit import build_vit, describe_vit

    config = make_config("demo")
    torch.manual_seed(0)
    network = build_vit(config).eval()
    with torch.no_grad():
        network.head.weight.mul_(0.1)  # answers within the scale
    sizes = {"window": config.window, "image_size": config.dataset.image_size}
    sizes |= {"windows_per_song": config.dataset.windows_per_song, "format": FORMAT}
    sizes |= {"min_seconds": config.data.min_seconds, "batch_size": config.dataset.batch_size}
    audio = config.audio.model_dump(mode="json")
    model = EmotionModel(network=describe_vit(network), audio=audio, **sizes)
    model.network.load_state_dict(network.state_dict())
    return model.eval()


def smoke_config(work: Work):
    "Make the smoke configuration with its music composed, and with a cache of its own."
    from musemo.opening import with_data
    from musemo.presets import make_config

    values = {"data.cache": str(work.folder / "cache"), "device": "cpu"}
    return with_data(make_config("smoke", values), Path(work.shared))
