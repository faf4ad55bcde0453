"""One notebook executed by papermill: its bar, its log, its errors in one line."""

import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from musemo.core import MusemoError, Run
from musemo.report import notebook_path, write_report

log = logging.getLogger("musemo")


@contextmanager
def log_to(run: Run) -> Iterator[None]:
    "Append what happens to the run's log, run.log, with the time; show warnings, too."
    run.folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(run.path("run.log"), encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    shown = logging.StreamHandler()  # to stderr
    shown.setLevel(logging.WARNING)
    shown.addFilter(lambda record: record.levelno == logging.WARNING)  # errors end the command
    handler.handleError = lambda record: None  # a full disk: what failed for it says so itself
    for one in (handler, shown):
        log.addHandler(one)
    log.setLevel(logging.INFO)
    try:
        yield
    except BaseException as error:
        log.error("%s: %s", type(error).__name__, error)
        raise
    finally:
        for one in (handler, shown):
            log.removeHandler(one)
        handler.close()


@contextmanager
def suite_bar(total: int) -> Iterator[tuple[tqdm, tqdm]]:
    "Open two lines: the bar of the sections, and below it the one of the section's own work."
    quiet = bool(os.environ.get("MUSEMO_QUIET") or os.environ.get("CI"))
    options = {"disable": quiet, "file": sys.stderr}
    with (
        tqdm(total=total, desc="sections", **options) as bar,
        tqdm(position=1, bar_format="  {desc}", leave=False, **options) as line,
    ):
        yield bar, line


class _Errors:
    "A kernel's stderr: its last progress bar is shown, and what else it says is logged."

    def __init__(self, section: str, line: tqdm):
        self.section, self.line, self.last = section, line, ""

    def write(self, text: str) -> None:
        for part in re.split(r"[\r\n]|\x1b\[A", text):
            if "%|" in part:
                self.show(part.strip())
            elif part.strip():
                log.info("%s: %s", self.section, part.rstrip())

    def show(self, shown: str) -> None:
        "Show a bar; the last state of the bar before it goes to the log."
        if self.last and self.last.partition(":")[0] != shown.partition(":")[0]:
            log.info("%s: %s", self.section, self.last)
        self.last = shown
        self.line.set_description_str(shown)

    def flush(self) -> None:
        "There is nothing to flush; papermill asks for it."

    def close(self) -> None:
        "Log the last bar and clear the line."
        if self.last:
            log.info("%s: %s", self.section, self.last)
        self.line.set_description_str("")


# As torch says it on Windows and elsewhere, and the system.
_NO_MEMORY = re.compile("not enough memory|(can't|Cannot) allocate memory")


def _smaller(section: str) -> str:
    "Name the setting that makes a section need less memory."
    field = {"03": "audio.clip_seconds", "06": "gan.samples", "07": "synthesis.songs"}
    field["05"] = "gan.batch_size or flow.batch_size"
    field["11"] = "small.batch_size or dataset.batch_size"
    lower = field.get(section[:2], "dataset.batch_size")
    return f"lower {lower} with --set and start again, the run goes on here"


def _as_it_is(path: Path) -> str:
    "Keep papermill from filling in what stands in braces in a folder's name."
    return str(path).replace("{", "{{").replace("}", "}}")


def execute(run: Run, name: str, line: tqdm) -> float:
    "Execute a section's notebook on the run and write its report; return the seconds it took."
    begun = time.monotonic()
    report = run.path(f"reports/{name}.ipynb")
    report.parent.mkdir(parents=True, exist_ok=True)
    log.info("%s: begins", name)
    errors = _Errors(name, line)
    try:
        papermill.execute_notebook(
            _as_it_is(notebook_path(name)),
            _as_it_is(report),
            parameters={"run_folder": str(run.folder.resolve())},
            kernel_name="python3",
            progress_bar=False,
            request_save_on_cell_execute=False,  # twice a cell: a tenth of a short run's time
            stderr_file=errors,
            cwd=run.folder,
            extra_arguments=["--log-level=ERROR"],
            iopub_timeout=300,  # seconds for what a cell shows to arrive; 4 are few on a busy machine
            shutdown_kernel="immediate",  # all is on the disk by then; a polite end takes seconds
        )
    except PapermillExecutionError as error:
        if error.ename in ("MusemoError", "WeightsError"):
            raise MusemoError(f"{name}: {error.evalue}") from None
        if error.ename.endswith(("MemoryError", "OutOfMemoryError")) or _NO_MEMORY.search(
            error.evalue
        ):
            raise MusemoError(f"{name}: memory ran out; {_smaller(name)}") from error
        raise
    except DeadKernelError as error:
        raise MusemoError(
            f"{name}: the kernel died, most likely for want of memory; {_smaller(name)}; "
            "musemo doctor looks for other causes"
        ) from error
    finally:
        errors.close()
    write_report(run, name)
    seconds = time.monotonic() - begun
    log.info("%s: done in %.1f s", name, seconds)
    return seconds
