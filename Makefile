# segcore: `make demo` and `make test` each work alone on a fresh machine with Python 3.11+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
# Two processes share the files. Not those with Ray, which starts processes for all cores itself.
PARALLEL := -n 2 --dist loadfile

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "segcore needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# torch first and by itself: a pinned torch keeps the other packages from choosing another build.
$(VENV)/.run: $(BIN)/python pyproject.toml .ci/constraints.txt
	@echo 'Installing torch, Ray and the rest into $(VENV): minutes, 2 to 7 GB ...'
	$(PIP) install -q -c .ci/constraints.txt torch
	$(PIP) install -q -c .ci/constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(PIP) install -q -c .ci/constraints.txt -e '.[test]'
	@touch $@

.PHONY: setup
setup: $(VENV)/.test ## make an environment in .venv for working on segcore

.PHONY: demo
demo: $(VENV)/.run ## segment a synthetic archive with the bundled model and measure the masks
	$(BIN)/segcore demo

.PHONY: demo-s3
demo-s3: $(VENV)/.test ## the same, with archive and output on a real S3 server on loopback
	$(BIN)/segcore demo --s3 --out demo-output-s3

.PHONY: picture
picture: $(VENV)/.run ## draw docs/masks.jpg, the picture of the README, with the demo
	$(BIN)/segcore demo --images 60 --out demo-output
	$(BIN)/python -c 'from PIL import Image; sheet = Image.open("demo-output/contact-sheet.png"); \
	  sheet.convert("RGB").save("docs/masks.jpg", quality=80, optimize=True)'

.PHONY: options
options: $(VENV)/.run ## write configs/segment.yaml, configs/train.yaml and docs/options.md from the schemas
	$(BIN)/python -m segcore config segment > configs/segment.yaml
	$(BIN)/python -m segcore config train > configs/train.yaml
	$(BIN)/python -m segcore config export > configs/export.yaml
	$(BIN)/python -m segcore config prelabel > configs/prelabel.yaml
	$(BIN)/python -m segcore config reprocess > configs/reprocess.yaml
	$(BIN)/python -c 'from segcore.config.jobs import options_page; print(options_page(), end="")' > docs/options.md

.PHONY: lint
lint: $(VENV)/.test ## check style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: quick
quick: $(VENV)/.test ## run the fast tests: no Ray, no S3 server (two minutes on 2 cores)
	$(PYTEST) $(PARALLEL) -m "not ray and not s3 and not slow and not faults and not chaos and not cluster"

.PHONY: test
test: lint ## lint, then run all tests but those of faults and chaos (under 12 minutes on 2 cores)
	@$(MAKE) --no-print-directory -j 2 test-files test-ray

# Ray mostly waits for processes that start, so the others run meanwhile.
.PHONY: test-files test-ray
test-files:
	$(PYTEST) $(PARALLEL) -m "not ray and not faults and not chaos and not cluster"

test-ray:
	$(PYTEST) -m "ray and not faults and not chaos and not cluster"

.PHONY: faults
faults: $(VENV)/.test ## run the tests that kill, hang and cut whole jobs, and other long ones (half an hour; CI)
	$(PYTEST) -rs $(PARALLEL) --timeout 600 -m "faults and not chaos and not cluster"

.PHONY: floors
floors: ## run the fast tests with the oldest versions of the dependencies that are allowed
	PYTHON=$(PYTHON) .ci/floors

.PHONY: chaos
chaos: $(VENV)/.test ## run the long tests that kill, cut and delay jobs at random (many hours; of these, 1,000 kills of a pool 2 to 4)
	$(PYTEST) -m chaos

.PHONY: parity
parity: $(VENV)/.test ## compare results with the peers' in an environment of their own (downloads several GB)
	$(BIN)/python -m tests.parity

.PHONY: bench-peers
bench-peers: $(VENV)/.test ## compare speed with the peers', in the same environment
	$(BIN)/python -m tests.peers

.PHONY: exports
exports: $(VENV)/.test ## read exports with the libraries and tools of others, in environments of their own (some GB)
	$(BIN)/python -m tests.readers

.PHONY: grid
grid: $(VENV)/.test ## compare the pixels of a generated grid of images with those of independent readers
	$(BIN)/python -m tests.grid
	$(BIN)/python -m tests.grid coco

.PHONY: lakehouse
lakehouse: $(VENV)/.test ## publish to Iceberg and Delta tables, in an environment of its own (250 MB)
	$(BIN)/python -m tests.lakehouse

.PHONY: cluster
cluster: $(VENV)/.test ## run cluster/ before validators, on a real Slurm (root), Ray job server and Prometheus (an hour)
	$(PYTEST) -rs --timeout 3600 -m cluster

.PHONY: triton
triton: $(VENV)/.test ## run the kernels for GPUs in Triton's interpreter, in an environment of its own (1 GB)
	$(BIN)/python -m tests.triton_kernels

.PHONY: airflow
airflow: $(VENV)/.test ## run the DAG of cluster/airflow in an Airflow of its own (500 MB)
	$(BIN)/python -m tests.schedulers

.PHONY: clean
clean: ## remove environments, caches and demo output
	rm -rf $(VENV) .venv-* build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache \
	  .hypothesis .import_linter_cache demo-output demo-output-s3
	find segcore tests -name __pycache__ -type d -prune -exec rm -rf {} +
