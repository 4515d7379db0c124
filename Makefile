# `make help` says what there is. PYTHON names the interpreter that makes .venv, ARGS goes on to the command.
PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help lab test train bench notebooks grade lint

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile
	@echo 'Example: make train ARGS="--data digits"'

# The set-up runs again only when one of these two files has changed.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
		echo "minivim needs Python 3.11 or newer, and $(PYTHON) was not found: name one, as in make test PYTHON=python3.12"; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("minivim needs Python 3.11 or newer, and $(PYTHON) is " \
		+ sys.version.split()[0] + ": name a newer one, as in make test PYTHON=python3.12")'
	@echo "Setting up $(VENV): this happens once."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[all]"
	@touch $(READY)

lab: $(READY) ## open the course in JupyterLab
	$(BIN)/python -m jupyterlab notebooks $(ARGS)

test: $(READY) ## run every test, and compare every notebook with its stored outputs
	$(BIN)/python -m pytest --nbval tests notebooks $(ARGS)

train: $(READY) ## train a model; ARGS as for `minivim train --help`
	$(BIN)/minivim train $(or $(ARGS),--data digits)

bench: $(READY) ## measure speed and memory; ARGS as for `minivim bench --help`
	$(BIN)/minivim bench $(or $(ARGS),scan)

notebooks: $(READY) ## rebuild the notebooks from notebooks/src; ARGS names some of them
	$(BIN)/python notebooks/build.py $(ARGS)

grade: $(READY) ## grade submissions; ARGS names notebooks or folders
	$(BIN)/minivim grade $(ARGS)

lint: $(READY) ## check style and format; mend with .venv/bin/ruff check --fix and ruff format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
