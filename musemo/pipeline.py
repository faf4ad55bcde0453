"""The twelve sections in order: what each leaves, and how a run goes on where it was cut off."""

import importlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from musemo.config import Config
from musemo.core import MusemoError, Run, pick_device
from musemo.data import find_data
from musemo.demo import compose_demo
from musemo.execution import execute, log, log_to, suite_bar
from musemo.presets import changed_fields, make_config, read_config, save_config
from musemo.report import index_page


@dataclass(frozen=True)
class Stage:
    "A function that makes artifacts of a section; `generator`: only where the run trains that one."

    function: str  # module:function(run, config)
    artifacts: tuple[str, ...]
    generator: str = ""

    def make(self, run: Run, config: Config) -> None:
        "Call the function itself, without its notebook."
        module, function = self.function.split(":")
        getattr(importlib.import_module(f"musemo.{module}"), function)(run, config)


class Section:
    "One of the twelve: its notebook and the stages that make its artifacts."

    def __init__(self, name: str, *stages: Stage):
        self.name, self.all_stages = name, stages

    def stages(self, config: Config) -> list[Stage]:
        "List the stages that a configuration asks for."
        return [s for s in self.all_stages if s.generator in ("", *config.generators)]

    def artifacts(self, config: Config) -> list[str]:
        "Name what these stages leave in the run folder."
        return [name for stage in self.stages(config) for name in stage.artifacts]


def _trained(name: str) -> tuple[str, ...]:
    "Name what training a generator leaves."
    ends = (".safetensors", "_history.json", "_times.json", "_samples.npy", "_samples.csv")
    return tuple(f"{name}{end}" for end in ends)


SECTIONS = (
    Section("01_core", Stage("core:start_run", ("environment.json",))),
    Section("02_config", Stage("presets:save_config", ("config.json",))),
    Section("03_data", Stage("data:prepare_data", ("songs.csv", "logmel.npy", "label_audit.json"))),
    Section("04_gan"),
    Section(
        "05_gan_training",
        Stage("gan_training:fit_gan", _trained("gan"), "gan"),
        Stage("residual_training:fit_residual", _trained("residual"), "residual"),
        Stage("flow_training:fit_flow", _trained("flow"), "flow"),
    ),
    Section("06_gan_quality", Stage("gan_quality:judge_generators", ("gan_quality.json",))),
    Section(
        "07_synthesis",
        Stage("synthesis:synthesize", ("synthetic.npy", "synthetic.csv")),
        Stage("synthesis:draw_plane", ("plane.npy", "plane.csv")),
    ),
    Section(
        "08_audio",
        Stage("listening:render_emotions", ("audio/audio.json",)),
        Stage("plane:render_plane", ("audio/plane.json",)),
    ),
    Section("09_dataset"),
    Section("10_vit"),
    Section(
        "11_vit_training",
        Stage("vit_training:fit_vit", ("vit.safetensors", "vit_history.json")),
    ),
    Section(
        "12_evaluation",
        Stage("evaluation:evaluate_vit", ("metrics.json", "predictions.csv", "intervals.json")),
    ),
)


def with_data(config: Config, folder: Path, *, compose: bool = True) -> Config:
    "Name the demo music below `folder` where the configuration names no data, and compose it."
    if config.data.path:
        return config
    data = config.data
    music = folder.resolve() / f"music-{data.demo_songs}x{data.demo_seconds:g}s"
    if compose:
        compose_demo(music, songs=data.demo_songs, seconds=data.demo_seconds)
    tree = config.model_dump(mode="json")
    tree["data"]["path"] = str(music)
    return read_config(tree)


def load_config(run: Run) -> Config:
    "Read a run's configuration; raises MusemoError where another version made it."
    try:
        return read_config(run.load("config.json"))
    except MusemoError:
        raise
    except ValueError as error:
        raise MusemoError(
            f"{run.path('config.json')} cannot be read by this version ({error}): "
            "choose another --out"
        ) from error


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


def _record(run: Run) -> dict:
    "Read which sections are done, and how long they took."
    empty = {"sections": {}, "units": {"sections": "seconds"}}
    return run.load("run.json") if run.has("run.json") else empty


# The first section that a field, or else its part, matters to; others matter from the start.
_MATTERS_FROM = {
    "generators": 4,
    "gan": 4,
    "residual": 4,
    "flow": 4,
    "checkpoint": 5,
    "synthesis.jitter": 5,  # generators train and are judged with it
    "synthesis": 7,
    "quality": 6,
    "inversion": 8,
    "dataset": 7,
    "augmentation": 9,
    "vit": 9,
    "training.recipe": 9,
    "training": 11,
    "small": 11,
    "judgement": 12,
}


def check_change(run: Run, config: Config, first: int | None) -> None:
    "Refuse to mix two configurations in one run; raises MusemoError with the way out."
    if not run.has("config.json"):
        return
    changed = changed_fields(load_config(run), config)
    names = [text.partition(":")[0] for text in changed]
    first_of = [_MATTERS_FROM.get(x, _MATTERS_FROM.get(x.partition(".")[0], 1)) for x in names]
    needed = min(first_of, default=12)
    if changed and (first or 99) > needed:
        raise MusemoError(
            f"{run.folder} holds a run of another configuration ({'; '.join(changed[:3])}): "
            f"choose another --out, or recompute it with --from {needed}"
        )


def prepare_run(
    config: Config, out: Path, *, first: int | None, only: int | None
) -> tuple[Run, Config, dict]:  # the run, its configuration, the record of what is done
    "Check what can be checked before anything is written, then open the run."
    run = Run(Path(out).expanduser().resolve())
    if run.folder.exists() and not run.folder.is_dir():
        raise MusemoError(f"--out {out}: is a file; name a folder")
    if config.data.path:
        find_data(config)
    pick_device(config.device)
    # A run's own folder says which demo music it has, before any is composed.
    planned = with_data(config, run.folder.parent, compose=False)
    check_change(run, planned, first)
    record = _record(run)
    for section in SECTIONS[(first or only or 99) - 1 :]:
        record["sections"].pop(section.name, None)
    # What is to be made again is forgotten first: a run cut off here must not look complete.
    run.save("run.json", record)
    config = with_data(config, run.folder.parent)
    save_config(run, config)
    return run, config, record


def run_suite(
    config: Config,
    out: Path,  # the run folder
    *,
    first: int | None = None,  # recompute from this section on
    only: int | None = None,  # execute just this one
    until: int = len(SECTIONS),  # stop after this one
) -> Path:  # the index page
    "Execute the sections that are not done yet, in order, and write the index page."
    run, config, record = prepare_run(config, out, first=first, only=only)
    done = record["sections"]
    wanted = [s for i, s in enumerate(SECTIONS[:until], 1) if only in (None, i)]
    with log_to(run), suite_bar(len(wanted)) as (bar, line):
        for section in wanted:
            bar.set_description(section.name)
            complete = run.has(*section.artifacts(config), f"reports/{section.name}.html")
            if section.name not in done or not complete:
                done[section.name] = round(execute(run, section.name, line), 1)
                run.save("run.json", record)
                write_index(run, config, done)
            bar.update()
        log.info("%d of %d sections are done", len(done), len(SECTIONS))
    return write_index(run, config, done)


def write_index(run: Run, config: Config, done: dict[str, float]) -> Path:
    "Write the page that links the reports; sections that are not done are named as such."
    sections = {section.name: done.get(section.name) for section in SECTIONS}
    return run.save("index.html", index_page(run, config, sections))
