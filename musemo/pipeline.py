"""Run the twelve notebooks in order with papermill, and go on where a run was cut off."""

import importlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from musemo.config import Config
from musemo.presets import changed_fields, make_config, read_config, save_config
from musemo.core import MusemoError, Run, pick_device
from musemo.data import find_data
from musemo.demo import compose_demo
from musemo.index import index_page
from musemo.memory import watch_memory
from musemo.records import load_config, load_record
from musemo.report import link_reports, notebook_path, write_report


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


class _Forward:
    "Show the last line of a kernel's progress bar behind the suite's own bar."

    def __init__(self, bar: tqdm):
        self.bar = bar

    def write(self, text: str) -> None:
        lines = [part.strip() for part in text.split("\r") if "%|" in part]
        self.bar.set_postfix_str(lines[-1][:60] if lines else "")

    def flush(self) -> None:
        pass


def execute(run: Run, section: Section, bar: tqdm) -> float:
    "Execute one notebook on the run and write its report; return the seconds it took."
    begun = time.monotonic()
    report = run.path(f"reports/{section.name}.ipynb")
    report.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            notebook_path(section.name),
            report,
            parameters={"run_folder": str(run.folder.resolve())},
            kernel_name="python3",
            progress_bar=False,
            stderr_file=_Forward(bar),
            cwd=run.folder,
            extra_arguments=["--log-level=ERROR"],
            shutdown_kernel="immediate",  # all is on the disk by then; a polite end takes seconds
        )
    except PapermillExecutionError as error:
        if error.ename in ("MusemoError", "WeightsError"):
            raise MusemoError(f"{section.name}: {error.evalue}") from None
        raise
    except DeadKernelError as error:
        raise MusemoError(
            f"{section.name}: the kernel died, most likely for want of memory; "
            "lower gan.batch_size or dataset.batch_size and start again, the run goes on here"
        ) from error
    write_report(run, section.name)
    return time.monotonic() - begun


@contextmanager
def suite_bar(total: int) -> Iterator[tqdm]:
    "Open the bar of the whole suite; the sections' own bars appear behind it."
    quiet = bool(os.environ.get("MUSEMO_QUIET"))
    with tqdm(total=total, desc="sections", disable=quiet, file=sys.stderr) as bar:
        yield bar


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
    record = load_record(run)
    for section in SECTIONS[(first or only or 99) - 1 :]:
        for part in ("sections", "memory"):
            record[part].pop(section.name, None)
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
    with suite_bar(len(wanted)) as bar:
        for section in wanted:
            bar.set_description(section.name)
            complete = run.has(*section.artifacts(config), f"reports/{section.name}.html")
            if section.name not in done or not complete:
                with watch_memory() as memory:
                    done[section.name] = round(execute(run, section, bar), 1)
                record["memory"][section.name] = memory["peak"]
                run.save("run.json", record)
                write_index(run, config)
            bar.update()
    return write_index(run, config)


def write_index(run: Run, config: Config) -> Path:
    "Write the page that tells the run; sections that are not done are named as such."
    link_reports(run)
    names = [section.name for section in SECTIONS]
    return run.save("index.html", index_page(run, config, names, load_record(run)))
