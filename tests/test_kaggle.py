"""The kernel, and its way to Kaggle and back: Kaggle's own client against a server of ours."""

import ast
import base64
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from musemo import cli
from musemo.cli_kaggle import TITLE
from musemo.config import EMOTIONS
from musemo.core import Run
from musemo.data import find_data, list_songs
from musemo.gan import build_gan
from musemo.presets import make_config
from musemo.sections import SECTIONS
from musemo.vit import build_vit
from tests.conftest import ROOT, write_deam

ARTIFACTS = [name for section in SECTIONS for name in section.artifacts(make_config("smoke"))]
FACTS = json.loads((ROOT / "kaggle/kernel-metadata.json").read_text())
SECRET, REFRESH = "0123456789abcdef-a-secret", "fedcba9876543210-another-secret"
BASIC = base64.b64encode(f"me:{SECRET}".encode()).decode()
SECRETS = (SECRET, REFRESH, BASIC)
SERVICE = "/v1/kernels.KernelsApiService/"


class Kaggle:
    "What the stub answers, by the end of the path; what arrived."

    def __init__(self):
        self.arrived, self.headers, self.url = [], [], ""
        self.answers = {
            "SaveKernel": {"versionNumber": 3, "url": "https://www.kaggle.com/code/me/it"},
            "GetKernelSessionStatus": {"status": "COMPLETE"},
            "IntrospectToken": {"active": True, "username": "me"},
        }
        self.files = {}

    def asked(self, name: str) -> list[dict]:
        return [body for path, body in self.arrived if path.endswith(name)]

    def leave(self, files: dict[str, bytes], log: str, *, page: int = 2) -> None:
        "Offer files in pages, as a finished session does."
        self.files = {name.replace("/", "-"): content for name, content in files.items()}
        rows = [
            {"fileName": name, "url": f"{self.url}/files/{name.replace('/', '-')}"}
            for name in files
        ]
        pages = [rows[i : i + page] for i in range(0, len(rows), page)] or [[]]

        def answer(body: dict) -> dict:
            number = int(body.get("pageToken") or 0)
            following = str(number + 1) if number + 1 < len(pages) else ""
            return {"files": pages[number], "log": log, "nextPageToken": following}

        self.answers["ListKernelSessionOutput"] = answer


@contextmanager
def serve(kaggle: Kaggle):
    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, content: bytes, length: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(length or len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            kaggle.arrived.append((self.path, body))
            kaggle.headers.append(self.headers)
            answer = kaggle.answers[self.path.rsplit("/", 1)[-1]]
            answer = answer(body) if callable(answer) else answer
            if answer == "hang up":
                self.close_connection = True
                return
            self.answer(answer.get("code", 200), json.dumps(answer).encode())

        def do_GET(self):
            content = kaggle.files[self.path.removeprefix("/files/")]
            if isinstance(content, int):
                self.answer(content, b"no")
            else:
                self.answer(200, content.removesuffix(b"<cut>"), len(content))

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kaggle.url = f"http://127.0.0.1:{server.server_port}"
    yield kaggle
    server.shutdown()
    server.server_close()


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    "Kaggle's client, fresh, in an empty home with a key, talking to a server on this machine."
    for name in [name for name in os.environ if name.startswith(("KAGGLE_", "XDG_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    monkeypatch.setenv("KAGGLE_KEY", SECRET)
    monkeypatch.chdir(tmp_path)
    # It looks for its files when it is imported.
    for name in [name for name in sys.modules if name.partition(".")[0] == "kaggle"]:
        monkeypatch.delitem(sys.modules, name)
    places = pytest.importorskip("kagglesdk.kaggle_env")
    with serve(Kaggle()) as server:
        monkeypatch.setitem(places._env_to_endpoint, places.KaggleEnv.PROD, server.url)
        yield server
    # Credentials travel in headers; that a token is valid is asked with the token.
    arrived = [body for path, body in server.arrived if not path.endswith("IntrospectToken")]
    assert not [secret for secret in SECRETS if secret in json.dumps(arrived)]


def files_that_tell(folder: Path) -> list[Path]:
    "List the files that hold a secret."
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(x.encode() in path.read_bytes() for x in SECRETS)]


CREDENTIALS = ["key", "token", "token file", "access_token", "kaggle.json", "credentials.json"]


@pytest.fixture(params=CREDENTIALS)
def credentials(request, kaggle, tmp_path, monkeypatch):
    "Each kind of credentials that Kaggle's client takes, alone."
    kind, home = request.param, tmp_path / "home/.kaggle"
    if kind == "key":
        return kind
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    home.mkdir()
    if kind == "token":
        monkeypatch.setenv("KAGGLE_API_TOKEN", SECRET)
    elif kind == "kaggle.json":
        (home / kind).write_text(json.dumps({"username": "me", "key": SECRET}))
    elif kind == "credentials.json":  # of `kaggle auth login`
        tokens = {"refresh_token": REFRESH, "access_token": SECRET}
        until = {"access_token_expiration": "2999-01-01T00:00:00+00:00", "username": "me"}
        (home / kind).write_text(json.dumps(tokens | until))
    else:
        (home / "access_token").write_text(SECRET)
        if kind == "token file":
            monkeypatch.setenv("KAGGLE_API_TOKEN", str(home / "access_token"))
    return kind


@pytest.fixture
def musemo(monkeypatch, capsys, tmp_path):
    "Run the command line here: its exit code, and what it said."

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["musemo", *map(str, arguments)])
        before = files_that_tell(tmp_path)
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        assert not [secret for secret in SECRETS if secret in said.out + said.err]
        assert files_that_tell(tmp_path) == before
        return code, said.out, said.err

    return run


def refused(result: tuple) -> str:
    "The one line of a command that failed."
    code, out, err = result
    assert code == 2 and out == "" and err.startswith("musemo: ") and err.count("\n") == 1, result
    return err


# The push


def test_a_push_brings_the_kernel_and_valid_metadata(kaggle, musemo):
    options = ["--preset", "demo", "--set", "gan.epochs=3", "--set", 'generators=["flow"]']
    code, out, err = musemo("kaggle", "push", "--user", "me", *options)
    assert (code, err) == (0, "")
    assert "pushed: https://www.kaggle.com/code/me/it" in out
    assert "musemo kaggle status --user me --wait" in out
    (request,) = kaggle.asked(SERVICE + "SaveKernel")
    assert request["slug"] == "me/musemo-emotion-of-music" and request["newTitle"] == TITLE
    assert (request["kernelType"], request["language"]) == ("notebook", "python")
    assert request["isPrivate"] and request["enableGpu"] and request["enableInternet"]
    assert request["machineShape"] == "NvidiaTeslaT4"
    assert request["datasetDataSources"] == FACTS["dataset_sources"]
    notebook = nbformat.reads(request["text"], as_version=4)
    nbformat.validate(notebook)
    cells = [cell.source for cell in notebook.cells]
    pushed = next(i for i, x in enumerate(cells) if x.startswith("# chosen for this push"))
    chosen = {}
    exec(cells[pushed - 1] + "\n" + cells[pushed], chosen)
    values = {"data.path": chosen["data"], **chosen["values"]}
    wanted = {"data.path": "/kaggle/input", "gan.epochs": 3, "generators": ["flow"]}
    assert make_config(chosen["preset"], values) == make_config("demo", wanted)
    built = nbformat.read(ROOT / "kaggle/musemo.ipynb", as_version=4)
    assert cells[:pushed] + cells[pushed + 1 :] == [cell.source for cell in built.cells]


def test_what_is_attached_and_asked_for(kaggle, musemo):
    options = ["--public", "--no-gpu", "--no-internet", "--title", "My Music, again"]
    options += ["--data", "you/deam", "--weights", "you/a-vit/transformers/base/2"]
    code, out, _ = musemo("kaggle", "push", "--user", "me", *options, "--weights", "you/vit-files")
    assert code == 0 and "--title 'My Music, again'" in out
    (request,) = kaggle.asked("SaveKernel")
    assert request["slug"] == "me/my-music-again"
    assert [request[k] for k in ("isPrivate", "enableGpu", "enableInternet")] == [False] * 3
    assert not request.get("machineShape")
    assert request["datasetDataSources"] == ["you/deam", "you/vit-files"]
    assert request["modelDataSources"] == ["you/a-vit/transformers/base/2"]


def test_a_folder_gets_what_would_be_pushed(kaggle, musemo, tmp_path):
    code, out, _ = musemo("kaggle", "push", "--user", "me", "--folder", tmp_path / "kernel")
    assert code == 0 and str(tmp_path / "kernel") in out
    facts = json.loads((tmp_path / "kernel/kernel-metadata.json").read_text())
    assert facts == FACTS | {"id": "me/musemo-emotion-of-music"}
    assert (tmp_path / "kernel/musemo.ipynb").exists() and kaggle.arrived == []
    result = musemo("kaggle", "push", "--user", "me", "--folder", tmp_path / "kernel")
    assert "is there already" in refused(result)


def test_all_of_the_client_s_credentials_serve(credentials, kaggle, musemo):
    code, _, err = musemo("kaggle", "push", "--user", "me", "--preset", "smoke")
    assert (code, err) == (0, "")
    way = "Basic" if credentials in ("key", "kaggle.json") else "Bearer"
    assert kaggle.headers[-1]["Authorization"].startswith(way)


def test_credentials_that_kaggle_echoes_are_not_shown(credentials, kaggle, musemo):
    also = {"key": BASIC, "kaggle.json": BASIC, "credentials.json": REFRESH}
    echo = f"{also.get(credentials, SECRET)} {SECRET}"
    push = ("push", "--user", "me", "--preset", "smoke")
    kaggle.answers["SaveKernel"] = {"code": 401, "message": f"Unauthenticated: {SECRET}"}
    assert "Unauthenticated: ***; run `kaggle auth login`" in refused(musemo("kaggle", *push))
    kaggle.answers["SaveKernel"] = {"error": f"Bad: {echo}"}
    assert "refused the kernel: Bad: ***" in refused(musemo("kaggle", *push))
    kaggle.answers["GetKernelSessionStatus"] = {"status": "ERROR", "failureMessage": echo}
    assert "error (***" in refused(musemo("kaggle", "status", "--user", "me"))


@pytest.mark.parametrize("command", ["push", "status", "output"])
def test_missing_credentials_are_one_clear_line(command, kaggle, musemo, monkeypatch):
    monkeypatch.delenv("KAGGLE_KEY")
    line = refused(musemo("kaggle", command, "--user", "me"))
    assert "no credentials" in line and "kaggle auth login" in line
    assert kaggle.arrived == []


def test_a_token_that_is_not_accepted_is_one_clear_line(kaggle, musemo, monkeypatch):
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.setenv("KAGGLE_API_TOKEN", SECRET)
    kaggle.answers["IntrospectToken"] = {"active": False}
    assert "no credentials that it accepts" in refused(musemo("kaggle", "push", "--user", "me"))
    kaggle.answers["IntrospectToken"] = {"code": 500, "message": f"cannot look up {SECRET}"}
    assert "cannot look up ***;" in refused(musemo("kaggle", "push", "--user", "me"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--user", "me@example.org"], "--user 'me@example.org': must be letters, digits"),
        (["--user", ""], "--user ''"),
        (["--user", "me/kernel"], "--user 'me/kernel'"),
        (["--user", "me", "--title", "abc"], "--title 'abc'"),
        (["--user", "me", "--title", "a !!!!!"], "makes the address 'a'"),
        (["--user", "me", "--data", "deam"], "--data 'deam': must be OWNER/NAME"),
        (["--user", "me", "--weights", "me/vit/base"], "--weights 'me/vit/base'"),
        (["--user", "me", "--weights", "a/b/c/d/last"], "--weights 'a/b/c/d/last'"),
        (["--user", "me", "--no-internet"], "attach some with --weights"),
        (["--user", "me", "--set", "gan.epoch=3"], "gan.epoch"),
        (["--user", "me", "--set", f"data.path={ROOT}"], "name that by --data"),
        (["--user", "me", "--set", "data.path=nowhere"], "is a path of this machine"),
        (["--user", "me", "--set", "data.cache=here"], "a kernel's home is its own"),
        (["--user", "me", "--set", f"vit.weights={ROOT}"], "name that by --weights"),
        (["--user", "me", "--set", f"quality.embedding={ROOT}"], "below /kaggle/input"),
        (
            [*("--user", "me", "--no-internet", "--set", "vit.weights=scratch")]
            + ["--set", "quality.embedding=laion/clap"],
            "quality.embedding = 'laion/clap' cannot come from the hub",
        ),
    ],
)
def test_bad_names_are_one_clear_line(options, words, kaggle, musemo):
    assert words in refused(musemo("kaggle", "push", *options))
    assert kaggle.arrived == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"error": "Maximum weekly GPU quota of 30.00 hours reached."}, "weekly GPU quota"),
        ({"code": 403, "message": "Permission 'kernels.update' was denied"}, "kernels.update"),
        ({"code": 429, "message": "Too many requests"}, "Too many requests"),
        ({"code": 500, "message": "Internal error\nat line 3"}, "Internal error"),
        (
            {"versionNumber": 3, "invalidDatasetSources": ["a/b"], "url": "https://k/x"},
            "cannot attach a/b: stop it on https://k/x",
        ),
    ],
)
def test_a_rejected_push_is_one_clear_line(answer, words, kaggle, musemo):
    kaggle.answers["SaveKernel"] = answer
    assert words in refused(musemo("kaggle", "push", "--user", "me"))


def test_a_server_out_of_reach_is_one_clear_line(kaggle, musemo, monkeypatch):
    places = sys.modules["kagglesdk.kaggle_env"]
    monkeypatch.setitem(places._env_to_endpoint, places.KaggleEnv.PROD, "http://127.0.0.1:9")
    assert "cannot be reached" in refused(musemo("kaggle", "push", "--user", "me"))


def test_the_client_s_loud_mode_shows_no_credentials(kaggle, musemo, monkeypatch):
    monkeypatch.setenv("VERBOSE", "1")
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    code, out, _ = musemo("kaggle", "push", "--user", "me")
    assert code == 0 and "Authorization" not in out


@pytest.mark.parametrize("module", ["slugify", "kaggle"])
def test_a_missing_client_is_one_clear_line(module, kaggle, musemo, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'musemo[kaggle]'" in refused(musemo("kaggle", "push", "--user", "me"))


# Following it


def test_status_says_the_state_once(kaggle, musemo):
    kaggle.answers["GetKernelSessionStatus"] = {"status": "RUNNING"}
    code, out, _ = musemo("kaggle", "status", "--user", "me")
    assert (code, out) == (0, "me/musemo-emotion-of-music: running\n")
    assert len(kaggle.asked("GetKernelSessionStatus")) == 1


def test_waiting_ends_with_the_kernel(kaggle, musemo):
    "It shows each state once, and bears a connection that is lost."
    states = iter(["QUEUED", "RUNNING", "", "RUNNING", "COMPLETE"])
    kaggle.answers["GetKernelSessionStatus"] = lambda body: (
        {"status": state} if (state := next(states)) else "hang up"
    )
    code, out, _ = musemo("kaggle", "status", "--user", "me", "--wait", "--every", "0.01")
    assert code == 0 and [x.split(": ")[1] for x in out.splitlines()] == [
        *("queued", "running", "complete")
    ]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"status": "ERROR", "failureMessage": "ran out\nof memory"}, "error (ran out of memory)"),
        ({"status": "CANCEL_ACKNOWLEDGED"}, "cancel acknowledged (no reason given)"),
        ({"code": 403, "message": "Permission 'kernels.get' was denied"}, "kernels.get"),
        ({"code": 404, "message": "Not found"}, "Kaggle refused: Not found"),
    ],
)
def test_a_kernel_that_failed_is_one_clear_line(answer, words, kaggle, musemo):
    kaggle.answers["GetKernelSessionStatus"] = answer
    line = refused(musemo("kaggle", "status", "--user", "me"))
    assert words in line and "benchmark" not in line


# What it left


def kernel_s_output(run: Run, sections: int = 12) -> dict[str, bytes]:
    "What a kernel would leave, of a run that was made here."
    record = json.loads(run.path("run.json").read_text())
    record["sections"] = dict(list(record["sections"].items())[:sections])
    made_here = (".html", ".ipynb")  # but for what the kernel itself kept
    paths = [x for x in run.folder.rglob("*") if x.suffix not in made_here or x.stem == "kernel"]
    names = {path: str(path.relative_to(run.folder)) for path in paths if path.is_file()}
    files = {f"musemo/{name}": path.read_bytes() for path, name in names.items()}
    files["musemo/run.json"] = json.dumps(record).encode()
    return files | {"__results__.html": b"<p>Kaggle's own page</p>"}


LOG = json.dumps([{"stream_name": "stdout", "time": 1.5, "data": x} for x in ("one\n", "two\n")])


def test_output_is_a_run_that_the_other_commands_take(kaggle, musemo, smoke_run, small_config):
    files = kernel_s_output(Run(smoke_run))
    kaggle.leave(files, LOG, page=20)
    code, out, err = musemo("kaggle", "output", "--user", "me", "--quiet")
    assert code == 0, err
    run = Run(Path("runs/kaggle").resolve())
    assert "fetched: runs/kaggle/index.html" in out
    assert "https://www.kaggle.com/code/me/musemo-emotion-of-music" in out
    assert len(kaggle.asked("ListKernelSessionOutput")) == -(-len(files) // 20)
    for name, content in files.items():
        assert run.path(name.removeprefix("musemo/")).read_bytes() == content, name
    assert run.has(*ARTIFACTS) and run.path("kaggle.log").read_text() == "one\ntwo\n"
    page = run.path("index.html").read_text()
    assert "12 of 12 sections" in page and 'href="reports/' not in page
    assert [path.name for path in run.folder.parent.iterdir()] == ["kaggle"]
    assert "is there already" in refused(musemo("kaggle", "output", "--user", "me"))
    song = next(Path(small_config.data.path).rglob("*.mp3"))
    code, out, _ = musemo("predict", song, "--model", "runs/kaggle", "--quiet")
    assert code == 0 and song.name in out


def test_output_of_a_kernel_that_failed_is_its_log_and_what_there_is(kaggle, musemo, smoke_run):
    kaggle.answers["GetKernelSessionStatus"] = {"status": "ERROR"}
    kaggle.leave(kernel_s_output(Run(smoke_run), sections=5), "plain words\n", page=50)
    code, out, _ = musemo("kaggle", "output", "--user", "me", "--out", "runs/failed", "--quiet")
    assert code == 0 and "fetched: runs/failed/kaggle.log" in out
    folder = Path("runs/failed")
    assert (folder / "kaggle.log").read_text() == "plain words\n"
    assert "not run yet" in (folder / "index.html").read_text()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"musemo/a.npy": b"12", "musemo/b.npy": 403}, "b.npy: could not be fetched (403)"),
        ({"musemo/a.npy": b"12", "musemo/b.npy": b"half<cut>"}, "the connection broke"),
        ({"musemo/../../../x.npy": b"12"}, "names a file outside its own folder"),
    ],
)
def test_output_is_whole_or_not_there(files, words, kaggle, musemo, tmp_path):
    kaggle.leave(files, LOG)
    line = refused(musemo("kaggle", "output", "--user", "me", "--quiet"))
    assert words in line and kaggle.url not in line
    assert list((tmp_path / "runs").iterdir()) == []


def test_output_waits_for_no_one(kaggle, musemo, tmp_path):
    kaggle.answers["GetKernelSessionStatus"] = {"status": "RUNNING"}
    assert "status --wait" in refused(musemo("kaggle", "output", "--user", "me"))
    kaggle.answers["GetKernelSessionStatus"] = {"status": "COMPLETE"}
    kaggle.leave({}, "")
    assert "has left nothing" in refused(musemo("kaggle", "output", "--user", "me"))
    assert not (tmp_path / "runs").exists()


# The kernel itself


@pytest.mark.parametrize("layout", ["old", "new", "both"])
def test_data_and_weights_are_found_in_each_mount_without_a_network(layout, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    mount = tmp_path / "input"
    sets = mount if layout == "old" else mount / "datasets/imsparsh"
    models = mount if layout == "old" else mount / "models/google"
    write_deam(sets / "deam-mediaeval")
    backbone = transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=32,
        ),
        add_pooling_layer=False,
    )
    place = models / "vit-base-patch16-224-in21k/transformers/default/1"
    backbone.save_pretrained(place)
    if layout == "both":  # the old names as links to the new places
        (mount / "deam-mediaeval").symlink_to(sets / "deam-mediaeval")
        (mount / "a-vit").symlink_to(models / "vit-base-patch16-224-in21k")
    config = make_config("kaggle", {"data.path": str(mount), "dataset.image_size": 32})
    assert len(find_data(config).audio) == 12
    songs, _, files = list_songs(config)
    assert (songs["status"] == "ok").all() and all(file.is_file() for file in files)
    model = build_vit(config, kaggle=mount)
    assert model.source == f"Kaggle input {place.relative_to(mount)}"
    for name, weight in backbone.state_dict().items():
        assert model.backbone.state_dict()[name].equal(weight), name


@pytest.fixture(scope="module")
def kernel_run(small_config, tmp_path_factory):
    "What the kernel leaves and shows, executed as Kaggle does: a notebook onto itself."
    import papermill

    home = tmp_path_factory.mktemp("kaggle")
    shutil.copytree(small_config.data.path, home / "input/datasets/someone/deam-mediaeval")
    # Kernels look in their own folder first: an import of the package would fail there.
    (home / "working/musemo").mkdir(parents=True)
    missing = "raise ImportError('the package is not here')"
    (home / "working/musemo/__init__.py").write_text(missing)
    shutil.copy(ROOT / "kaggle/musemo.ipynb", home / "working/__notebook__.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("MUSEMO_QUIET")
        executed = papermill.execute_notebook(
            *[home / "working/__notebook__.ipynb"] * 2,
            parameters={
                "preset": "smoke",
                "data": str(home / "input"),
                "out": str(home / "out"),
                "values": {
                    "audio.clip_seconds": 3.0,
                    "data.cache": str(home / "cache"),
                    "data.workers": 2,
                    # A notebook's own functions must reach other processes.
                    "training.processes": 2,
                },
            },
            cwd=home / "working",
            kernel_name="python3",
            progress_bar=False,
        )
    return Run(home / "out"), executed


def test_the_kaggle_kernel_runs_alone(kernel_run):
    "No package, no hub: the kernel in an empty folder against a mount like Kaggle's."
    notebook = nbformat.read(ROOT / "kaggle/musemo.ipynb", as_version=4)
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert "import musemo" not in source and "from musemo" not in source
    run, executed = kernel_run
    assert run.has(*ARTIFACTS)
    # Emotions and real songs, each of three generators and a real song twice, the plane.
    assert len(list(run.folder.rglob("*.wav"))) == 2 * 5 + 2 * (3 + 1) + 25
    # The log: a line a section, and no progress bar of this short run.
    streams = [out for cell in executed.cells for out in cell.get("outputs", []) if "name" in out]
    log = "".join(out.text for out in streams if out.name == "stdout")
    lines = [line for line in log.splitlines() if "next: " in line]
    names = [section.name for section in SECTIONS]
    assert [line.split()[1] for line in lines] == names
    assert [line.split("next: ")[1] for line in lines] == [*names[1:], "nothing, all is done"]
    assert "%|" not in "".join(out.text for out in streams)
    record = run.load("run.json")
    assert list(record["sections"]) == list(record["memory"]) == names
    held = list(record["memory"].values())
    assert run.load("vit_history.json")["processes"] == 2
    assert held == sorted(held) and 300 < held[0] < 13_000  # MB; torch alone needs some 300


def test_a_fetched_kernel_has_the_pages_of_a_run(kernel_run, kaggle, musemo):
    kaggle.leave(kernel_s_output(kernel_run[0]), LOG, page=50)
    code, out, err = musemo("kaggle", "output", "--user", "me", "--quiet")
    assert code == 0 and "fetched: runs/kaggle/index.html" in out, err
    page = Path("runs/kaggle/index.html").read_text()
    assert "12 of 12 sections" in page
    sections = [path.stem for path in sorted(Path("runs/kaggle/reports").glob("*.html"))]
    assert sections == [section.name for section in SECTIONS]
    for name in sections:
        assert f'href="reports/{name}.html"' in page
        text = Path(f"runs/kaggle/reports/{name}.html").read_text()
        assert text.count("<h1>") == 1 and text.index("On the run") < text.index("How it works")
        assert "<img" in text and "end_section" not in text and "%|" not in text
    sounds = Path("runs/kaggle/reports/08_audio.html").read_text()
    assert sounds.count("<audio") >= 10 + 25


@pytest.fixture
def no_weights(monkeypatch):
    "A hub without a network, in this process and in those that it starts."
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return {"training.recipe": "spec", "vit.weights": "nobody/there-is-no-such-vit"}


def names_the_ways_out(told: str) -> bool:
    words = ("nobody/there-is-no-such-vit", "vit.weights=FOLDER", "on Kaggle", "=scratch")
    return all(word in told for word in words)


def test_the_kernel_misses_weights_before_it_looks_at_a_song(no_weights, small_config, tmp_path):
    import papermill

    parameters = {"data": small_config.data.path, "out": str(tmp_path / "out")}
    begun = time.monotonic()
    with pytest.raises(papermill.PapermillExecutionError) as error:
        papermill.execute_notebook(
            ROOT / "kaggle/musemo.ipynb",
            None,
            parameters | {"preset": "full", "values": no_weights},
            cwd=tmp_path,
            kernel_name="python3",
            progress_bar=False,
        )
    assert error.value.ename == "WeightsError" and names_the_ways_out(error.value.evalue)
    assert not list((tmp_path / "out").glob("*")) and time.monotonic() - begun < 60


@pytest.mark.parametrize("command", ["run", "evaluate"])
def test_a_run_misses_weights_before_its_first_section(
    command, no_weights, musemo, small_config, tmp_path
):
    settings = [f"--set={name}={value}" for name, value in no_weights.items()]
    options = ["--preset", "full", "--data", small_config.data.path, "--out", tmp_path / "out"]
    line = refused(musemo(command, *options, *settings, "--quiet"))
    assert names_the_ways_out(line)
    assert json.loads((tmp_path / "out/run.json").read_text())["sections"] == {}
    assert not (tmp_path / "out/songs.csv").exists()


def test_the_kernel_s_own_names_are_its_own():
    "What the log's line needs must survive twelve sections in one namespace."
    notebook = nbformat.read(ROOT / "kaggle/musemo.ipynb", as_version=4)
    made = Counter()
    for cell in notebook.cells:
        for part in ast.parse(cell.source).body if cell.cell_type == "code" else []:
            if isinstance(part, ast.FunctionDef | ast.ClassDef):
                made[part.name] += 1
            else:
                names = [node for node in ast.walk(part) if isinstance(node, ast.Name)]
                made.update(node.id for node in names if isinstance(node.ctx, ast.Store))
    assert made["run_record"] == made["clock"] == made["end_section"] == 1
    assert made["time"] == made["timedelta"] == made["os"] == made["resource"] == 0


def test_the_kernel_s_metadata_is_what_kaggle_asks_for():
    owner, slug = FACTS["id"].split("/")
    assert FACTS["title"] == TITLE
    assert slug == FACTS["title"].lower().replace(" ", "-") and len(FACTS["title"]) >= 5
    assert (ROOT / "kaggle" / FACTS["code_file"]).exists()
    assert FACTS["kernel_type"] == "notebook" and FACTS["language"] == "python"
    assert FACTS["enable_gpu"] and FACTS["machine_shape"] == "NvidiaTeslaT4"
    # The ViT's weights come from the hub where no checkpoint is attached.
    assert FACTS["enable_internet"] is True
    assert all(len(source.split("/")) == 2 for source in FACTS["dataset_sources"])
    assert os.path.exists(ROOT / "kaggle/__init__.py") is False


def test_an_installed_package_brings_the_kernel(tmp_path):
    pytest.importorskip("setuptools")
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    command = [sys.executable, "-m", "musemo", "kaggle", "push", "--user", "me", "--folder", "it"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "lib")}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert json.loads((tmp_path / "it/kernel-metadata.json").read_text())["id"].startswith("me/")
    shutil.rmtree(tmp_path / "lib/musemo/kaggle_kernel")
    again = [*command[:-1], "again"]
    result = subprocess.run(again, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and "install musemo again" in result.stderr


# What Kaggle allows a session

DEAM = 1802  # songs
T4 = 1e12  # floating-point operations a second, an eighth of what its maker promises


def array_bytes(config, songs: int) -> dict[str, int]:
    "What a run's large arrays take on disk: two bytes a number."
    bands, side = 2 * config.audio.n_mels, config.synthesis.plane_side
    return {
        "logmel.npy": songs * bands * config.audio.frames,
        "synthetic.npy": (config.synthesis.songs + len(EMOTIONS)) * bands * config.window,
        "plane.npy": side**2 * bands * config.window,
        "gan_samples.npy": config.gan.samples * bands * config.gan.frames,
    }


def test_the_sizes_are_those_of_a_run(smoke_run, small_config):
    songs = len(Run(smoke_run).load("logmel.npy"))
    for name, size in array_bytes(small_config, songs).items():
        assert (smoke_run / name).stat().st_size == size + 128, name  # numpy's header


def test_the_kaggle_preset_fits_a_session():
    config = make_config("kaggle")
    arrays = array_bytes(config, DEAM)
    vit = transformers.ViTConfig()  # the base size, which vit.weights names
    weights = 4 * 86_400_000  # bytes
    train = DEAM * (1 - config.data.validation - config.data.test) + config.synthesis.songs
    windows = train + DEAM * config.data.validation
    tokens = 2 * windows * (1 + (vit.image_size // vit.patch_size) ** 2) * vit.hidden_size
    generator, discriminator = build_gan(config)
    pair = 4 * sum(x.numel() for x in (*generator.parameters(), *discriminator.parameters()))
    # Disk: songs decoded in 4 bytes, synthetic songs twice while they are written, the tokens of
    # two cuts, the pair with its moments and average, 40 clips of 30 s.
    disk = 2 * arrays["logmel.npy"] + sum(arrays.values()) + arrays["synthetic.npy"]
    disk += 2 * tokens + 5 * pair + weights + 40 * 30 * 2 * config.audio.sample_rate
    # Memory: section 11 holds all songs and tokens, and three copies of the ViT on their way.
    memory = arrays["logmel.npy"] + arrays["synthetic.npy"] + tokens + 3 * weights
    libraries = 5e9  # torch with CUDA, transformers and two workers
    assert disk < 20e9 and memory + libraries < 13e9
    # Time: what the networks multiply, forth and back, is a small part of 12 hours.
    with FlopCounterMode(display=False) as count, torch.no_grad():
        noise, labels = torch.zeros(1, generator.noise_size(config.gan.frames)), torch.zeros(1, 2)
        drawn = generator(noise, labels)
        drawing = count.get_total_flops()
        discriminator(drawn, labels)
        judging = count.get_total_flops() - drawing
    step = config.gan.max_steps * (drawing + 9 * judging) + 3 * (drawing + judging)
    look = 35e9  # of the ViT at a picture
    epochs = config.training.epochs * 3 * config.training.unfreeze[-1][1] / vit.num_hidden_layers
    work = config.gan.epochs * DEAM * step + windows * look * (1 + epochs)
    assert work / T4 < 4 * 3600  # seconds; decoding, sound and judging have the other eight
