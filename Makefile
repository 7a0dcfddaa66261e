# make setup | curriculum | test | lint | bench
PYTHON ?= $(firstword $(shell command -v python3.11 python3))
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: setup curriculum test test-all lint format bench parity clean

setup: $(VENV)/ready

# --no-deps: requirements.lock names every package, the build's too, so nothing is left to resolve.
$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] != (3, 11))" || { echo "error: Python 3.11 is needed, as requirements.lock is for it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# The tiny curriculum, end to end: make curriculum ARGS="sources.text=books/*.txt run=books"
curriculum: setup
	$(BIN)/python flows/full_curriculum.py curriculum=tiny placement=local $(ARGS)

# Two processes for what does not itself start processes on every core; a file's tests stay together.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile tests --ignore tests/system
	$(BIN)/python -m pytest tests/system

# With the cases that `test` leaves out for their time.
test-all: setup
	$(BIN)/python -m pytest -m '' -n 2 --dist loadfile tests --ignore tests/system
	$(BIN)/python -m pytest -m '' tests/system

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The peers of the benchmarks and of the parity tests: torch for the CPU, 200 MB.
parity: setup
	$(BIN)/python -m pip install --quiet "torch==2.13.0" "diffusers==0.42.1"

bench: parity
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/ring_attention.py
	$(BIN)/python benchmarks/memory_by_length.py
	$(BIN)/python benchmarks/packing.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/generate.py
	$(BIN)/python benchmarks/vision.py
	$(BIN)/python benchmarks/checkpoint.py
	$(BIN)/python benchmarks/goodput.py

clean:
	rm -rf $(VENV) *.egg-info
