# Everything a developer types. `make` alone lists the targets.
#
# Where pip looks is pip's own business: PIP_INDEX_URL, PIP_FIND_LINKS and the like pass through. On Linux the default
# index's torch brings CUDA, several GB; TORCH_INDEX_URL names one more index, such as one of torch's CPU builds.

PYTHON ?= python3.11
TORCH_INDEX_URL ?=
ARGS ?=
# How many processes run tests at once. Each may start a stack of its own: allow 2 GB of memory for each.
TEST_PROCESSES ?= 3
# How often `make test-flaky` runs all tests.
RUNS ?= 5

VENV := .venv
PIP_INSTALL = $(VENV)/bin/python -m pip install --constraint constraints.txt \
	$(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) --editable ./client --editable
IN_PARALLEL = --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help run test test-flaky test-unit check soak audit bench bench-gpu clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/.local  ## start everything on this machine, embed a sample, serve until Ctrl-C
	@exec $(VENV)/bin/colqueue up $(ARGS)

test: $(VENV)/.dev  ## run all tests (ARGS="-k name" to choose)
	$(VENV)/bin/pytest $(IN_PARALLEL) $(ARGS)

test-flaky: $(VENV)/.dev  ## run all tests RUNS times (5) while other programs keep every core busy, count failures
	$(VENV)/bin/python tests/flaky.py --runs $(RUNS) $(IN_PARALLEL) $(ARGS)

test-unit: $(VENV)/.dev  ## run the tests that need nothing but the code
	$(VENV)/bin/pytest tests/unit $(ARGS)

check: $(VENV)/.dev  ## lint, format, types, import rules
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

soak: $(VENV)/.dev  ## cause random faults for SOAK_S seconds (600), then account for every input (SOAK_SEED repeats)
	$(VENV)/bin/python tests/soak.py

audit: $(VENV)/.audit  ## ask a database of known vulnerabilities about every pinned package; needs pypi.org
	$(VENV)/audit/bin/python .ci/audit.py

bench: $(VENV)/.dev  ## measure beside what one would use instead: about half an hour (ARGS=--quick for a minute)
	$(VENV)/bin/python -m bench $(ARGS)

bench-gpu: $(VENV)/.dev  ## the same on a CUDA device at the published model's size, and what the device makes of it
	$(VENV)/bin/python -m bench.gpu $(ARGS)
	$(VENV)/bin/python -m bench --device cuda --dtype bfloat16 --shape full --json bench/results/latest-gpu.json

clean:  ## remove the environment, caches and var/; .env stays
	rm -rf $(VENV) var .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each step's stamp is written when the step has ended well, so one that was interrupted is done again.
$(VENV)/.made:
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.local: pyproject.toml client/pyproject.toml constraints.txt | $(VENV)/.made
	$(PIP_INSTALL) '.[local]'
	@touch $@

$(VENV)/.dev: pyproject.toml client/pyproject.toml constraints.txt | $(VENV)/.made
	$(PIP_INSTALL) '.[dev]'
	@touch $(VENV)/.local $@

# Its own environment: what it needs is nothing that we pin.
$(VENV)/.audit: | $(VENV)/.made
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install pip-audit==2.10.1
	@touch $@
