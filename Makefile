# `make demo` and `make test` need Python ≥ 3.11 and nothing else: they make their own environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint docs clean

demo: $(VENV)/installed
	$(BIN)/cryptomnesia demo -o demo-output

test: $(VENV)/installed-test
	$(BIN)/pytest --numprocesses auto tests src
	$(BIN)/pytest docs  # in one process: the examples of a page share its namespace

# the tests marked `slow`: fuzzing at full size, and tables over many models
test-slow: $(VENV)/installed-test
	$(BIN)/pytest --numprocesses auto -m slow tests

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# needs no network; every warning is an error (with --quiet MkDocs would not count them)
docs: $(VENV)/installed-docs
	$(BIN)/python benchmarks/publish.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# torch goes first: asked for by name and version it may be a build that is already at hand
$(VENV)/torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/torch pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $@

$(VENV)/installed-docs: $(VENV)/torch pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) demo-output site
