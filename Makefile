.PHONY: demo demo-cluster test test-slow check check-lowest coverage lint openapi format bench lock build sbom clean help

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# Exact versions that pip installs. Empty: the newest that pyproject.toml allows.
CONSTRAINTS ?= requirements/lock.txt
PIP_INSTALL := $(BIN)/pip install --disable-pip-version-check --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

# Processes that run tests at once: two for each core, as many tests wait for something. A file's tests stay together:
# they share services, which take seconds to start. tests/conftest.py says which files begin first.
TEST_PROCESSES ?= $(shell echo $$((2 * $$(getconf _NPROCESSORS_ONLN))))
# `make check` empties this: it runs all tests at once, as slow and other tests of a file share its services.
TESTS ?= -m "not slow"
# `make check` sets this to measure which lines run.
MEASURE ?=
PYTEST = $(BIN)/python $(MEASURE) -m pytest --numprocesses $(TEST_PROCESSES) --maxprocesses 8 \
    --dist loadfile --no-loadscope-reorder
# All these processes need the same compiled files.
unexport PYTHONDONTWRITEBYTECODE

# `make check` sets this: what failed beside other tests is run once more alone, on a machine that is otherwise idle.
RETRY ?=
ALONE = $(BIN)/python $(MEASURE) -m pytest --last-failed --last-failed-no-failures none
RETRY_ALONE = { [ -n "$(RETRY)" ] && echo "==> what failed, once more, one after the other" && $(ALONE)

help:            ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/'

demo: $(VENV)/.installed   ## the main job end to end on this machine
	@$(BIN)/soma-eval demo

demo-cluster: $(VENV)/.installed-dev   ## one evaluation on three nodes of a Ray cluster, one of which is killed
	@$(BIN)/python -m benchmarks.demo_cluster

test: $(VENV)/.installed-dev   ## the tests, in parallel, without the slow ones
	@$(PYTEST) $(TESTS) || $(RETRY_ALONE) $(TESTS); }

test-slow: $(VENV)/.installed-dev   ## the slow tests and the soak test
	@$(MAKE) test TESTS="-m slow"

lint: $(VENV)/.installed-dev   ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy examples/*.py

openapi: $(VENV)/.installed-dev   ## write openapi.json: the HTTP API as the service describes it
	@$(BIN)/python -m tests.service.http_api.test_openapi_file > openapi.new && mv openapi.new openapi.json

check: $(VENV)/.installed-dev   ## every gate: all tests, their line coverage, lint, the lowest versions
	@$(BIN)/python -m coverage erase
	@$(MAKE) --jobs=2 test lint TESTS= RETRY=1 MEASURE="-m coverage run"
	@$(MAKE) coverage
	@$(MAKE) check-lowest

coverage:        ## lines run by the tests of `make check`, over all processes; fails when there are fewer than before
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report

check-lowest:    ## some tests with the lowest versions that pyproject.toml allows, in an environment of their own
	@$(MAKE) run-lowest VENV=.venv-lowest CONSTRAINTS=requirements/lowest.txt

lock: $(BIN)/pip   ## write requirements/lock.txt: the newest versions that pyproject.toml allows
	@$(BIN)/pip install --disable-pip-version-check --quiet --dry-run --ignore-installed \
	    --report $(VENV)/lock.json --editable '.[dev]'
	@$(BIN)/python -c "$$WRITE_LOCK" < $(VENV)/lock.json > requirements/lock.txt

# A version's local part is left out (2.13.0+cpu becomes 2.13.0), so that every build of it will do.
define WRITE_LOCK
import json, sys
found = [package['metadata'] for package in json.load(sys.stdin)['install']]
print('# Written by `make lock`: the versions that make installs, here and in CI.')
for name, version in sorted((each['name'].lower(), each['version'].partition('+')[0]) for each in found):
    if name != 'soma-eval':
        print(name + '==' + version)
endef
export WRITE_LOCK

format: $(VENV)/.installed-dev   ## put the code in its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev   ## our numbers beside those of the published package
	$(BIN)/python -m benchmarks.agreement

build: $(VENV)/.installed-dev   ## the sdist and the wheel of a release, in dist/
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation

sbom:            ## what a release is installed with, in dist/sbom.cdx.json (CycloneDX)
	@$(MAKE) run-sbom VENV=.venv-release

clean:           ## remove the virtual environments and every cache
	rm -rf $(VENV) .venv-lowest .venv-release .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* build dist

LOWEST_TESTS := tests/test_requirements.py tests/service/scoring/test_eval.py tests/service/grpc_api \
    tests/service/http_api/test_app.py tests/service/test_config.py tests/service/test_log.py \
    tests/service/download tests/workers/v1/test_golden.py tests/workers/v1/test_weights_files.py

# The lowest pytest-asyncio leaves event loops open, which the collector finds later, in whichever test.
.PHONY: run-lowest
run-lowest: $(VENV)/.installed-lowest
	@$(PYTEST) -m "not slow" -W ignore::pytest.PytestUnraisableExceptionWarning $(LOWEST_TESTS)

# An environment of the service alone, with all extras that a release has, read by a tool that is in none of it.
RELEASE_EXTRAS := cluster,otel,postgres,publish
SBOM_TOOL := cyclonedx-bom>=7,<8
.PHONY: run-sbom
run-sbom: $(VENV)/.installed-release
	@mkdir -p dist
	@$(VENV)/tool/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON \
	    --output-file dist/sbom.cdx.json $(BIN)/python
	@echo "dist/sbom.cdx.json"

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

REQUIREMENTS := pyproject.toml $(CONSTRAINTS)

$(VENV)/.installed: $(BIN)/pip $(REQUIREMENTS)
	@echo "==> installing soma-eval and its dependencies (torch is the large one: some minutes on a slow line)"
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(BIN)/pip $(REQUIREMENTS)
	@echo "==> installing soma-eval with its development tools (torch is the large one: some minutes on a slow line)"
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-release: $(BIN)/pip $(REQUIREMENTS)
	@echo "==> installing soma-eval as a release is, and the tool that lists it"
	@$(PIP_INSTALL) '.[$(RELEASE_EXTRAS)]'
	@$(PYTHON) -m venv $(VENV)/tool
	@$(VENV)/tool/bin/pip install --disable-pip-version-check --quiet '$(SBOM_TOOL)'
	@touch $@

$(VENV)/.installed-lowest: $(BIN)/pip $(REQUIREMENTS)
	@echo "==> installing soma-eval with the lowest versions that it allows"
	@$(PIP_INSTALL) --editable '.[test]'
	@touch $@
