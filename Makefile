# Everything runs in .venv, which is made on first use.  Another Python: make PYTHON=python3.12 install
PYTHON ?= python3
BIN := .venv/bin
# One file says what was installed, so that a changed pyproject.toml installs again.
INSTALLED := .venv/installed

.PHONY: help install demo test bench lint types format
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED)  ## make .venv and install separate there, with what tests and linting need

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "separate needs Python 3.10 or newer; name one with make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,dev]"
	@touch $@

demo: $(INSTALLED)  ## train 3 minutes on the built-in data, score, separate a mixture
	$(BIN)/separate-train trainer.max_minutes=3
	$(BIN)/separate-eval
	$(BIN)/python scripts/write_toy.py separated/toy
	$(BIN)/separate-infer --out separated separated/toy/mixture.wav

test: $(INSTALLED)  ## all tests, 10 minutes on two cores
	$(BIN)/python -m pytest

bench: $(INSTALLED)  ## time and memory beside peers, tables and JSON, 30 minutes on two cores
	$(BIN)/python scripts/bench.py
	$(BIN)/python scripts/bench_data.py
	$(BIN)/python scripts/bench_training.py

lint: $(INSTALLED)  ## ruff
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)  ## mypy
	$(BIN)/mypy

format: $(INSTALLED)  ## let ruff put the code in order
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
