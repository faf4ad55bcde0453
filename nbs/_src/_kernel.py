# %% [markdown]
# # musemo: the emotion of music, from its sound
#
# Twelve sections in one notebook: DEAM's songs become log-mel spectrograms, a conditional GAN
# learns to draw more of them, and a Vision Transformer predicts valence and arousal. Every figure
# stands beside a floor and a ceiling. Attach DEAM, choose a GPU, run all; of two GPUs the predictor
# trains on both. Nothing is installed; the ViT's weights come from the hub, or from a checkpoint
# attached as an input. The notebook is built from the package's sources: change those, not this.
#
# The package's examples and tests are left out here; what a section does to the run is all there.

# %% tags=["parameters"]
preset = "kaggle"  # smoke, demo, kaggle or full
data = "/kaggle/input"  # searched for DEAM's annotation files
out = "/kaggle/working/musemo"  # where the run's artifacts go
values = {}  # single fields, e.g. {"gan.epochs": 20}

# %% [markdown]
# A session that nobody watches keeps a log. Progress bars would flood it: there, a bar shows only
# for what takes longer than a minute, once a minute. Bars read this when they are first imported.

# %%
import os

if os.environ.get("KAGGLE_KERNEL_RUN_TYPE") != "Interactive":
    os.environ |= {f"TQDM_{name}": "60" for name in ("DELAY", "MININTERVAL", "MAXINTERVAL")}

# %% tags=["later"]
import resource
import time
from datetime import timedelta

run, clock = Run(Path(out)), [time.monotonic()]
executed = Path("__notebook__.ipynb")  # Kaggle's papermill keeps here what has run so far
run_record = {"sections": {}, "memory": {}}
run_record["units"] = {"sections": "seconds", "memory": "MB, the most until its end"}


def end_section(name: str, coming: str) -> None:
    "Keep what a section took and what it showed; say in the log what comes next."
    clock.append(time.monotonic())
    run_record["sections"][name] = round(clock[-1] - clock[-2], 1)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    run_record["memory"][name] = round(most * 1024 / 1e6)
    run.save("run.json", run_record)
    if executed.exists():  # not where someone sits at the notebook
        run.path("kernel.ipynb").write_bytes(executed.read_bytes())
    passed = timedelta(seconds=round(clock[-1] - clock[0]))
    print(f"{passed} {name} is done, {run_record['sections'][name]:.0f} s; next: {coming}")


# %% tags=["later"]
config = make_config(preset, {"data.path": data, **values})
find_weights(config)  # section 10 needs them: hours from now would be late to say that they lack
