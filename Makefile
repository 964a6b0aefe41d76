# Everything runs in $(VENV), which is made on first use. Python 3.11 or newer and make are all it takes.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install

.DEFAULT_GOAL := help
.PHONY: help run test lint bench bench-peers bench-count lock clean
.DELETE_ON_ERROR:

help: ## Show this list
	@echo "usage: make TARGET [ARGS='...'] [PYTHON=python3.12]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.run-installed ## Start Tollgate with a fresh key, in front of OpenAI or a simulated one
	@exec $(BIN)/tollgate serve --demo $(ARGS)

# A third of their time tests wait: three at a time keep two cores busy.
test: $(VENV)/.test-installed ## Run all tests
	$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

lint: $(VENV)/.test-installed ## Check format, style, types, the direction of imports and the size of modules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python .ci/check_modules.py proxy

bench: $(VENV)/.test-installed ## Measure, beside bare servers, and set what is seen against its targets (ARGS=--quick)
	$(BIN)/python bench/run.py $(ARGS)

bench-peers: $(VENV)/.test-installed ## Measure beside other gateways, installed for it (needs Node.js)
	$(BIN)/python bench/peers.py $(ARGS)

bench-count: $(VENV)/.test-installed ## Count the instructions of the core steps, and hold them to those recorded (needs valgrind)
	$(BIN)/python bench/count.py $(ARGS)

lock: ## Resolve dependencies anew (needs uv)
	$(UV_COMPILE) --output-file deploy/requirements.lock pyproject.toml
	$(UV_COMPILE) --output-file deploy/requirements-server.lock --extra server pyproject.toml
	$(UV_COMPILE) --output-file tests/requirements.lock --extra server --group dev pyproject.toml
	$(UV_COMPILE) --output-file tests/sdks/openai-1.txt tests/sdks/openai-1.in
	$(UV_COMPILE) --output-file tests/sdks/openai-2.txt tests/sdks/openai-2.in

clean: ## Remove the environment and everything that tools leave behind
	rm -rf $(VENV) bench/.peers tests/sdks/.installed .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find proxy tests bench .ci -name __pycache__ -type d -prune -exec rm -rf {} +

UV_COMPILE = uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-header

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Tollgate needs Python 3.11 or newer, and $(PYTHON) is" \
			"$$($(PYTHON) --version 2>&1 || echo not there); name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
		exit 1; }
	@echo "Making the environment in $(VENV), once" >&2
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run-installed: deploy/requirements.lock pyproject.toml | $(BIN)/python
	@$(PIP) --require-hashes --requirement deploy/requirements.lock
	@$(PIP) --no-deps --editable .
	@touch $@

$(VENV)/.test-installed: tests/requirements.lock pyproject.toml | $(BIN)/python
	@$(PIP) --require-hashes --requirement tests/requirements.lock
	@$(PIP) --no-deps --editable .
	@touch $@ $(VENV)/.run-installed
