# One virtual environment, made on first use and brought up to date only when what it is made from changes.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help site test world lint types

help:
	@echo "make site    run the bundled cases, and build their report: site/index.html"
	@echo "make test    run the tests"
	@echo "make world   measure SketchWorld's bundled weights"
	@echo "make lint    look for what ruff objects to"
	@echo "make types   check the types of the panel's scripts; needs npx"

# A case that failed has a page that says so; what could not be asked at all has none.
site: $(STAMP)
	$(BIN)/vsp-report run --out site; ran=$$?; \
	  test $$ran = 2 || $(BIN)/vsp-report build --out site && exit $$ran

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

world: $(STAMP)
	$(BIN)/vsp-report sketchworld eval

lint: $(STAMP)
	$(BIN)/ruff check .

# The scripts are published as they are written; TypeScript only reads what their comments say of types.
types:
	npx --yes --package typescript@7.0.2 tsc --allowJs --checkJs --noEmit --strict --target es2022 \
	  --lib es2022,dom,dom.iterable --types "" templates/static/panel.js templates/static/live.js templates/static/atlas-steer.js

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
