"""Do one way of one stage in a process of its own: prepare it, then measure it.

python -m tests.bench.way MODULE.FUNCTION FOLDER OPTIONS leaves FOLDER/result.npy and prints
seconds, processor seconds and the most memory held (MB), as JSON.
"""

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

from musemo import allocator
from tests.bench.work import Work


def cpu_seconds() -> float:
    "Processor seconds of this process and of those that it has started and seen end."
    return time.process_time() + sum(os.times()[2:4])  # the former is finer


def main() -> None:
    name, folder, options = sys.argv[1:]
    module, _, function = name.partition(".")
    work = Work(Path(folder), **json.loads(options))
    if module == "usual":  # parts of musemo's are used there, too: memory stays as glibc has it
        allocator.reuse_memory = lambda: None
    job = getattr(importlib.import_module(f"tests.bench.{module}"), function)(work)
    begun = time.perf_counter(), cpu_seconds()
    result = job()
    facts = {"seconds": time.perf_counter() - begun[0], "cpu": cpu_seconds() - begun[1]}
    facts["mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    np.save(work.folder / "result.npy", np.asarray(result, np.float64))
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
