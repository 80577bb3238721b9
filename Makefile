# Tenfold. `make` lists the targets; each does its own set-up (venv + pip in .venv) when needed.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
METHOD ?= comatch
SEEDS ?=
ARGS ?=
GOLDEN ?= tests/golden
KILLS ?= 3
export HYDRA_FULL_ERROR ?= 0

.DEFAULT_GOAL := help
.PHONY: help setup reproduce reproduce-all data zoo parity mutants speed chaos report lint test test-all test-lowest test-newest test-slurm test-ray coverage clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  METHOD=$(METHOD) by default; CLAIM=name, SEEDS=1,2,3 and ARGS='hydra overrides' reach make reproduce."

setup: $(VENV)/.installed  ## create .venv and install everything (done by every other target)

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) lacks venv: apt-get install python3-venv (as root), or another PYTHON="; exit 1; }
	@echo "setting up $(VENV) (some minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

reproduce: setup  ## train a method beside its baselines on small real data and judge the paper's claim
	@$(BIN)/python -m benchmarks.reproduce $(METHOD) $(if $(CLAIM),--claim $(CLAIM)) $(if $(SEEDS),--seeds '$(SEEDS)') $(ARGS)

reproduce-all: setup  ## every claim of every method, one behind the other (hours; goes on where it was interrupted)
	@$(BIN)/python -m benchmarks.everything $(ARGS)

data: setup  ## fetch the data of a method's miniature (ARGS='hydra overrides' for more, see benchmarks/data.py)
	@$(BIN)/python -m benchmarks.data $(METHOD) $(ARGS)

zoo: setup  ## train small models of drawings and words (an hour and more), for miniatures to start from
	@$(BIN)/python -m benchmarks.zoo $(ARGS)

parity: setup  ## compare with the golden vectors of the official code (GOLDEN=dir for other ones)
	@$(BIN)/python -m benchmarks.parity $(METHOD) --golden $(GOLDEN)

mutants: setup  ## plant wrong versions one at a time and show that parity goes red
	@$(BIN)/python -m benchmarks.mutants $(METHOD)

speed: setup  ## time our training step beside a peer's, alternating, in one run
	@$(BIN)/python -m benchmarks.speed $(METHOD) $(ARGS)

chaos: setup  ## kill the miniature KILLS times, restart it, and compare with an undisturbed run
	@$(BIN)/python -m benchmarks.chaos $(METHOD) --kills $(KILLS) $(ARGS)

report: setup  ## build outputs/report/index.html from all results so far
	@$(BIN)/python -m benchmarks.report

lint: setup  ## ruff, import rules, types, citations
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/mypy
	@$(BIN)/python -m benchmarks.citations

test: setup  ## the everyday tests (minutes)
	@$(BIN)/python -m pytest -n 2 -m 'not slow' --junitxml=outputs/junit.xml

test-all: setup  ## every test, the slow ones too
	@$(BIN)/python -m pytest -n 2 --junitxml=outputs/junit.xml

test-slurm: setup  ## runs, claims and searches through a real SLURM, which starts and ends with the tests
	@$(BIN)/python -m pytest -o addopts='-ra --strict-markers' -o faulthandler_timeout=3600 -m 'not ray' tests/clusters --junitxml=outputs/junit-slurm.xml

test-ray: setup  ## sweeps through a Ray cluster on this machine, one of whose processes is killed
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[ray]'
	@$(BIN)/python -m pytest -o addopts='-ra --strict-markers' -m ray tests/clusters --junitxml=outputs/junit-ray.xml

test-lowest: setup  ## the everyday tests at the lowest version of every dependency that we allow, in .venv-lowest
	@$(PYTHON) -m venv .venv-lowest
	@$(BIN)/python -m tests.lowest > .venv-lowest/constraints.txt
	@.venv-lowest/bin/pip install --quiet --disable-pip-version-check -c .venv-lowest/constraints.txt -e '.[dev]'
	@.venv-lowest/bin/python -m pytest -n 2 -m 'not slow' --junitxml=outputs/junit-lowest.xml

test-newest: setup  ## the same at the newest, pre-releases admitted, in .venv-newest
	@$(PYTHON) -m venv .venv-newest
	@.venv-newest/bin/pip install --quiet --disable-pip-version-check --upgrade --pre -e '.[dev]'
	@.venv-newest/bin/python -m pytest -n 2 -m 'not slow' --junitxml=outputs/junit-newest.xml

coverage: setup  ## line coverage of shared/ and methods/ by the everyday tests
	@$(BIN)/python -m pytest -n 2 -m 'not slow' --cov=shared --cov=methods --cov-report=term-missing:skip-covered

clean:  ## remove results, caches and the environment, but not the data
	@rm -rf outputs multirun $(VENV) .venv-peer .venv-lowest .venv-newest .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info .coverage*
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
