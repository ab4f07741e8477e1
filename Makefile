# make demo   solve a flow on a fresh machine; writes results/demo.h5 and results/demo.png
# make test   the whole test suite (PYTEST_ARGS="-m 'not slow'" for the quick part)
# make docs   checks links and Python blocks of the documentation, builds the site in build/site
# make bench  speed: products, solves, growth, full runs; about ten minutes of one idle core, tables on the screen
# make test-faults   crashes, kills, full disks and broken files at full length (a quarter of an hour or more); prints its counts
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
# one thread per process: two test processes already fill two cores, and bits must not depend on the thread count
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-faults lint format types docs bench clean

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[plot,xarray,eval,flows,data,test,dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/pwgf run styblinski-tang --dim 2 --out results/demo.h5 --overwrite
	$(BIN)/pwgf info results/demo.h5
	$(BIN)/pwgf plot results/demo.h5 --out results/demo.png

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

test-faults: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 -m faults tests

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed
	$(BIN)/mypy

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

docs: $(VENV)/.docs
	$(BIN)/python -m pytest -n 2 tests/docs
	rm -rf build/docs
	mkdir -p build/docs/results
	cp -r README.md CHANGELOG.md CONTRIBUTING.md docs build/docs
	cp results/*.md results/*.png build/docs/results
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.installed
	for part in products solves growth runs; do $(BIN)/python -m benchmarks.$$part || exit 1; done

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
