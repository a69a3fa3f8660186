# Both commands work from nothing: they make .venv, install the pinned versions, and run.
#   make demo    register two real heads
#   make test    the fast tests
#   make docs    the documentation, in build/site
PY ?= python3
V := .venv
CLIENTS := .venv-clients
READY := $(V)/.ready
PYTEST := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(V)/bin/python -m pytest -n 2

.PHONY: demo test test-slow test-clients lint typecheck bench docs install clean

demo: $(READY)
	$(V)/bin/python examples/demo.py

test: $(READY)
	$(PYTEST)

test-slow: $(READY)
	$(PYTEST) -m slow --timeout 3600

test-clients: $(CLIENTS)/.ready
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(CLIENTS)/bin/python tests/clients/matrix.py

lint: $(READY)
	$(V)/bin/ruff check regenv regagents tests examples benchmarks
	$(V)/bin/lint-imports

typecheck: $(READY)
	$(V)/bin/mypy

bench: $(READY)
	for script in $$(grep -l __main__ benchmarks/*.py | grep -v "peer_worker\|verdict_fit\|choice\|steps"); do $(V)/bin/python $$script || exit 1; done

docs: $(V)/.docs
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(V)/bin/python -m mkdocs build --strict

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PY) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PY=python3.x" if sys.version_info < (3, 11) else 0)'
	test -x $(V)/bin/python || $(PY) -m venv $(V)
	$(V)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(V)/.docs: $(READY)
	$(V)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

# The clients want older versions of some packages.
$(CLIENTS)/.ready: pyproject.toml constraints-clients.txt
	test -x $(CLIENTS)/bin/python || $(PY) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-clients.txt -e '.[clients]'
	touch $@

clean:
	rm -rf $(V) $(CLIENTS) .pytest_cache .mypy_cache .ruff_cache
