# Everything here sets itself up: a fresh machine needs only Python (>= 3.11), pip and make.
#
# TORCH picks the torch wheel. The plain release takes whatever wheel your package index serves for this machine:
# on a GPU machine PyPI serves the CUDA build. Another build is asked for with TORCH_ARGS, e.g.
#   make demo TORCH_ARGS="--index-url URL", with the URL that PyTorch's "Get started" page gives for a CUDA version
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_ARGS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-long test-interop check format setup clean
.DELETE_ON_ERROR:

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH_ARGS) "$(TORCH)" -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	touch $@

demo: $(READY)
	$(BIN)/mlora-sched demo

test: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: $(READY)
	$(BIN)/pytest -m "slow or not slow" --timeout 7200

# MixLoRA exports against the `mixlora` package, in an environment of its own that is kept in .cache
test-interop: $(READY)
	$(BIN)/python -m tests.interop.mixlora_package --env .cache/interop --torch "$(TORCH)" --torch-args="$(TORCH_ARGS)"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .cache demo-out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
