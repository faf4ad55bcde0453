"""What a run's folder says of itself: its configuration, and what is done in it."""

from musemo.config import Config
from musemo.core import MusemoError, Run
from musemo.presets import read_config


def load_config(
    run: Run,
    *,
    way_out: str = "choose another --out",  # where another version wrote it
) -> Config:
    "Read a run's configuration; raises MusemoError where it is none, or another version's."
    if not run.has("config.json"):
        raise MusemoError(
            f"{run.folder}: is no run (no config.json); name a folder of `musemo run`"
        )
    try:
        return read_config(run.load("config.json"))
    except MusemoError:
        raise
    except ValueError as error:
        raise MusemoError(
            f"{run.path('config.json')} cannot be read by this version ({error}): {way_out}"
        ) from error


_UNITS = {
    "sections": "seconds",
    "memory": "MB of its processes, at most",
    "artifacts": "xxh3_128 of what each section left",
    "data": "xxh3_128 of tables and sound files",
}


def load_record(run: Run) -> dict:
    "Read which sections are done, how long they took, how much memory, and what they left."
    record = run.load("run.json") if run.has("run.json") else {}
    parts = [name for name in _UNITS if name != "data"]
    if not isinstance(record, dict) or any(not isinstance(record.get(x, {}), dict) for x in parts):
        raise MusemoError(f"{run.path('run.json')}: is not what a run writes; choose another --out")
    return {name: {} for name in parts} | record | {"units": _UNITS}


def forget(record: dict, section: str) -> bool:  # was it done?
    "Take a section out of what is done."
    record["memory"].pop(section, None)
    return record["sections"].pop(section, None) is not None
