.PHONY: demo test lint check format bench clean help

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

help:            ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/'

demo: $(VENV)/.installed   ## the main job end to end on this machine
	@$(BIN)/soma-eval demo

test: $(VENV)/.installed-dev   ## the whole test suite
	@$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev   ## form, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test   ## every gate

format: $(VENV)/.installed-dev   ## put the code in its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev   ## our numbers beside those of the published package
	$(BIN)/python -m benchmarks.agreement

clean:           ## forget the virtual environment and every cache
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist

$(BIN)/python:
	@echo "==> making a virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit("soma-eval needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml
	@echo "==> installing soma-eval and its dependencies (torch is the large one: some minutes on a slow line)"
	@$(BIN)/pip install --disable-pip-version-check --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml
	@echo "==> installing soma-eval with its development tools (torch is the large one: some minutes on a slow line)"
	@$(BIN)/pip install --disable-pip-version-check --quiet --editable '.[dev]'
	@touch $(VENV)/.installed $@
