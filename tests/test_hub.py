"""Weights and models from a hub: one on loopback serves a small real checkpoint."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile

from tests.conftest import ROOT
from tests.test_prediction import finished, folder, model, music  # noqa: F401 - fixtures
from tests.test_vit import tiny_vit

COMMIT = "0" * 40


@pytest.fixture
def serve():
    "Serve a folder's files as the hub serves those of a model; gives the hub's address."
    servers = []

    def start(place, name):
        files = {path.name: path.read_bytes() for path in place.iterdir()}
        listed = [
            {"type": "file", "path": file, "size": len(content), "oid": COMMIT}
            for file, content in files.items()
        ]
        facts = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}

        class Hub(http.server.BaseHTTPRequestHandler):
            def answer(self, whole):
                path = self.path.partition("?")[0]
                file, headers, code = path.rpartition("/")[2], {}, 200
                if path.startswith(f"/api/models/{name}/tree"):
                    content = json.dumps(listed).encode()
                elif path.startswith(f"/api/models/{name}"):
                    content = json.dumps(facts).encode()
                elif path.startswith(f"/{name}/resolve/") and file in files:
                    content = files[file]
                    mark = hashlib.sha256(content).hexdigest()
                    headers = {"ETag": f'"{mark}"', "X-Repo-Commit": COMMIT}
                else:
                    content, headers, code = b"", {"X-Error-Code": "EntryNotFound"}, 404
                self.send_response(code)
                for key, value in (headers | {"Content-Length": str(len(content))}).items():
                    self.send_header(key, value)
                self.end_headers()
                if whole:
                    self.wfile.write(content)

            def do_GET(self):
                self.answer(True)

            def do_HEAD(self):
                self.answer(False)

            def log_message(self, *_):
                "Say nothing."

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(code, hub, home, *arguments):
    "Run code in a fresh process that knows this hub and has an empty cache."
    env = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    env |= {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_weights_from_the_hub(serve, tmp_path):
    place, vit = tmp_path / "vit", tiny_vit()
    vit.save_pretrained(place)
    settings = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.2]}
    (place / "preprocessor_config.json").write_text(json.dumps(settings))
    code = """
import sys
from musemo.presets import make_config
from musemo.vit import build_vit
config = make_config("full", {"vit.weights": "google/tiny", "dataset.image_size": 32})
model = build_vit(config, kaggle=sys.argv[1])
print(model.source, model.mean, model.std, sep="\\n")
print(sum(weight.double().sum().item() for weight in model.backbone.parameters()))
"""
    *told, total = ask(code, serve(place, "google/tiny"), tmp_path / "home", tmp_path / "none")
    assert told == ["hub google/tiny", "(0.4, 0.5, 0.6)", "(0.2, 0.2, 0.2)"]
    own = sum(weight.double().sum().item() for weight in vit.parameters())
    assert float(total) == pytest.approx(own, rel=1e-9)


def test_a_model_from_the_hub_answers_as_the_one_that_was_exported(
    serve,
    folder,  # noqa: F811
    model,  # noqa: F811
    tmp_path,
):
    song = tmp_path / "song.wav"
    soundfile.write(song, music(8, 22050), 22050)
    code = """
import sys
from musemo.prediction import open_model
told = open_model("me/mood", device="cpu").predict(sys.argv[1])
print(told["valence"], told["arousal"])
"""
    (line,) = ask(code, serve(folder, "me/mood"), tmp_path / "home", song)
    own = model.predict(song)
    assert np.allclose(
        [float(x) for x in line.split()], [own["valence"], own["arousal"]], atol=1e-5
    )
