# segcore: `make demo` and `make test` each work alone on a fresh machine with Python 3.11+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help

.PHONY: help
help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "segcore needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# torch first and by itself: a pinned torch keeps the other packages from choosing another build.
$(VENV)/.run: $(BIN)/python pyproject.toml .ci/constraints.txt
	$(PIP) install -q -c .ci/constraints.txt torch
	$(PIP) install -q -c .ci/constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(PIP) install -q -c .ci/constraints.txt -e '.[test]'
	@touch $@

.PHONY: setup
setup: $(VENV)/.test ## environment for work on segcore in .venv

.PHONY: demo
demo: $(VENV)/.run ## segment a synthetic archive with the bundled model and measure the masks
	$(BIN)/segcore demo

.PHONY: demo-s3
demo-s3: $(VENV)/.test ## the same with archive and output on a real S3 server on loopback
	$(BIN)/segcore demo --s3 --out demo-output-s3

.PHONY: lint
lint: $(VENV)/.test ## style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: test
test: lint ## lint, then the tests (under 12 minutes on 2 cores)
	$(BIN)/python -m pytest

.PHONY: faults
faults: $(VENV)/.test ## the tests that kill, hang and cut whole jobs (some 8 minutes; CI runs them)
	$(BIN)/python -m pytest -m "faults and not chaos"

.PHONY: chaos
chaos: $(VENV)/.test ## the long tests that kill, cut and delay (hours)
	$(BIN)/python -m pytest -m chaos

.PHONY: parity
parity: $(VENV)/.test ## compare with the peers in an environment of their own (downloads several GB)
	$(BIN)/python -m tests.parity

.PHONY: bench-peers
bench-peers: $(VENV)/.test ## time against the peers, in the same environment as parity
	$(BIN)/python -m tests.peers

.PHONY: clean
clean: ## remove environments, caches and demo output
	rm -rf $(VENV) .venv-peers build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-output demo-output-s3
