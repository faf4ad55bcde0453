"""Nothing is lost: kills, changed settings and data, damaged artifacts, two at once, no room."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from musemo.core import MusemoError, Run
from musemo.data import extract_log_mels
from musemo.jobs import run_jobs
from musemo.keeping import claim, data_changed, find_broken, note_artifacts
from musemo.pipeline import rerun, run_suite, what_changed
from musemo.presets import make_config, read_config, save_config
from musemo.protocol import working_folds
from musemo.records import load_record
from musemo.sections import SECTIONS
from tests.conftest import ROOT, begins, start_run, wait_for

NAMES = [section.name for section in SECTIONS]


def changed_config(config, **values):
    "A configuration with other values (dots as double underscores)."
    tree = config.model_dump(mode="json")
    for name, value in values.items():
        section, field = name.split("__")
        tree[section][field] = value
    return read_config(tree)


@pytest.fixture
def copied(smoke_run, monkeypatch, tmp_path):
    "A copy of the finished run; sections are not executed but noted, and leave what they left."
    out, executed = shutil.copytree(smoke_run, tmp_path / "copy"), []

    def note(run, name, line):
        executed.append(name)
        section = SECTIONS[NAMES.index(name)]
        there = (p.relative_to(smoke_run).as_posix() for p in smoke_run.rglob("*"))
        shutil.copyfile(smoke_run / f"reports/{name}.html", run.path(f"reports/{name}.html"))
        for left in [*section.artifacts(run.config), *section.left_besides(there)]:
            if not run.has(left):
                shutil.copyfile(smoke_run / left, run.path(left))
        return 1.0

    class Noted(Run):
        config = make_config("smoke")

    monkeypatch.setattr("musemo.pipeline.Run", Noted)
    monkeypatch.setattr("musemo.pipeline.execute", note)
    return out, executed


def test_a_run_killed_in_each_section_is_like_one_that_was_not(smoke_run):
    "test_one_configuration_gives_the_same_bytes compares what it left with stages called directly."
    log = (smoke_run / "run.log").read_text()
    for name in NAMES:
        assert log.count(f"{name}: begins") == 2
        assert log.count(f"{name}: done in") == 1


def test_a_finished_run_is_not_touched_again(copied, small_config):
    out, executed = copied
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.npy")}
    run_suite(small_config, out)
    assert executed == [] and before == {p: p.stat().st_mtime_ns for p in out.rglob("*.npy")}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
@pytest.mark.parametrize(
    "name",
    [
        *("gan.safetensors", "logmel.npy", "metrics.json", "explanation.json"),
        *("figures/05_gan_training.json", "figures/09_dataset.png", "audio/sad_calm*.wav"),
    ],
)
def test_a_damaged_artifact_is_made_again_with_a_warning(
    name, damage, copied, small_config, capsys
):
    (out, executed), (path,) = copied, copied[0].glob(name)
    content, name = bytearray(path.read_bytes()), path.relative_to(copied[0]).as_posix()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[-9] ^= 1
        path.write_bytes(content)
    run_suite(small_config, out)
    section = next(
        s.name for s in SECTIONS if name in [*s.artifacts(small_config), *s.left_besides([name])]
    )
    assert executed == [section]
    if damage != "missing":
        said = f"{name}: not what this run wrote; section {section} is made again"
        assert said in capsys.readouterr().err and said in (out / "run.log").read_text()


def test_half_a_page_is_made_again(copied, small_config):
    (out, executed), path = copied, copied[0] / "reports/08_audio.html"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    run_suite(small_config, out)
    assert executed == [NAMES[7]]


def test_a_damaged_artifact_is_not_taken_at_its_word_by_from(copied, small_config):
    (out, executed), path = copied, copied[0] / "gan.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    run_suite(small_config, out, first=5)
    assert executed == NAMES[4:] and path.read_bytes() == whole


def test_sections_after_one_that_left_something_else_are_made_again(
    copied, small_config, monkeypatch
):
    out, executed = copied

    def leave_other(run, name, line):
        executed.append(name)
        left = run.path("vit_history.json")
        left.write_text(left.read_text() + " ")
        return 1.0

    with monkeypatch.context() as patched:
        patched.setattr("musemo.pipeline.execute", leave_other)
        run_suite(small_config, out, only=11)
    assert executed == [NAMES[10]] and list(load_record(Run(out))["sections"]) == NAMES[:11]
    run_suite(small_config, out)
    assert executed == NAMES[10:]


def test_other_settings_say_what_changed_and_make_that_again(copied, small_config, capsys):
    out, executed = copied
    run_suite(changed_config(small_config, training__epochs=4), out)
    assert executed == [NAMES[1], *NAMES[10:]]  # section 2 shows the configuration
    assert "changed: training.epochs: 3 -> 4; sections from 11 on" in capsys.readouterr().err
    executed.clear()
    run_suite(changed_config(small_config, training__epochs=4, gan__epochs=3), out, first=12)
    assert executed == [NAMES[1], *NAMES[3:]]  # asked for was 12, and 4 is what needs it
    executed.clear()
    run_suite(changed_config(small_config, training__epochs=4, gan__epochs=3), out)
    assert executed == []


def test_one_section_with_other_settings_would_mix_two_runs(copied, small_config):
    out, executed = copied
    changed = changed_config(small_config, gan__epochs=3)
    with pytest.raises(MusemoError, match="gan.epochs: 2 -> 3.*--only 12 would mix both"):
        run_suite(changed, out, only=12)
    assert executed == [] and Run(out).load("config.json")["gan"]["epochs"] == 2


def change_a_song(copied, small_config, tmp_path):
    "Put noise in place of a song under a finished run; gives the run's configuration."
    out, executed = copied
    music = shutil.copytree(small_config.data.path, tmp_path / "music")
    config = changed_config(small_config, data__path=str(music))
    run_suite(config, out)
    executed.clear()
    path = next(music.rglob("3.mp3"))
    soundfile.write(path, np.random.default_rng(0).uniform(-0.3, 0.3, 70000), 22050)
    return config


def test_one_section_is_not_built_on_songs_that_are_gone(copied, small_config, tmp_path):
    "Else a generator of before would go on with songs that may be test songs now."
    (out, executed), config = copied, change_a_song(copied, small_config, tmp_path)
    for _ in range(2):
        with pytest.raises(MusemoError, match="--only 12: .* lacks section 03_data"):
            run_suite(config, out, only=12)
    assert executed == []


def test_one_section_may_be_executed_twice_with_other_settings(copied, small_config):
    out, executed = copied
    for share in (0.7, 0.8):
        run_suite(changed_config(small_config, judgement__coverage=share), out, only=12)
    assert executed == [NAMES[11]] * 2


def test_a_run_that_lost_its_configuration_is_made_again(copied, small_config, capsys):
    out, executed = copied
    (out / "config.json").unlink()
    with pytest.raises(MusemoError, match="config.json: is gone"):
        run_suite(small_config, out, only=12)
    run_suite(small_config, out)
    assert executed == NAMES and "changed: config.json: is gone" in capsys.readouterr().err


def test_folds_with_other_settings_leave_a_run_as_it_is(copied, small_config):
    out, _ = copied
    changed = changed_config(small_config, gan__epochs=3)
    wanted = "gan.epochs: 2 -> 3.: choose another --out"
    with pytest.raises(MusemoError, match=wanted), working_folds(changed, out):
        pass
    assert Run(out).load("config.json")["gan"]["epochs"] == 2
    with working_folds(small_config, out) as (run, config):
        assert config == small_config and run.folder == out
    assert list(load_record(Run(out))["sections"]) == NAMES


def test_other_sound_or_labels_make_section_3_again(small_config, smoke_run, copied, tmp_path):
    (out, executed), config = copied, change_a_song(copied, small_config, tmp_path)
    run_suite(config, out)
    assert executed == ["03_data"]  # which left the same here: it was copied
    assert "tables or sound changed; section 3 is made again" in (out / "run.log").read_text()


@pytest.mark.parametrize(
    ("field", "value", "first"),
    [
        ("synthesis__generator", "gan", 7),
        ("synthesis__songs", 9, 7),
        ("synthesis__plane_side", 3, 7),
        ("synthesis__bandwidth", 0.5, 7),
        ("synthesis__jitter", 0.2, 5),  # generators train with it
        ("training__epochs", 4, 11),
        ("audio__f_min", 30.0, 1),
    ],
)
def test_a_field_matters_from_its_section_on(field, value, first, tmp_path):
    run, config = Run(tmp_path), make_config("smoke")
    save_config(run, config)
    needed, changed = what_changed(run, changed_config(config, **{field: value}))
    assert needed == first and changed[0].startswith(field.replace("__", "."))


def test_what_is_made_again_is_forgotten_first(copied, small_config, monkeypatch):
    out, _ = copied
    monkeypatch.setattr("musemo.pipeline.execute", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_suite(small_config, out, first=6)
    assert list(load_record(Run(out))["sections"]) == NAMES[:5]
    assert "ZeroDivisionError" in (out / "run.log").read_text()


def test_the_second_of_two_runs_in_one_folder_says_so(small_config, tmp_path):
    first = start_run(small_config, tmp_path / "run", "--until", "3")
    wait_for(lambda: begins(tmp_path / "run", "01_core"), first)
    second = start_run(small_config, tmp_path / "run", "--until", "3")
    said = second.communicate()[1].decode()
    assert second.returncode == 2
    assert "another process works in this run; wait for it, or choose another --out" in said
    first.communicate()
    assert first.returncode == 0


def test_interrupting_leaves_no_process_behind(small_config, tmp_path):
    process = start_run(small_config, tmp_path / "run", "--until", "5")
    wait_for(lambda: begins(tmp_path / "run", "03_data"), process)
    parent = psutil.Process(process.pid)
    wait_for(lambda: parent.children(recursive=True), process)  # the section's kernel
    children = parent.children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=180)
    assert process.returncode != 0
    assert psutil.wait_procs(children, timeout=60)[1] == []


def test_a_write_that_is_killed_leaves_the_old_file_and_its_rest_is_swept(tmp_path):
    code = """
import sys, numpy as np
from pathlib import Path
from musemo.core import write_atomic
write_atomic(Path(sys.argv[1]), np.ones(3))
print("old", flush=True)
write_atomic(Path(sys.argv[1]), np.ones(400_000_000, np.uint8))
"""
    path = tmp_path / "logmel.npy"
    process = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout.readline() == b"old\n"
    wait_for(lambda: any(tmp_path.glob(".*.tmp")), process)
    process.kill()
    process.wait()
    assert np.load(path).tolist() == [1, 1, 1]
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    (tmp_path / ".synthetic.npy.x1.tmp").mkdir()  # where songs are drawn before they are saved
    (tmp_path / ".synthetic.npy.x1.tmp/x.npy").touch()
    (tmp_path / ".notes.txt.tmp").touch()  # somebody else's
    with claim(Run(tmp_path)):
        assert [path.name for path in tmp_path.glob(".*.tmp")] == [".notes.txt.tmp"]


def test_a_full_disk_stops_a_run_with_one_line_and_it_goes_on_later(small_config, tmp_path):
    "The system refuses files of more than 200 kB, as a full disk or a quota would."
    limit = (200_000, resource.RLIM_INFINITY)
    command = [sys.executable, "-m", "musemo", "run", "--preset", "smoke", "--until", "3"]
    command += ["--data", small_config.data.path, "--out", tmp_path / "run"]
    command += ["--set", f"data.cache={small_config.data.cache}"]
    stopped = subprocess.run(
        [*command, "--set", "audio.clip_seconds=3"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert stopped.returncode == 2
    assert "cannot write" in stopped.stderr and "free the disk" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    run_suite(small_config, tmp_path / "run", until=3)
    done = json.loads((tmp_path / "run/run.json").read_text())["sections"]
    assert list(done) == NAMES[:3]


def die(i):
    os._exit(9) if i == 1 else None


def test_a_worker_that_dies_is_one_clear_error():
    from joblib import delayed

    with pytest.raises(MusemoError, match="a process died while decoding.*lower data.workers"):
        run_jobs((delayed(die)(i) for i in range(4)), workers=2, desc="decoding", total=4)
    assert run_jobs((delayed(abs)(-i) for i in range(3)), workers=2, desc="x", total=3) == [0, 1, 2]


def test_an_error_of_a_job_is_not_taken_for_one_of_its_backend():
    from joblib import delayed

    for backend in ("threading", "loky"):
        jobs = [delayed(open)("/no/such/file")]
        with pytest.raises(FileNotFoundError):
            run_jobs(jobs, workers=1, desc="decoding", total=1, backend=backend)


def test_marks_of_an_earlier_version_say_nothing(tmp_path):
    run = Run(tmp_path)
    run.save("x.json", {"units": {}})
    record = {"artifacts": {"x.json": "0123456789abcdef"}, "data": "0123456789abcdef"}
    assert find_broken(run, record, ["x.json"]) == []
    assert not data_changed(record, "xxh3:1") and note_artifacts(run, record, ["x.json"])
    assert record["artifacts"]["x.json"].startswith("xxh3:")
    run.save("x.json", {"units": {"y": "s"}})
    assert find_broken(run, record, ["x.json"]) == ["x.json"]
    assert not note_artifacts(run, record, ["x.json"]) and data_changed(
        {"data": "xxh3:2"}, "xxh3:1"
    )


@pytest.mark.parametrize("record", [{"sections": None}, {"memory": 3}, {"sections": []}], ids=str)
def test_a_record_that_no_run_writes_is_one_clear_error(record, tmp_path):
    run = Run(tmp_path)
    run.save("run.json", record | {"units": {}})
    with pytest.raises(MusemoError, match="run.json: is not what a run writes"):
        load_record(run)


def test_one_worker_and_two_leave_the_same_spectrograms(small_config, tmp_path):
    paths, left = sorted(Path(small_config.data.path).rglob("*.mp3")), []
    for workers in (1, 2):
        cache = tmp_path / str(workers)
        config = changed_config(small_config, data__workers=workers, data__cache=str(cache))
        found = extract_log_mels(paths, config)
        left.append([Path(where).read_bytes() for status, where in found if status == "ok"])
    assert len(left[0]) == len(paths) and left[0] == left[1]


def test_a_cluster_of_two_leaves_the_same_spectrograms(small_config, tmp_path):
    code = """
import os, sys
from pathlib import Path
from distributed import LocalCluster
from musemo.data import extract_log_mels
from musemo.presets import make_config
if __name__ == "__main__":
    values = {"audio.clip_seconds": 3.0, "data.backend": "dask", "data.cache": sys.argv[1]}
    paths = sorted(Path(sys.argv[2]).rglob("*.mp3"))
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        os.environ["DASK_SCHEDULER_ADDRESS"] = cluster.scheduler_address
        import dask
        dask.config.refresh()
        for status, where in extract_log_mels(paths, make_config("smoke", values)):
            print(Path(where).name)
"""
    script, music = tmp_path / "on_a_cluster.py", small_config.data.path
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, script, tmp_path / "dask", music], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    paths = sorted(Path(music).rglob("*.mp3"))
    found = extract_log_mels(
        paths, changed_config(small_config, data__workers=1, data__cache=str(tmp_path / "here"))
    )
    assert [Path(where).name for _, where in found] == done.stdout.split()
    for _, where in found:
        far = tmp_path / "dask" / Path(where).relative_to(tmp_path / "here")
        assert far.read_bytes() == Path(where).read_bytes()


@pytest.mark.parametrize("backend", ["loky", "dask", "ray"])
def test_a_run_decodes_in_processes_of_its_own(backend, small_config, tmp_path):
    "In a notebook, where what a job needs is defined by cells and not by a package."
    if backend == "ray":
        pytest.importorskip("ray", reason="ray has no wheel for this Python")

    def asking_for(name):
        values = {"data__backend": name, "data__workers": 2, "data__cache": str(tmp_path / name)}
        return changed_config(small_config, **values)

    run, in_threads = Run(tmp_path / "run"), Run(tmp_path / "in threads")
    run_suite(asking_for(backend), run.folder, until=3)
    SECTIONS[2].all_stages[0].make(in_threads, asking_for("threading"))
    left = [one.path("logmel.npy").read_bytes() for one in (run, in_threads)]
    assert left[0] == left[1]


def test_a_cluster_that_is_not_there_is_one_clear_error(monkeypatch):
    from joblib import delayed

    monkeypatch.setitem(sys.modules, "ray.util.joblib", None)
    jobs = (delayed(abs)(i) for i in range(2))
    with pytest.raises(MusemoError, match="'ray': is not installed; pip install ray"):
        run_jobs(jobs, workers=-1, desc="decoding", total=2, backend="ray")


def test_a_run_made_again_has_the_same_artifacts(small_config, tmp_path):
    one = Run(tmp_path / "one")
    run_suite(small_config, one.folder, until=3)
    index, found = rerun(one, tmp_path / "two")
    assert index == tmp_path / "two/index.html" and found["differ"] == []
    assert {"songs.csv", "logmel.npy", "environment.json"} <= set(found["same"])
    with pytest.raises(MusemoError, match="two: is there already; name a new folder"):
        rerun(one, tmp_path / "two")
