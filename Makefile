# make demo   solve a flow on a fresh machine; writes results/demo.h5 and results/demo.png
# make test   the whole test suite (PYTEST_ARGS="-m 'not slow'" for the quick part)
# make site   builds the site of the documentation in build/site, without network; warnings are errors
# make docs   the same, and its tests: links, search, every Python block, tutorials, a notebook, and in a browser (chromium)
# make bench  speed: products, solves, growth, full runs; about ten minutes of one idle core, tables on the screen
# make floors the quick tests on the oldest releases promised (floors.txt) and the oldest Python; make newest: on the newest
#             of all (TORCH=2.13.0 takes that release of torch instead)
# make dist   sdist and wheel in dist/, checked by twine
# make test-faults   crashes, kills, full disks and broken files at full length (a quarter of an hour or more); prints its counts
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
OLDEST ?= python3.11
# the first that runs: a shim on the PATH need not
NEWEST ?= $(firstword $(foreach v,3.14 3.13 3.12 3.11,$(shell python$v -c 'import sys; print(sys.executable)' 2>/dev/null)))
TORCH ?=
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
# one thread per process: two test processes already fill two cores, and bits must not depend on the thread count
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-faults floors newest lint format types docs site bench dist clean

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e ".[test,dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/pwgf run styblinski-tang --dim 2 --out results/demo.h5 --overwrite
	$(BIN)/pwgf info results/demo.h5
	$(BIN)/pwgf plot results/demo.h5 --out results/demo.png

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

test-faults: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 -m faults tests

# the quick tests in build/$(1), made by the Python $(2), installed with the arguments $(3) of pip; other releases may warn
define quick_tests_in
	$(2) -m venv --clear build/$(1)
	build/$(1)/bin/python $(PIP_INSTALL) $(3) -e ".[test]"
	build/$(1)/bin/python -m pip freeze --exclude-editable
	build/$(1)/bin/python -m pytest -n 2 -m "not slow and not faults" -W default $(PYTEST_ARGS)
endef

floors:
	mkdir -p build
	sed "s/^torch==.*/torch==$(or $(TORCH),$(shell sed -n s/^torch==//p floors.txt))/" floors.txt > build/floors.txt
	$(call quick_tests_in,floors,$(OLDEST),-c build/floors.txt)

newest:
	$(call quick_tests_in,newest,$(NEWEST),$(if $(TORCH),torch==$(TORCH)))

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed
	$(BIN)/mypy

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e ".[docs]"
	touch $@

site: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m docs.tools.build

docs: site
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/docs

$(VENV)/.release: $(VENV)/.installed
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e ".[release]"
	touch $@

dist: $(VENV)/.release
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

bench: $(VENV)/.installed
	for part in products solves growth runs; do $(BIN)/python -m benchmarks.$$part || exit 1; done

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
