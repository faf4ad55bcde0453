"""The twelve sections: the stages of each, and what they leave in the run folder."""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch

from musemo.config import Config
from musemo.core import Run


@dataclass(frozen=True)
class Stage:
    "A function that makes artifacts of a section; `generator`: only where the run trains that one."

    function: str  # module:function(run, config)
    artifacts: tuple[str, ...]
    generator: str = ""

    def make(self, run: Run, config: Config):
        "Call the function itself, without its notebook; return what it returns."
        module, function = self.function.split(":")
        return getattr(importlib.import_module(f"musemo.{module}"), function)(run, config)


class Section:
    "One of the twelve: its notebook, its main picture in words, the stages that make its artifacts."

    def __init__(self, name: str, picture: str, *stages: Stage, also: tuple[str, ...] = ()):
        self.name, self.picture, self.all_stages = name, picture, stages
        # Patterns of what the notebook leaves beside the artifacts of its stages.
        self.also = (f"figures/{name}.json", f"figures/{name}.png", *also)

    def stages(self, config: Config) -> list[Stage]:
        "List the stages that a configuration asks for."
        return [s for s in self.all_stages if s.generator in ("", *config.generators)]

    def artifacts(self, config: Config) -> list[str]:
        "Name what these stages leave in the run folder."
        return [name for stage in self.stages(config) for name in stage.artifacts]

    def left_besides(self, names: Iterable[str]) -> list[str]:
        "Pick what the notebook leaves beside them, out of files' names."
        return [name for name in names if any(fnmatch(name, pattern) for pattern in self.also)]


def _trained(name: str) -> tuple[str, ...]:
    "Name what training a generator leaves."
    ends = (".safetensors", "_history.json", "_times.json", "_samples.npy", "_samples.csv")
    return tuple(f"{name}{end}" for end in ends)


SECTIONS = (
    Section(
        "01_core",
        "list of the device, Python and the packages of this run, with versions",
        Stage("environment:start_run", ("environment.json",)),
    ),
    Section(
        "02_config",
        "line of how many of the ViT's last blocks may move, by epoch",
        Stage("presets:save_config", ("config.json",)),
    ),
    Section(
        "03_data",
        "songs as dots on the valence-arousal plane, and spectrograms of three, from low arousal to "
        "high",
        Stage("data:prepare_data", ("songs.csv", "logmel.npy", "label_audit.json")),
    ),
    Section(
        "04_gan",
        "spectrogram of a real song beside what the untrained generator draws",
    ),
    Section(
        "05_gan_training",
        "curves of each generator's training: losses, and what kept it in balance",
        Stage("gan_training:fit_gan", _trained("gan"), "gan"),
        Stage("residual_training:fit_residual", _trained("residual"), "residual"),
        Stage("flow_training:fit_flow", _trained("flow"), "flow"),
    ),
    Section(
        "06_gan_quality",
        "bars of each generator's score and its parts, from noise (0) to real songs (100)",
        Stage("gan_quality:judge_generators", ("gan_quality.json",)),
    ),
    Section(
        "07_synthesis",
        "grid of spectrograms drawn from one noise: valence rises to the right, arousal upwards",
        Stage("synthesis:synthesize", ("synthetic.npy", "synthetic.csv")),
        Stage("synthesis:draw_plane", ("plane.npy", "plane.csv")),
    ),
    Section(
        "08_audio",
        "spectrograms drawn for five emotions, each beside that of the nearest real song",
        Stage("listening:render_emotions", ("audio/audio.json",)),
        Stage("listening:render_generators", ("audio/generators.json",)),
        Stage("plane:render_plane", ("audio/plane.json",)),
        also=("audio/*.wav",),
    ),
    Section(
        "09_dataset",
        "windows of one training batch, real and synthetic ones, as the ViT sees them",
    ),
    Section(
        "10_vit",
        "bars of how many parameters may learn, from which epoch on",
    ),
    Section(
        "11_vit_training",
        "curves of the errors while the predictor learnt",
        Stage("vit_training:fit_vit", ("vit.safetensors", "vit_history.json")),
    ),
    Section(
        "12_evaluation",
        "test songs as dots, rated against predicted valence and arousal, and arrows on the plane "
        "from the one to the other",
        Stage("evaluation:evaluate_vit", ("metrics.json", "predictions.csv", "intervals.json")),
        also=("explanation.json",),
    ),
)
