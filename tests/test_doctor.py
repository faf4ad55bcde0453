"""`musemo doctor`: what is there is found, what is missing has a way out, secrets stay secret."""

import http.server
import json
import os
import subprocess
import sys
import threading
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from transformers import ViTConfig, ViTModel

from musemo import cli, doctor
from musemo.doctor import (
    check_browser,
    check_data,
    check_jupyter,
    check_kaggle,
    check_librosa,
    check_machine,
    check_packages,
    check_sound,
)

NAME = "google/vit-base-patch16-224-in21k"


def test_packages_that_are_missing_or_too_old_are_named(monkeypatch):
    asked = ["numpy>=999", "torch>=2", "no-such-package>=1", 'prdc>=0.2; extra == "dev"']
    asked.append('not-there; extra == "demo"')
    monkeypatch.setattr(metadata, "requires", lambda name: asked)
    main, dev, demo = check_packages()
    assert (main.topic, main.found, main.needed) == ("packages for everything", "1 of 3", True)
    assert main.advice == "pip install 'musemo' brings numpy>=999, no-such-package>=1"
    assert (dev.found, dev.advice, dev.needed) == ("1 of 1", "", False)
    assert demo.advice.startswith("pip install 'musemo[demo]' brings not-there")
    assert not demo.needed


def test_missing_packages_end_the_command_with_code_2(monkeypatch, capsys):
    monkeypatch.setattr(metadata, "requires", lambda name: ["no-such-package>=1"])
    monkeypatch.setattr(doctor, "check_weights", lambda: iter(()))
    monkeypatch.setattr(sys, "argv", ["musemo", "doctor"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert "missing packages for everything" in shown.out
    assert shown.err.startswith("musemo: something is missing that a run needs")


def test_data_is_counted_and_odd_folders_are_explained(deam, tmp_path):
    (found,) = check_data(str(deam.parent))
    assert found.found.endswith("12 rated songs, 12 sound files")
    (tmp_path / "empty").mkdir()
    (odd,) = check_data(str(tmp_path / "empty"))
    assert "holds no static_annotations_averaged_songs" in odd.found
    (absent,) = check_data(str(tmp_path / "absent"))
    (tmp_path / "songs.csv").write_text("file,valence,arousal\na.mp3,5,5\nb.mp3,11,5\n")
    (table,) = check_data(str(tmp_path / "songs.csv"))
    assert "valence = '11' must be a number from 1 to 9" in table.found
    (tmp_path / "songs.csv").write_text("file,valence,arousal\na.mp3,5,5\nb.mp3,2,5\n")
    (table,) = check_data(str(tmp_path / "songs.csv"))
    assert table.found.endswith("songs.csv: 2 rated songs, 0 sound files")
    (tmp_path / "a.wav").touch()
    (tmp_path / "songs.csv").write_text("file,valence,arousal\na.wav,0.5,0.5\nb.mp3,1,0\n")
    (table,) = check_data(str(tmp_path / "songs.csv"), "0-1")
    assert table.advice == f"musemo run --data {tmp_path}/songs.csv --scale 0-1"
    assert absent.found.endswith("no such folder or table") and "fetch DEAM" in absent.advice
    assert odd.needed and absent.needed


def test_a_browser_that_is_missing_is_a_note(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    (browser,) = check_browser()
    assert browser.found == "none" and browser.advice.endswith("apt-get install chromium")
    assert not browser.needed


def test_data_that_a_run_could_not_use_gets_no_command_to_run(tmp_path, monkeypatch):
    (tmp_path / "songs.csv").write_text("file,valence,arousal\na.mp3,5,5\nb.mp3,2,5\n")
    (silent,) = check_data(str(tmp_path / "songs.csv"))
    assert "0 sound files" in silent.found and "musemo run" not in silent.advice
    (tmp_path / "DEAM").mkdir()
    monkeypatch.chdir(tmp_path)
    (broken,) = check_data()
    assert "holds no static_annotations" in broken.found


@pytest.mark.parametrize("name", ["psutil", "soundfile", "torch", "typer"])
def test_a_missing_package_is_one_line(name):
    code = f"import sys; sys.modules[{name!r}] = None; import musemo.__main__ as m; m.main()"
    done = subprocess.run([sys.executable, "-c", code, "doctor"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"musemo: {name} is missing: pip install" in done.stderr


def test_real_songs_need_nothing_of_what_composes_demo_music():
    code = (
        "import sys; sys.modules['midirenderer'] = sys.modules['pretty_midi'] = None; "
        "import musemo.pipeline, musemo.__main__ as m; print('there'); m.main()"
    )
    command = [sys.executable, "-c", code, "demo", "music"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "there\n"
    assert "midirenderer is missing: pip install 'musemo[demo]'" in done.stderr


def test_a_package_that_is_not_installed_is_said(monkeypatch):
    def not_there(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", not_there)
    (found,) = check_packages()
    assert (found.found, found.needed) == ("musemo is not installed", True)


@pytest.mark.parametrize("where", ["variables", "file", "config", "home"])
def test_credentials_are_noticed_and_never_shown(where, monkeypatch, tmp_path):
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KAGGLE_CONFIG_DIR", raising=False)
    (found,) = check_kaggle()
    assert found.found == "none" and f"{tmp_path}/.kaggle/access_token" in found.advice
    folder = tmp_path / {"file": "set", "home": ".kaggle"}.get(where, ".config/kaggle")
    folder.mkdir(parents=True)
    if where == "file":
        monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(folder))
    if where in ("file", "config"):
        (folder / "kaggle.json").write_text('{"username": "me", "key": "a-secret"}')
    elif where == "home":
        (folder / "access_token").write_text("a-secret")
    else:
        monkeypatch.setenv("KAGGLE_USERNAME", "me")
        monkeypatch.setenv("KAGGLE_KEY", "a-secret")
    (found,) = check_kaggle()
    assert found.found == "there" and "a-secret" not in str(found)


def test_what_cannot_be_read_or_opened_is_said(monkeypatch):
    formats = dict.fromkeys(("WAV", "FLAC", "OGG"))
    monkeypatch.setattr(doctor.soundfile, "available_formats", lambda: formats)
    (found,) = check_sound()
    assert found.advice.startswith("MP3 cannot be read")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    (found,) = check_jupyter()
    assert (found.found, found.advice) == (
        "none",
        "only to open the notebooks: pip install jupyterlab",
    )


def look_at_machine(monkeypatch, *, memory, free, gpus=()):
    "Look at a machine with 3 cores, so many bytes of memory and free disk, and these GPUs."
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: SimpleNamespace(total=memory))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    monkeypatch.setattr(doctor, "cpu_count", lambda: 3)
    monkeypatch.setattr(torch.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: gpus[i])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))  # a T4's
    return {found.topic: found for found in check_machine()}


def test_a_machine_that_will_do_gets_no_advice(monkeypatch):
    found = look_at_machine(monkeypatch, memory=16e9, free=5e9, gpus=("Tesla T4", "Tesla T4"))
    assert not any(one.advice or one.needed for one in found.values())
    assert found["Python"].found.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert found["cores and memory"].found == "3 cores, 16 GB"
    assert found["free disk here"].found == "5 GB"
    assert found["device"].found == f"Tesla T4, Tesla T4, float16, torch {torch.__version__}"


def test_a_small_machine_is_told_what_to_do(monkeypatch):
    found = look_at_machine(monkeypatch, memory=3e9, free=2e9)
    assert found["cores and memory"].found == "3 cores, 3 GB"
    assert "lower dataset.batch_size" in found["cores and memory"].advice
    assert found["free disk here"].found == "2 GB" and "--out" in found["free disk here"].advice
    assert found["device"].found == f"cpu, float32, torch {torch.__version__}"
    assert "full and kaggle want a GPU" in found["device"].advice
    assert not any(one.needed for one in found.values())


@pytest.fixture(scope="module")
def hub():
    "A hub on loopback that knows one model, hides those of `private` and fails for those of `ill`."

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answers = {NAME: 200, "private/": 401, "ill/": 503}
            model = self.path.removeprefix("/api/models/")
            body = json.dumps({"id": NAME, "siblings": []}).encode()
            known = [code for name, code in answers.items() if model.startswith(name)]
            self.send_response(known[0] if known else 404)
            self.send_header("Content-Length", str(len(body)))
            if known == [401]:  # as the hub marks what is private, or not there
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def look_for_weights(home, hub, *names):
    "Ask in a fresh process: the hub's client reads its settings when it is imported."
    code = "import sys; from musemo.doctor import *; "
    code += "print(*[next(check_weights(name)) for name in sys.argv[1:]])"
    environment = os.environ | {"HF_HOME": str(home), "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", code, *(names or [NAME])]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return done.stdout


def test_a_name_that_the_hub_does_not_know_is_no_hub_that_does_not_answer(tmp_path, hub):
    said = look_for_weights(tmp_path, hub, "nobody/vit", "private/vit", "ill/vit")
    for name in ("nobody", "private"):
        assert f"{name}/vit: not here, and the hub shows no model of this name" in said
    assert "ill/vit: not here, and the hub refuses it (503)" in said
    assert said.count("or name one that it shows") == 2 and said.count("try again later") == 1
    assert "does not answer" not in said


def test_weights_are_found_in_the_cache_or_on_the_hub_or_not_at_all(tmp_path, hub):
    assert "the hub does not answer" in look_for_weights(tmp_path, "http://127.0.0.1:9")
    assert f"{NAME}: the hub, to be fetched once" in look_for_weights(tmp_path, hub)
    cached = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("0" * 40)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    vit = ViTModel(ViTConfig(**size, intermediate_size=32, image_size=32), add_pooling_layer=False)
    vit.save_pretrained(cached / "snapshots" / ("0" * 40))
    assert f"{NAME}: the hub's cache" in look_for_weights(tmp_path, "http://127.0.0.1:9")


def test_a_compiled_part_that_crashes_is_found_and_can_be_mended(monkeypatch, tmp_path):
    (found,) = check_librosa()
    assert found.found == "works" and not found.advice
    for command, word in (("kill -SEGV $$", "-delete"), ("echo none >&2; exit 1", "reinstall")):
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{command}\n")
        python.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setattr("sys.executable", str(python))
            (found,) = check_librosa()
        assert found.needed and word in found.advice and found.found in ("crashes", "none")
