# Everything a person needs, each target setting up what is missing. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.setup-done
STUDY ?= reference_report
SEEDS ?=
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo run test check ui golden audit bench soak report docs lock clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(READY) ## create .venv with the pinned packages and medx itself

# --no-deps: the lock already lists everything, so pip has nothing to resolve.
$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: $(READY) ## the main job on synthetic phantoms: three privacy budgets, one table
	$(BIN)/python -m medx.run experiment=demo -m

run: $(READY) ## the main job on PneumoniaMNIST; more overrides in ARGS="..."
	$(BIN)/python -m medx.run privacy.epsilon=1,5,10 $(ARGS) -m

test: $(READY) ## the test suite (real data where MEDX_DATA points at it)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests $(ARGS)

check: $(READY) ## ruff, mypy, import-linter
	$(BIN)/ruff check medx hydra_plugins tests benchmarks docs setup.py
	$(BIN)/ruff format --check medx hydra_plugins tests benchmarks docs setup.py
	$(BIN)/mypy medx
	$(BIN)/lint-imports

ui: $(READY) ## the MLflow UI, on this machine only (PORT=5001)
	$(BIN)/python -m medx.tracking ui $(if $(PORT),--port $(PORT))

golden: $(READY) ## prove that this tree gives the bits of another revision (BASE=main)
	$(BIN)/python -m tests.same_bits $(or $(BASE),main) $(ARGS)

soak: $(READY) ## a study on real nodes through random faults, and whether anything was lost
	$(BIN)/python -m tests.site.soak $(ARGS)

audit: $(READY) ## canaries against every mechanism: what can be proved beside what is claimed, half an hour
	$(BIN)/python -m medx.audit --reference $(ARGS)

bench: $(READY) ## the speed ratios behind docs/benchmarks.md (DEVICE=cuda on a GPU)
	$(BIN)/python -m benchmarks $(if $(DEVICE),--device $(DEVICE)) $(ARGS)

report: $(READY) ## run what the study still lacks, then render report/index.html
	$(BIN)/python -m medx.report --study $(STUDY) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

docs: $(READY) ## the documentation site, site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lock: $(READY) ## pin the requirements anew
	$(BIN)/uv pip compile pyproject.toml --extra ray --extra sweeps --extra docs --extra dev --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header -q -o requirements.lock

clean: ## remove build output and caches of this folder
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
