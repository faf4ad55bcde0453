"""Every command explains itself."""

import errno
import os
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from musemo import cli
from musemo.cli import app
from musemo.cli_options import configure, run_folder
from musemo.core import MusemoError, Run
from musemo.presets import find_faults, save_config


def commands(command, *name):
    "List a command with its name and, where it is a group, all that it holds."
    yield name, command
    for word, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, *name, word)


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS, ids=lambda name: " ".join(name) or "musemo")
def test_help_shows_an_example_that_can_be_parsed(name):
    command = COMMANDS[name]
    shown = CliRunner().invoke(app, [*name, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    example = command.help.partition("Example: ")[2].strip()
    assert example and " ".join(example.split()) in " ".join(shown.output.split())
    words = shlex.split(example[example.index("musemo ") :])
    # A group's example is one of its commands'.
    called = max((x for x in COMMANDS if tuple(words[1 : len(x) + 1]) == x), key=len)
    assert called[: len(name)] == name and not hasattr(COMMANDS[called], "commands")
    # Parsing alone: unknown options and values out of range raise here.
    COMMANDS[called].make_context(" ".join(called), words[len(called) + 1 :])


@pytest.mark.parametrize("name", COMMANDS, ids=lambda name: " ".join(name) or "musemo")
def test_every_option_is_explained(name):
    bare = [p.name for p in COMMANDS[name].params if not getattr(p, "help", None)]
    assert bare == []


@pytest.mark.parametrize(
    "setting", ["gan.epochs=0", "gan.epoch=3", "gan=3", "preset.x=1", "data.test=0.7"]
)
def test_a_wrong_setting_says_once_where_the_fields_are_listed(setting):
    with pytest.raises(MusemoError) as error:
        configure("smoke", [setting])
    assert str(error.value).count("`musemo config`, which lists every field") == 1


def test_folders_that_are_there_mean_the_same_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ears").mkdir()
    for field in ("quality.embedding", "vit.weights"):
        config = configure("full", [f"{field}=ears"])
        section, name = field.split(".")
        assert getattr(getattr(config, section), name) == str(tmp_path / "ears")
    assert configure("full", []).quality.embedding == "statistics"
    monkeypatch.setenv("HOME", str(tmp_path))
    config = configure("full", ["quality.embedding=~/ears"])
    assert config.quality.embedding == str(tmp_path / "ears")
    assert run_folder(config, "full", Path("~/there")) == tmp_path / "there"
    for word in ("scratch", "vit"):  # words of the configuration, whatever folders lie here
        (tmp_path / word).mkdir()
    assert configure("demo", ["quality.embedding=vit"]).quality.embedding == "vit"
    assert configure("demo", ["vit.weights=scratch"]).vit.weights == "scratch"


def test_the_default_folder_belongs_to_one_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configs = []
    for place in ("DEAM v1.0", "DEAM v1.1", "x/DEAM v1.0"):
        (tmp_path / place).mkdir(parents=True)
        configs.append(configure("demo", [], path=str(tmp_path / place)))
    folders = [run_folder(config, "demo", None) for config in configs]
    assert folders == [Path("runs", name) for name in ("DEAM v1.0", "DEAM v1.1", "DEAM v1.0")]
    save_config(Run(folders[0]), configs[0])
    assert run_folder(configs[0], "demo", None) == folders[0]
    with pytest.raises(MusemoError, match="is a run of other songs .*--out runs/DEAM v1.0"):
        run_folder(configs[2], "demo", None)
    assert run_folder(configure("full", []), "full", None) == Path("runs/full")


def test_a_form_s_faults_name_no_command():
    faults = find_faults("smoke", {"gan.epochs": 0, "gan.epoch": 3, "data.test": 0.7})
    assert faults["gan.epoch"] == "is no field" and len(faults) == 3
    assert "musemo config" not in str(faults)


@pytest.mark.parametrize("file", ["there/it", None])
def test_what_the_system_refuses_is_one_line_with_a_next_step(file, monkeypatch, capsys):
    def refuse():
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), file)

    monkeypatch.setattr(cli, "app", refuse)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    place = file or "the system"
    assert ended.value.code == 2 and capsys.readouterr().err == (
        f"musemo: {place}: Permission denied; mend that, or name another place, and run it again\n"
    )
