# Everything a stranger needs: `make run` and `make test`, on a machine with Python 3.11+.
PYTHON ?= python3
VENV ?= .venv

.PHONY: run test lint frontend clean

run: $(VENV)/.installed  ## install, then simulate the headline case
	$(VENV)/bin/simpipe run --schedule dualpipe --ranks 8 --microbatches 20

test: $(VENV)/.installed-test lint  ## install with the test tools, then lint, check types and test
	$(VENV)/bin/python -m pytest -n 2

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy -p simpipe.simulator -p simpipe.schedules -p simpipe.commands -m simpipe.cli

$(VENV)/.installed: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@ $(VENV)/.installed

frontend:  ## with Node.js: check the page's sources, and that they build what simulator/views/page holds
	cd frontend && npm ci --silent --no-audit --no-fund && npm run --silent check

clean:
	rm -rf $(VENV)
