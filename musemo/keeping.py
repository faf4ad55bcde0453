"""What a run knows of itself: who works in it, what is done, from which data, and if it is whole."""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash
from filelock import FileLock, Timeout

from musemo.config import Config
from musemo.core import MusemoError, Run
from musemo.data import find_data, list_songs, mark_file
from musemo.records import load_record
from musemo.sections import SECTIONS


# As `write_atomic` and `synthesize` name what they have not finished.
_HALF_WRITTEN = re.compile(r"\.(.+\.\d+-\d+|synthetic\.npy\..+)\.tmp")


@contextmanager
def claim(run: Run) -> Iterator[None]:
    "Let one process at a time work in a run; raises MusemoError for the second."
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        # A program that a killed process was just starting holds its lock for a moment longer.
        lock = FileLock(run.path(".lock"), timeout=2)
        lock.acquire()
    except Timeout as error:
        raise MusemoError(
            f"{run.folder}: another process works in this run; wait for it, or choose another --out"
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise MusemoError(f"cannot write {run.folder}: {reason}; choose another --out") from error
    try:
        # Half-written files of a process that was killed; nobody else can be writing now.
        for left in list(run.folder.rglob(".*.tmp")):
            if _HALF_WRITTEN.fullmatch(left.name):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield
    finally:
        lock.release()


_KIND = "xxh3:"  # so that marks of another kind, of an earlier version, are told from these


def _mark_artifact(path: Path) -> str:
    return _KIND + mark_file(path)


def _differs(former: str, mark: str) -> bool:
    "Say whether content has changed; a mark of another kind does not tell."
    return former.startswith(_KIND) and former != mark


def data_changed(record: dict, mark: str) -> bool:
    "Say whether a run was made from other tables or sound than `mark_data` found now."
    return _differs(record.get("data", mark), mark)


def mark_data(config: Config) -> str:
    "Name the content of all tables and sound files that a run reads, or tries to."
    sources, (*_, files) = find_data(config), list_songs(config)
    named = [*sources.tables, *sources.dynamic.values(), *sources.metadata, *filter(None, files)]
    whole = xxhash.xxh3_128()
    for path in sorted(named):
        content = mark_file(path) if os.access(path, os.R_OK) else "unreadable"
        whole.update(os.fsencode(path.name) + f":{content}\n".encode())
    return _KIND + whole.hexdigest()


def is_timing(name: str) -> bool:
    "Say whether an artifact holds or draws times, which differ whenever it is made."
    return name.endswith("_times.json") or name.startswith("figures/")


def find_broken(run: Run, record: dict, names: Iterable[str]) -> list[str]:
    "Name the artifacts that are there and are not what the run wrote."
    marks = record["artifacts"]
    return [
        x
        for x in names
        if x in marks and run.has(x) and _differs(marks[x], _mark_artifact(run.path(x)))
    ]


def note_artifacts(run: Run, record: dict, names: Iterable[str]) -> bool:  # are they as before?
    "Note the content of a section's artifacts; say whether a former run of it left the same."
    fresh = {name: _mark_artifact(run.path(name)) for name in names}
    former = record["artifacts"]
    same = not any(
        _differs(former.get(name, mark), mark)
        for name, mark in fresh.items()
        if not is_timing(name)
    )
    record["artifacts"] = former | fresh
    return same


def match_artifacts(one: Run, other: Run) -> dict[str, list[str]]:
    "Sort the artifacts of two runs into those with the same content and those without."
    marks = [load_record(run)["artifacts"] for run in (one, other)]
    names = sorted(name for name in marks[0] | marks[1] if not is_timing(name))
    # An earlier version did not mark what notebooks leave besides.
    besides = {name for section in SECTIONS for name in section.left_besides(names)}
    names = [x for x in names if x not in besides or all(x in known for known in marks)]
    same = [name for name in names if marks[0].get(name) == marks[1].get(name)]
    return {"same": same, "differ": [name for name in names if name not in same]}
