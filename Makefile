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

# Its pip, not its python, shows that a virtual environment is complete: where Debian's python3-venv is missing,
# python is made and then pip fails.
$(BIN)/pip:
	@echo "==> making a virtual environment in $(VENV)"
	@$(PYTHON) -c "$$CAN_MAKE_VENV"
	@if [ -e $(VENV)/pyvenv.cfg ] && [ ! -e $(BIN)/activate ]; then $(PYTHON) -m venv --clear $(VENV); \
	else $(PYTHON) -m venv $(VENV); fi

define CAN_MAKE_VENV
import sys
version = '%d.%d' % sys.version_info[:2]
if sys.version_info < (3, 11):
    sys.exit('soma-eval needs Python 3.11 or newer, this is ' + version + ': give another one, make PYTHON=...')
try:
    import ensurepip, venv
except ImportError:
    sys.exit('This Python cannot make virtual environments. On Debian and Ubuntu: '
             'sudo apt install python' + version + '-venv; then run make again.')
endef
export CAN_MAKE_VENV

$(VENV)/.installed: $(BIN)/pip pyproject.toml
	@echo "==> installing soma-eval and its dependencies (torch is the large one: some minutes on a slow line)"
	@$(BIN)/pip install --disable-pip-version-check --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(BIN)/pip pyproject.toml
	@echo "==> installing soma-eval with its development tools (torch is the large one: some minutes on a slow line)"
	@$(BIN)/pip install --disable-pip-version-check --quiet --editable '.[dev]'
	@touch $(VENV)/.installed $@
