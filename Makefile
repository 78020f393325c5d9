# Each target works from a clean clone with nothing but Python 3.11, pip and make, and is quick the second time.

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
QUICKSTART_ARGS ?=
ZOO_ARGS ?=
BENCH_ARGS ?=
FULLSIZE_ARGS ?=
PREPARATION_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test lint docs bench zoo ranks kills fullsize preparation compile clean

help:  ## name the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Another Python: make setup PYTHON=python3.12. More for pip: PIP_ARGS=\"--index-url ...\"."

setup: $(STAMP)  ## install everything into .venv

# Rebuilt when the dependencies change; a set-up that was interrupted has no stamp and is done again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed, but $(PYTHON) is: $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "Name another one: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev,docs]'
	@touch $@

quickstart: setup  ## distil a small text-to-video model and make videos: runs/quickstart
	$(BIN)/python -m mcm.pocket.quickstart --out runs/quickstart $(QUICKSTART_ARGS)

test: setup  ## run the tests, without network
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile $(PYTEST_ARGS)

lint: setup  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/pyright

docs: setup  ## build the documentation, strictly: site/index.html
	$(BIN)/mkdocs build --strict --clean

bench: setup  ## distil and score every system of the laboratory (hours, resumable): benchmarks/pocket
	$(BIN)/mcm bench pocket --out benchmarks/pocket $(BENCH_ARGS)

zoo: setup  ## train the small networks of the pocket laboratory anew (hours)
	$(BIN)/python -m mcm.pocket.train_zoo $(ZOO_ARGS)

ranks: setup  ## compare 1, 2 and 4 processes: benchmarks/ranks.json (minutes)
	PYTHONPATH=src:tests OMP_NUM_THREADS=1 $(BIN)/python benchmarks/ranks.py

kills: setup  ## kill a run 20 times and go on: benchmarks/kills.json (half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/kills.py

fullsize: setup  ## make a step of full-size teachers on the CPU: benchmarks/fullsize.json (an hour, 24 GB)
	PYTHONPATH=src:tests $(BIN)/python benchmarks/fullsize.py $(FULLSIZE_ARGS)

preparation: setup  ## memory, restarts, damaged films and kills of mcm prepare: benchmarks/prepare.json (a quarter of an hour)
	PYTHONPATH=src:tests OMP_NUM_THREADS=1 $(BIN)/python benchmarks/prepare.py $(PREPARATION_ARGS)

compile: setup  ## check training.compile with a real compiler (minutes)
	MCM_COMPILE=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/training/test_compile.py

clean:  ## remove caches and build products; .venv and runs stay
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
