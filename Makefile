# All targets run in .venv, which the first of them creates.  Another Python: make PYTHON=python3.12 install
PYTHON ?= python3
BIN := .venv/bin
# The time of this file is that of the last installation; a changed pyproject.toml installs again.
INSTALLED := .venv/installed

.PHONY: help install demo test bench lint types format
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED)  ## create .venv and install separate there, with the tools for tests and linting

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "separate needs Python 3.10 or newer; name one with make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,dev]"
	@touch $@

demo: $(INSTALLED)  ## train 3 minutes on the built-in data, score, separate a mixture, draw its stems
	$(BIN)/separate-train trainer.max_minutes=3
	$(BIN)/separate-eval
	$(BIN)/python scripts/write_toy.py separated/toy
	$(BIN)/separate-infer --out separated separated/toy/mixture.wav
	$(BIN)/python scripts/draw_stems.py separated/toy separated/mixture separated/stems.png

test: $(INSTALLED)  ## all tests, 25 minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

bench: $(INSTALLED)  ## time and memory compared with other libraries, 40 minutes on two cores
	$(BIN)/python scripts/bench.py
	$(BIN)/python scripts/bench_data.py
	$(BIN)/python scripts/bench_training.py

lint: $(INSTALLED)  ## ruff
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)  ## mypy
	$(BIN)/mypy

format: $(INSTALLED)  ## format and fix the code with ruff
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
