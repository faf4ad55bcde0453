"""Run the twelve sections in order, and go on where a run was cut off."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from musemo.config import Config
from musemo.core import MusemoError, Run, pick_device
from musemo.data import find_data
from musemo.keeping import (
    claim,
    match_artifacts,
    find_broken,
    data_changed,
    mark_data,
    note_artifacts,
)
from musemo.execution import execute, log, log_to, suite_bar
from musemo.gan_quality import choose_embedding
from musemo.index import index_page
from musemo.opening import with_data
from musemo.peak_memory import watch_memory
from musemo.presets import WITHOUT_EFFECT, changed_fields, save_config
from musemo.records import forget, load_config, load_record
from musemo.report import link_reports
from musemo.sections import SECTIONS, Section
from musemo.weights import find_weights


# The first section that a field, or else its part, matters to; others matter from the start.
_MATTERS_FROM = {
    **dict.fromkeys(WITHOUT_EFFECT, 13),
    "generators": 4,
    "gan": 4,
    "residual": 4,
    "flow": 4,
    "synthesis.jitter": 5,  # generators train and are judged with it
    "synthesis": 7,
    "quality": 6,
    "inversion": 8,
    "dataset.window_frames": 7,
    "dataset": 9,
    "augmentation": 9,
    "vit": 9,
    "training.recipe": 9,
    "training.unfreeze": 10,
    "training": 11,
    "small": 10,
    "judgement": 12,
}


def _matters_from(name: str, config: Config) -> int:
    part, ears = name.partition(".")[0], config.quality.embedding
    first = _MATTERS_FROM.get(name, _MATTERS_FROM.get(part, 1))
    heard = part == "inversion" and ears not in ("statistics", "vit")  # an audio model judges sound
    return min(first, _MATTERS_FROM["quality"]) if heard else first


def what_changed(run: Run, config: Config) -> tuple[int, list[str]]:
    "Name the fields that a run was not made with, and the first section that they matter to."
    if not run.has("config.json"):
        return (1, ["config.json: is gone"]) if run.has("run.json") else (len(SECTIONS) + 1, [])
    changed = changed_fields(load_config(run), config)
    names = [text.partition(":")[0] for text in changed]
    return min((_matters_from(x, config) for x in names), default=len(SECTIONS) + 1), changed


def check_before(run: Run, record: dict, number: int, asked: str) -> None:
    "Raise MusemoError where a section that is to be made alone would build on a missing one."
    # The first two leave the configuration alone, which is written before any section begins.
    before, done = SECTIONS[2 : number - 1], record["sections"]
    missing = [s.name for s in before if s.all_stages and s.name not in done]
    if missing:
        raise MusemoError(
            f"{asked}: {run.folder} lacks section {missing[0]}, which was cut off, or whose data "
            f"or artifacts changed; musemo run --until {number - 1} makes all that is not done"
        )


def forget_stale(run: Run, config: Config, record: dict) -> None:
    "Forget the sections that changed data or a damaged artifact call for, and say so."
    mark, data = mark_data(config), SECTIONS[2]
    if data_changed(record, mark):
        log.warning("%s: tables or sound changed; section 3 is made again", config.data.path)
        forget(record, data.name)
        for name in data.artifacts(config):
            run.path(name).unlink(missing_ok=True)
    record["data"] = mark
    for section in SECTIONS:
        besides = section.left_besides(record["artifacts"])
        broken = find_broken(run, record, [*section.artifacts(config), *besides])
        broken += [name for name in besides if not run.has(name)]
        if broken and forget(record, section.name):
            names = ", ".join(broken)
            log.warning(
                "%s: not what this run wrote; section %s is made again", names, section.name
            )
            for name in broken:  # a finished training would be taken at its word
                run.path(name).unlink(missing_ok=True)


@contextmanager
def working_run(
    config: Config,
    out: Path,
    *,
    first: int | None = None,
    only: int | None = None,
    may_change: bool = True,  # settings that the run was not made with
) -> Iterator[tuple[Run, Config, dict]]:  # the run, its configuration, the record of what is done
    "Check what can be checked before anything is written, then work in the run, alone."
    run = Run(Path(out).expanduser().resolve())
    if run.folder.exists() and not run.folder.is_dir():
        raise MusemoError(f"--out {out}: is a file; name a folder")
    if config.data.path:
        find_data(config)
    pick_device(config.device)
    # A run's own folder says which demo music it has, before any is composed.
    planned = with_data(config, run.folder.parent, compose=False)
    needed, changed = what_changed(run, planned)
    names = "; ".join(changed[:3]) + ("; ..." if changed[3:] else "")
    made = f"{run.folder} was made with another configuration ({names})"
    if only and needed < only:
        raise MusemoError(
            f"{made}: --only {only} would mix both; leave --only out, sections from {needed} on "
            "are then made again"
        )
    if needed <= len(SECTIONS) and not may_change:
        raise MusemoError(f"{made}: choose another --out")
    with claim(run), log_to(run):
        if needed < (first or len(SECTIONS) + 1):
            log.warning("changed: %s; sections from %d on are made again", names, needed)
            first = needed
        config, record = with_data(config, run.folder.parent), load_record(run)
        forget_stale(run, config, record)  # first: what is forgotten already is not looked at
        if only:
            check_before(run, record, only, f"--only {only}")
        again = SECTIONS[only - 1 : only] if only else ()
        for section in (*again, *SECTIONS[first - 1 if first else len(SECTIONS) :]):
            forget(record, section.name)
        if changed:
            forget(record, SECTIONS[1].name)  # its page shows every field
        # What is to be made again is forgotten first: a run cut off here must not look complete.
        run.save("run.json", record)
        save_config(run, config)
        note_artifacts(run, record, ["config.json"])
        yield run, config, record


def finish_section(run: Run, record: dict, section: Section, config: Config) -> None:
    "Note what a section left; where that is not what it was, later sections are to be made again."
    there = (p.relative_to(run.folder).as_posix() for p in run.folder.rglob("*"))
    besides, former = section.left_besides(there), section.left_besides(record["artifacts"])
    for name in set(former) - set(besides):
        del record["artifacts"][name]
    if not note_artifacts(run, record, [*section.artifacts(config), *besides]):
        for later in SECTIONS[SECTIONS.index(section) + 1 :]:
            forget(record, later.name)
    run.save("run.json", record)


def is_done(run: Run, config: Config, section: Section, record: dict) -> bool:
    "Say whether all that a section leaves is there; `musemo train` leaves no picture and no page."
    page, figure = run.path(f"reports/{section.name}.html"), f"figures/{section.name}.json"
    whole = page.exists() and page.read_bytes().rstrip().endswith(b"</html>")
    told = whole or figure not in record["artifacts"] and not run.has(figure)
    return section.name in record["sections"] and told and run.has(*section.artifacts(config))


def run_suite(
    config: Config,
    out: Path,  # the run folder
    *,
    first: int | None = None,  # recompute from this section on
    only: int | None = None,  # execute just this one
    until: int = len(SECTIONS),  # stop after this one
) -> Path:  # the index page
    "Execute the sections that are not done yet, in order, and write the index page."
    if only and (first or until < len(SECTIONS)):
        raise MusemoError(f"--only {only} executes one section: leave out --from and --until")
    if first and first > until:
        raise MusemoError(
            f"--from {first} --until {until}: must not end before it begins; leave one of them out"
        )
    wanted = [s for i, s in enumerate(SECTIONS[:until], 1) if only in (None, i)]
    with (
        working_run(config, out, first=first, only=only) as (run, config, record),
        suite_bar(len(wanted)) as (bar, line),
    ):
        done = record["sections"]
        waiting = [s for s in wanted if s.name not in done]
        if any(s in SECTIONS[9:11] for s in waiting):
            find_weights(config)  # what sections 10 and 11 would say is said before hours of work
        if SECTIONS[5] in waiting and config.quality.embedding != "statistics":
            choose_embedding(run, config)  # and what section 6 would
        for section in wanted:
            bar.set_description(section.name)
            if not is_done(run, config, section, record):
                with watch_memory() as memory:
                    done[section.name] = round(execute(run, section.name, line), 1)
                record["memory"][section.name] = memory["peak"]
                finish_section(run, record, section, config)
                write_index(run, config)
            bar.update()
        log.info("%d of %d sections are done", len(done), len(SECTIONS))
        return write_index(run, config)


def train_run(run: Run) -> dict:  # the content of vit_history.json
    "Train a run's predictor without its notebook; each process that was launched calls this."
    config, (stage,) = load_config(run), SECTIONS[10].all_stages
    if os.environ.get("RANK", "0") != "0":
        return stage.make(run, config)
    with claim(run), log_to(run):
        check_before(run, load_record(run), 11, "musemo train")
        begun = time.monotonic()
        history, record = stage.make(run, config), load_record(run)
        name = SECTIONS[10].name
        for old in (*run.folder.glob(f"figures/{name}.*"), *run.folder.glob(f"reports/{name}.*")):
            old.unlink()  # of another training
        record["sections"][name] = round(time.monotonic() - begun, 1)
        finish_section(run, record, SECTIONS[10], config)
        return history


def rerun(run: Run, out: Path) -> tuple[Path, dict[str, list[str]]]:  # index; same, differ
    "Make a run again in a new folder, from its configuration alone, and compare the artifacts."
    if out.exists():
        raise MusemoError(f"--out {out}: is there already; name a new folder")
    done = load_record(run)["sections"]
    until = max((i for i, s in enumerate(SECTIONS, 1) if s.name in done), default=len(SECTIONS))
    index = run_suite(load_config(run), out, until=until)
    return index, match_artifacts(run, Run(index.parent))


def write_index(run: Run, config: Config) -> Path:
    "Write the page that tells the run; sections that are not done are named as such."
    link_reports(run)
    names = [section.name for section in SECTIONS]
    return run.save("index.html", index_page(run, config, names, load_record(run)))
