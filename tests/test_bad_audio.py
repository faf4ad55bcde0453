"""Damaged, absurd and hostile sound files: each is predicted or listed with its reason."""

import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from musemo.core import MusemoError
from musemo.data import extract_log_mels
from musemo.prediction import FORMAT, EmotionModel
from musemo.presets import make_config
from musemo.vit import build_vit, describe_vit
from tests.conftest import ROOT, SHARED

CLIPS, RATE, SECONDS = 10, 22050, 4
LIMIT = 5  # s of CPU time for a file, to load and to predict it
MOST = 1000  # MB beyond the start


def encode(wave: np.ndarray, kind: str, *, rate: int = RATE, subtype: str | None = None) -> bytes:
    "Make the content of a sound file."
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def find_clips() -> Iterator[tuple[bytes, np.ndarray]]:
    "Take the beginnings of the real clips, or of tones where these are not beside the clone."
    files = sorted(SHARED.glob("deam/DEAM_audio/MEMD_audio/*.mp3"))[:CLIPS]
    for path in files:
        with soundfile.SoundFile(path) as file:
            wave = file.read(SECONDS * file.samplerate, always_2d=True).mean(axis=1)
            yield path.read_bytes()[:80_000], soxr.resample(wave, file.samplerate, RATE)
    for i in range(len(files), CLIPS):
        noise = np.random.default_rng(i).normal(0, 0.02, SECONDS * RATE)
        wave = 0.2 * np.sin(np.arange(SECONDS * RATE) * (0.02 + 0.01 * i)) + noise
        yield encode(wave, "MP3"), wave


def cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content))]


def flip(content: bytes, rng: np.random.Generator, *, bits: int = 64, within: int = 0) -> bytes:
    "Flip bits, anywhere or near the beginning."
    changed = bytearray(content)
    for _ in range(bits):
        changed[rng.integers(within or len(content))] ^= 1 << rng.integers(8)
    return bytes(changed)


def spoil(wave: np.ndarray, rng: np.random.Generator, values: list[float]) -> bytes:
    "Put numbers into a recording of floats that are no sound."
    wave = wave.copy()
    wave[rng.integers(len(wave), size=9)] = rng.choice(values, size=9)
    return encode(wave, "WAV", subtype="FLOAT")


ENDS = [".mp3", ".wav", ".flac", ".ogg", ".aiff", ".opus", ".raw", ".txt", "", ".au"]
FIELDS = {  # of the header of a .wav: its place, form, and what it claims
    "codec": (20, "<H", [0, 2, 3, 6, 17, 49, 80, 85, 0xFFFE, 0xFFFF]),
    "channels": (22, "<H", [0, 3, 255, 256, 1000, 1024, 1025, 4096, 32768, 65535]),
    "rate": (24, "<I", [0, 1, 2, 7, 300, 3999, 1_000_000, 2**31 - 1, 2**31, 4_000_000_000]),
    "sample bits": (34, "<H", [0, 1, 3, 8, 12, 24, 32, 64, 255, 65535]),
    "data size": (
        40,
        "<I",
        [0, 1, 7, 44, 2**16, 2**31 - 1, 2**31, 2**32 - 9, 2**32 - 2, 2**32 - 1],
    ),
}
HEADS = [
    b"ID3\4\0\0\x7f\x7f\x7f\x7f",
    b"\xff\xfb\x90\x64",
    b"fLaC\0\0\0\x22",
    b"OggS\0\2",
    b"RIFF\xff\xff\xff\xffWAVEfmt ",
    b"RF64\xff\xff\xff\xffWAVEds64",
    b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb",
    b"FORM\xff\xff\xff\xffAIFFCOMM",
    b"caff\0\1\0\0desc",
    b".snd\0\0\0\x18\xff\xff\xff\xff",
]


def spoil_clip(i: int, mp3: bytes, wave: np.ndarray) -> Iterator[tuple[str, str, bytes]]:
    "Make 30 bad files of one clip: what was done, the suffix, the content."
    rng = np.random.default_rng(i)
    made = {kind: encode(wave, kind.upper()) for kind in ("wav", "flac", "ogg", "aiff")}
    made = {"mp3": mp3} | made
    for kind in ("mp3", "wav", "flac", "ogg"):
        yield "cut", f".{kind}", cut(made[kind], rng)
    for kind, content in made.items():
        yield "flipped", f".{kind}", flip(content, rng)
        yield "head flipped", f".{kind}", flip(content, rng, bits=6, within=120)
    yield "flipped floats", ".wav", flip(encode(wave, "WAV", subtype="FLOAT"), rng)
    for field, (at, form, values) in FIELDS.items():
        claim = struct.pack(form, values[i])
        yield field, ".wav", made["wav"][:at] + claim + made["wav"][at + len(claim) :]
    yield "no numbers", ".wav", spoil(wave, rng, [np.nan, np.inf, -np.inf])
    yield "too loud", ".wav", spoil(wave, rng, [3e38, -1e38, 1e20])
    yield "wrong suffix", ENDS[i], list(made.values())[i % 5 - 1]
    yield "nothing", ENDS[i], b""
    yield "one sample", f".{[*made][i % 5]}", encode(wave[:1], [*made][i % 5].upper())
    yield "192 kHz", ".wav", encode(soxr.resample(wave, RATE, 192000), "WAV", rate=192000)
    # The first is little on the disk: half a minute, as fast as the format allows.
    many = np.tile(wave[:, None], 8) if i else np.zeros((30 * 655350, 8), np.int16)
    yield "8 channels", ".flac", encode(many, "FLAC", rate=RATE if i else 655350)
    yield "random", ENDS[i], rng.bytes(50_000)
    yield "text", ENDS[i], b"file,valence,arousal\na.mp3,1,2\n" * 900
    yield "head alone", ENDS[i], HEADS[i] + rng.bytes(50_000)


def open_untrained() -> EmotionModel:
    "Build a model as `musemo predict` opens one; what it says of a song is not looked at."
    config = make_config("smoke", {"vit.hidden": 16, "vit.layers": 1})
    parts = {"network": describe_vit(build_vit(config)), "audio": config.audio.model_dump()}
    parts |= {"window": config.window, "image_size": 0, "windows_per_song": 2, "min_seconds": 3.0}
    return EmotionModel(**parts, format=FORMAT).eval()


def report_all(folder: Path) -> None:
    "In a process of its own: load and predict each file, and print a line of JSON for each."
    model, config = open_untrained(), make_config("smoke", {"data.cache": str(folder / "cache")})
    model.predict(np.random.default_rng(0).normal(0, 0.1, RATE * SECONDS), RATE)
    paths, loaded = sorted((folder / "songs").iterdir()), []
    print(json.dumps({"start": held()}))
    for path in paths:
        print(json.dumps({"file": path.name}), flush=True)
        # Nothing else stops a decoder that hangs: the process ends, and its last line says where.
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        begun = time.process_time()
        loaded += extract_log_mels([path], config)
        (said,) = model.predict_all([path])
        spent = time.process_time() - begun
        signal.setitimer(signal.ITIMER_PROF, 0)
        told = str(said) if isinstance(said, MusemoError) else said
        row = {"loaded": loaded[-1], "told": told, "seconds": spent, "memory": held()}
        print(json.dumps(row, allow_nan=False), flush=True)
    again = extract_log_mels(paths, config)
    assert loaded == again, [pair for pair in zip(loaded, again, strict=True) if len(set(pair)) > 1]


def held() -> float:
    "Measure the most memory that this process has held, in MB."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    "What became of each file, and the memory before the first."
    folder = tmp_path_factory.mktemp("bad")
    (folder / "songs").mkdir()
    for i, clip in enumerate(find_clips()):
        for done, suffix, content in spoil_clip(i, *clip):
            count = len(os.listdir(folder / "songs"))
            (folder / f"songs/{count:03d} {done}{suffix}").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_bad_audio", folder],
        **{"cwd": ROOT, "capture_output": True, "text": True},
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode:
        how = signal.Signals(-done.returncode).name if done.returncode < 0 else done.stderr[-2000:]
        pytest.fail(f"the process ended at {lines[-1:]}: {how}")
    return lines[0]["start"], [a | b for a, b in zip(lines[1::2], lines[2::2], strict=True)]


def test_each_file_is_predicted_or_listed_with_its_reason(answers):
    _, rows = answers
    assert len(rows) == 300
    for row in rows:
        (status, reason), told, name = row["loaded"], row["told"], row["file"]
        assert status in ("ok", "unreadable", "silent", "too_short"), row
        assert reason and (status != "unreadable" or name in reason), row
        if isinstance(told, dict):
            assert -1 <= told["valence"] <= 1 and -1 <= told["arousal"] <= 1, row
        else:
            assert name in told and told.rpartition(name)[2].strip(": "), row


def test_no_file_takes_long_or_much_memory(answers):
    start, rows = answers
    slowest, largest = (max(rows, key=lambda row: row[key]) for key in ("seconds", "memory"))
    assert slowest["seconds"] < LIMIT, slowest
    assert largest["memory"] < start + MOST, next(r for r in rows if r["memory"] > start + MOST)


def test_odd_but_whole_files_are_heard_and_no_sound_is_refused(answers):
    def of(kind):
        return [row for row in answers[1] if Path(row["file"][4:]).stem == kind]

    for row in [*of("192 kHz"), *of("8 channels")[1:]]:
        assert row["loaded"][0] == "ok" and row["told"]["note"] == "", row
    named = {Path(row["file"]).suffix: row["loaded"][0] for row in of("wrong suffix")}
    assert named.pop(".raw") == "unreadable" and set(named.values()) == {"ok"}
    for kind in ("nothing", "text", "no numbers", "too loud"):
        assert all(row["loaded"][0] == "unreadable" for row in of(kind)), kind
        assert all(isinstance(row["told"], str) for row in of(kind)), kind
    wrong = [row for row in of("rate") if "sample rate" in row["loaded"][1]]
    assert len(wrong) > 3, "absurd rates are refused by name"


if __name__ == "__main__":
    report_all(Path(sys.argv[1]))
