"""Kaggle's own client: push a kernel, follow it, and fetch what it leaves."""

import base64
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from musemo.core import MusemoError, Run, progress
from musemo.pipeline import write_index
from musemo.records import load_config, load_record
from musemo.report import split_kernel

OUT = "musemo/"  # what the kernel leaves, below /kaggle/working
WAYS_IN = (
    "run `kaggle auth login`, or make a token on kaggle.com/settings and put it into "
    "KAGGLE_API_TOKEN or ~/.kaggle/access_token (an older kaggle.json serves as well)"
)
WHAT_NEXT = {  # by the status of Kaggle's answer; 0: any other
    0: "look at your page on kaggle.com, or try again later",
    401: WAYS_IN,
    403: "look at --user: is it yours?",
    404: "look at --user and --title; `musemo kaggle push` makes a kernel",
    429: "wait a while, and try again",
}
RUNNING = ("queued", "running", "new script")


@contextmanager
def client_needed() -> Iterator[None]:
    "Say how to install Kaggle's client where an import of it fails."
    try:
        yield
    except ImportError as error:
        raise MusemoError(
            f"Kaggle's client is missing ({error}): pip install 'musemo[kaggle]'"
        ) from error


def _secrets(api: Any) -> list[str]:
    "List what the client signs in with, in all forms in which it is sent."
    from kagglesdk import KaggleCredentials, get_access_token_from_env

    user, key, token = (api.config_values.get(x) for x in ("username", "key", "token"))
    basic = base64.b64encode(f"{user}:{key}".encode()).decode()
    # Until it is accepted, a token is in none of the client's settings.
    found = [key, basic, token, get_access_token_from_env()[0]]
    stored = Path(KaggleCredentials.DEFAULT_CREDENTIALS_FILE).expanduser()
    if stored.exists():
        with suppress(ValueError):  # what is no JSON, the client cannot use either
            tokens = json.loads(stored.read_text())
            found += [tokens.get("refresh_token"), tokens.get("access_token")]
    return [secret for secret in found if secret]


def _one_line(api: Any, text: str) -> str:
    "Put what Kaggle says into one line without credentials, should it echo them."
    for secret in _secrets(api):
        text = text.replace(secret, "***")
    return " ".join(text.split())


def ask(api: Any, call: Callable, *arguments: object) -> Any:
    "Call Kaggle's client; what goes wrong is one line, and credentials are not in it."
    import requests  # comes with the client

    try:
        # The client prints hints, and with VERBOSE set the headers that hold the credentials.
        with redirect_stdout(io.StringIO()):
            return call(*arguments)
    except SystemExit:
        raise MusemoError(f"Kaggle: found no credentials that it accepts; {WAYS_IN}") from None
    except (requests.ConnectionError, requests.Timeout):
        raise MusemoError("Kaggle: cannot be reached; look to the network, and try again") from None
    except (requests.RequestException, ValueError) as error:
        # For a kernel that is not yours the client hides Kaggle's answer behind a guess.
        answers = [e for e in (error, error.__context__) if isinstance(e, requests.HTTPError)]
        reason = _one_line(api, str(answers[0] if answers else error))
        status = answers[0].response.status_code if answers else 0
        raise MusemoError(
            f"Kaggle refused: {reason}; {WHAT_NEXT.get(status, WHAT_NEXT[0])}"
        ) from None


def open_client() -> Any:
    "Sign in with whatever credentials the client finds; raises MusemoError without."
    with client_needed(), redirect_stdout(io.StringIO()):  # it prints what it thinks of you
        from kaggle.api.kaggle_api_extended import KaggleApi
    api = KaggleApi()
    ask(api, api.authenticate)
    return api


def push_kernel(folder: Path) -> str:  # its address
    "Push a written kernel, which starts it; raises MusemoError where Kaggle refuses a part of it."
    api = open_client()
    answer = ask(api, api.kernels_push, str(folder))
    if answer.error:
        reason = _one_line(api, answer.error)
        raise MusemoError(f"Kaggle refused the kernel: {reason}; mend that, and push again")
    lost = [*answer.invalid_dataset_sources, *answer.invalid_model_sources]
    if lost:
        raise MusemoError(
            f"Kaggle took the kernel, but cannot attach {', '.join(lost)}: stop it on {answer.url}, "
            "and push again with sources that you can open there"
        )
    return answer.url


def _state(answer: Any) -> str:
    "Say in words how a kernel stands."
    return answer.status.name.lower().replace("_", " ")


def follow_kernel(
    kernel: str,
    every: float | None = None,  # seconds between questions; None: ask once
) -> Iterator[str]:  # each state that is new
    "Say how a kernel stands, until it ends; raises MusemoError where it failed or was stopped."
    api = open_client()
    # The client's own patience: a lost connection must not end a watch of hours.
    question = api.with_retry(api.kernels_status) if every else api.kernels_status
    seen = None
    while True:
        answer = ask(api, question, kernel)
        state = _state(answer)
        if state == "error" or "cancel" in state:
            why = _one_line(api, answer.failure_message or "no reason given")
            raise MusemoError(
                f"{kernel}: {state} ({why}); run `musemo kaggle output` to fetch its log"
            )
        if state != seen:
            yield state
        if every is None or state not in RUNNING:
            return
        seen = state
        time.sleep(every)


def _list_output(api: Any, kernel: str) -> tuple[dict[str, str], str]:  # name -> address; the log
    "List all files that a kernel left, page by page."
    from kagglesdk.kernels.types.kernels_api_service import ApiListKernelSessionOutputRequest

    request = ApiListKernelSessionOutputRequest()
    request.user_name, request.kernel_slug = kernel.split("/")
    request.page_size, files, log = 100, {}, ""
    with api.build_kaggle_client() as client:
        while True:
            answer = ask(api, client.kernels.kernels_api_client.list_kernel_session_output, request)
            files |= {file.file_name: file.url for file in answer.files}
            log = answer.log or log
            if not answer.next_page_token:
                return files, log
            request.page_token = answer.next_page_token


def _download(url: str, target: Path) -> None:
    "Download a file as it comes; raises MusemoError where it is not whole."
    import requests

    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        # The client's own download would keep a page that says "no" as if it were the file.
        with requests.get(url, stream=True, timeout=60) as answer, open(target, "wb") as file:
            answer.raise_for_status()
            for part in answer.iter_content(1 << 20):
                file.write(part)
    except requests.RequestException as error:
        # The address is signed: it is a credential, and the error would show it.
        status = getattr(error.response, "status_code", "the connection broke")
        raise MusemoError(f"{target.name}: could not be fetched ({status}); try again") from None


def _plain_log(log: str) -> str:
    "Join the events of a session's log; one that is text already stays as it is."
    try:
        return "".join(event["data"] for event in json.loads(log))
    except (ValueError, TypeError, KeyError):
        return log


def fetch_output(kernel: str, out: Path) -> Path:  # the page to open, or the log
    "Fetch what a kernel left into a new run folder, whole or not at all, and write its pages."
    if out.exists():
        raise MusemoError(f"--out {out}: is there already; name a folder that is new")
    api = open_client()
    state = _state(ask(api, api.kernels_status, kernel))
    if state in RUNNING:
        raise MusemoError(f"{kernel}: is {state}; `musemo kaggle status --wait` says when it ends")
    files, log = _list_output(api, kernel)
    if not (files or log):
        raise MusemoError(
            f"{kernel}: has left nothing (state: {state}); look at kaggle.com/code/{kernel}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".kaggle-") as folder:
        part = Path(folder) / "part"
        part.mkdir()
        for name, url in progress(files.items(), desc="files"):
            target = part / name.removeprefix(OUT)
            if not target.resolve().is_relative_to(part.resolve()):
                raise MusemoError(
                    f"{kernel}: names a file outside its own folder: {name!r}; nothing is kept, "
                    f"look at kaggle.com/code/{kernel}"
                )
            _download(url, target)
        (part / "kaggle.log").write_text(_plain_log(log))
        os.replace(part, out)
    run = Run(out)
    if run.has("config.json", "run.json"):
        if run.has("kernel.ipynb"):
            split_kernel(run, load_record(run)["sections"])
        try:
            page = write_index(run, load_config(run))
        except MusemoError as error:
            raise MusemoError(
                f"{out}: all of it is fetched, but its pages need the musemo that pushed it ({error}); "
                f"look at kaggle.com/code/{kernel}"
            ) from error
        if state == "complete":
            return page
    return run.path("kaggle.log")
