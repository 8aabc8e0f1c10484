# Two commands: `make study` answers the first question, `make test` runs all that CI runs.
PYTHON ?= python3
# Extra options for pip, for example where the CPU build of PyTorch is to be found:
#   make study PIP_OPTIONS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_OPTIONS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) --constraint constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: study test check notebooks benchmarks clean

study: .venv/installed
	$(BIN)/scaling run sweeps/first_study.yaml
	$(BIN)/scaling collect sweeps/first_study.yaml --out results/first_study.parquet
	$(BIN)/scaling report results/first_study.parquet

test: check
	$(BIN)/pytest

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

notebooks: .venv/installed-test
	$(BIN)/jupyter execute --inplace analysis/*.ipynb

benchmarks: .venv/installed-test
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.prediction
	$(BIN)/python -m benchmarks.sweeps
	$(BIN)/python -m benchmarks.chaos
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.rollouts
	$(BIN)/python -m benchmarks.fits
	$(BIN)/python -m benchmarks.coverage
	$(BIN)/python -m benchmarks.size_test
	$(BIN)/python -m benchmarks.collect

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "this Python cannot make environments; on Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv

# PyTorch first and alone, so that nothing else decides which build of it is taken. The kernels are compiled last.
.venv/installed: .venv/bin/python constraints.txt pyproject.toml
	$(PIP) $(TORCH)
	$(PIP) --editable '.[train]'
	$(BIN)/python -m scaling.ops
	@touch $@

# The tests compare with what d4rl and rliable hold; what these two ask for no longer builds or imports.
.venv/installed-test: .venv/installed
	$(PIP) --editable '.[test]'
	$(PIP) --no-deps d4rl rliable
	@touch $@

clean:
	rm -rf .venv runs results
