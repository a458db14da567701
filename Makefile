# The commands a person needs. `make demo` and `make test` set up everything themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint types format env dev devkit system clean-demo

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

demo: system env  ## from nothing to four experts, what drives on them, a route and a report; without data or GPU
	@BIN="$(BIN)" bash scripts/demo.sh  # its sizes are variables: see there

test: system dev  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: dev  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: dev  ## types of the library
	$(BIN)/pyright --pythonpath $(BIN)/python

format: dev  ## let ruff put things in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

system:
	@bash scripts/system_libraries.sh

env: $(VENV)/.installed
dev: $(VENV)/.installed-dev

$(BIN)/uv:
	@echo "Creating the environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "error: $(PYTHON) can't make environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv

$(VENV)/.installed: pyproject.toml | $(BIN)/uv
	@echo "Installing AutoMoE and what it needs into $(VENV) (about 6 GB with PyTorch)"
	@$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.installed
	@$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -e '.[dev]'
	@touch $@ $(VENV)/.installed

devkit: dev  ## the official nuScenes devkit and CARLA's client, for the tests that compare with them
	@$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -e '.[devkit,carla]'
	@$(BIN)/uv pip install --python $(BIN)/python --no-deps nuscenes-devkit==1.2.0  # it asks for an older numpy

clean-demo:  ## remove what the demo made
	rm -rf datasets/embedded models/checkpoints/*/tiny models/runs/*/tiny reports/demo
	rm -rf models/checkpoints/carla_policy/tiny_blind models/runs/carla_policy/tiny_blind
