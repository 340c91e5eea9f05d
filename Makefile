# make help
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
SCALE  ?= full
PAPERS := aft pbe fmp fst tnr backdoorbench
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-wide test-slow test-pretend test-gpu check format lint types docs picture goldens wheel clean $(PAPERS:%=reproduce-%)

help:            ## this list
	@awk -F ':.*## ' '/^[a-zA-Z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## a virtual environment in .venv with the versions of constraints.txt

$(READY): pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
		uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
		uv pip install --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'; \
	else \
		$(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'; \
	fi
	@touch $(READY)

demo: setup      ## plant a backdoor in a digit classifier, purify it, print the table
	$(BIN)/bdx attack=badnets defense=fst
	@echo "next: $(BIN)/bdx list (what there is), bdx show defense=fst, bdx -m attack=badnets defense=ft,fst,aft; see README.md"

reproduce-PAPER: ## aft, pbe, fmp, fst, tnr or backdoorbench: its table beside ours; SCALE=small or cpu, SETTINGS="dataset.root=DIR"
$(PAPERS:%=reproduce-%): reproduce-%: setup
	$(BIN)/bdx reproduce $* --scale $(SCALE) $(SETTINGS)

test: setup      ## the quick tests, under 5 minutes on two cores
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-wide: setup ## the quick and the wide tests, as CI runs them: whole commands, sweeps, every setting; three times as long
	$(BIN)/python -m pytest -n 2 --dist worksteal --wide

test-slow: setup ## the slow tests
	$(BIN)/python -m pytest -m slow

test-pretend: setup  ## every method on a pretended GPU, minutes
	$(BIN)/python -m pytest -m pretend

test-gpu: setup  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

check: setup lint types test  ## what a change must pass before CI: format, lint, types, docs in sync, quick tests
	$(BIN)/python scripts/methods_page.py --check

format: setup    ## rewrite the code's layout
	$(BIN)/ruff format . && $(BIN)/ruff check --fix --quiet .

lint: setup      ## layout and lint, nothing rewritten
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: setup     ## mypy, strict, on the package
	$(BIN)/mypy

docs: setup      ## rewrite METHODS.md and docs/methods/; trains nothing
	$(BIN)/python scripts/methods_page.py

picture: setup   ## run the demo and redraw docs/demo.svg, the README's picture
	$(BIN)/python scripts/demo_picture.py

goldens: setup   ## rewrite tests/goldens.json; review the difference
	BDX_GOLDENS=write $(BIN)/python -m pytest tests/test_triggers.py

wheel: setup     ## dist/bdx-*.whl
	$(BIN)/python -m build --wheel --no-isolation

clean:           ## remove what is built; outputs/ stays
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache
