# One virtual environment, made on first use and brought up to date only when what it is made from changes.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help site test world lint

help:
	@echo "make site    run the bundled cases, and build their report: site/index.html"
	@echo "make test    run the tests"
	@echo "make world   measure SketchWorld's bundled weights"
	@echo "make lint    look for what ruff objects to"

site: $(STAMP)
	$(BIN)/vsp-report run --out site
	$(BIN)/vsp-report build --out site

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

world: $(STAMP)
	$(BIN)/vsp-report sketchworld eval

lint: $(STAMP)
	$(BIN)/ruff check .

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
