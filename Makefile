# One command each; `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?=
PRESET ?= demo
OUT ?=
ARGS ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help run test check nbs pull clean

help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 8

$(VENV)/.run: settings.ini setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[demo,kaggle]'
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(PIP) -e '.[demo,kaggle,dev]'
	@touch $@

run: $(VENV)/.run  ## run the suite: DATA=DIR, PRESET=smoke|demo|kaggle|full, OUT=runs/NAME, ARGS=...
	$(BIN)/musemo run --preset $(PRESET) $(if $(DATA),--data "$(DATA)") $(if $(OUT),--out "$(OUT)") $(ARGS)

test: check  ## everything that CI runs
	rm -rf runs/notebook
	MUSEMO_QUIET=1 $(BIN)/nbdev_test --n_workers 1
	MUSEMO_QUIET=1 $(BIN)/python -m pytest -q tests

check: $(VENV)/.test  ## forms agree, code is clean
	$(BIN)/python nbs/_build.py check
	$(BIN)/ruff check nbs musemo tests setup.py
	$(BIN)/ruff format --check nbs/_build.py nbs/_src musemo/cli.py musemo/pipeline.py musemo/protocol.py musemo/report.py musemo/demo.py tests setup.py

nbs: $(VENV)/.test  ## sources -> notebooks, modules, kernel
	$(BIN)/ruff format --quiet nbs/_src
	$(BIN)/python nbs/_build.py build

pull: $(VENV)/.test  ## notebooks edited in Jupyter -> sources
	$(BIN)/python nbs/_build.py pull

clean:  ## remove the environment and caches; runs stay
	rm -rf $(VENV) runs/notebook build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
