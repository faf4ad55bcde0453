"""Open a run where its notebooks are read; what papermill and the pages need is not loaded here."""

import shutil
from pathlib import Path

from musemo.config import Config
from musemo.core import Run
from musemo.presets import make_config, read_config, save_config
from musemo.records import load_config
from musemo.sections import SECTIONS


def with_data(config: Config, folder: Path, *, compose: bool = True) -> Config:
    "Name the demo music below `folder` where the configuration names no data, and compose it."
    if config.data.path:
        return config
    from musemo.demo import EDITION, compose_demo  # here: real songs need nothing of what composes

    data = config.data
    name = f"music-{data.demo_songs}x{data.demo_seconds:g}s-v{EDITION}"  # an old one may be there
    music = folder.resolve() / name
    if compose:
        compose_demo(music, songs=data.demo_songs, seconds=data.demo_seconds)
    tree = config.model_dump(mode="json")
    tree["data"]["path"] = str(music)
    return read_config(tree)


def open_run(folder: str | Path | None = None, *, before: int) -> tuple[Run, Config]:
    "Open a run for section `before`; what earlier sections should have left is made first."
    if folder is None:
        folder = _notebook_folder()
    run = Run(Path(folder))
    config = load_config(run)
    for section in SECTIONS[: before - 1]:
        for stage in section.stages(config):
            if not run.has(*stage.artifacts):
                stage.make(run, config)
    return run, config


def _notebook_folder() -> Path:
    "Prepare the smoke run that a notebook opened on its own works in."
    here = Path.cwd()
    root = next((p for p in (here, *here.parents) if (p / "settings.ini").exists()), here)
    run = Run(root / "runs/notebook")
    config = with_data(make_config("smoke"), root / "runs")
    # A run left by another version of the configuration would mix two states.
    if run.has("config.json"):
        try:
            if read_config(run.load("config.json")) == config:
                return run.folder
        except ValueError:
            pass
        shutil.rmtree(run.folder)
    save_config(run, config)
    return run.folder
