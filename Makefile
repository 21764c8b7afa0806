# Everything that a person or a machine does here. `make help` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed-to-run
STAMP := $(VENV)/.installed
# Workers of the tests; each has its own PostgreSQL. More than cores, for many tests wait most of the time.
# PYTEST_ARGS="-k lanes" narrows the tests.
TEST_WORKERS ?= 3
PYTEST_ARGS ?=
SOAK_SECONDS ?= 1800
SOAK_LOG ?= docs/results/soak.log
SOAK_SEED ?=

PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow test-compose test-faults soak lint bench notes clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

venv: $(STAMP) ## make .venv with the hpsearch command and all tools

# A no-op while the stamp is newer than what decides the installation. Another Python starts afresh: an environment
# that mixes two of them breaks in odd places.
$(RUN_STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "hpsearch needs Python 3.11 or newer; name one: make venv PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
		|| { echo "$(PYTHON) has no ensurepip; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing into $(VENV) (a few minutes the first time)"
	@made_by=$$($(PYTHON) -c 'import sys; print(sys.base_prefix, sys.version)'); \
		[ "$$(cat $(VENV)/.made-by 2>/dev/null)" = "$$made_by" ] \
		|| { $(PYTHON) -m venv --clear $(VENV) && echo "$$made_by" >$(VENV)/.made-by; }
	@$(PIP_INSTALL) --editable .
	@touch $@

$(STAMP): $(RUN_STAMP)
	@echo "installing the tools of tests and lint"
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

demo: $(RUN_STAMP) ## a real search on MNIST in under three minutes: best.json and report.html
	@if $(BIN)/hpsearch data fetch mnist; then \
		study=quickstart; set --; \
	elif $(BIN)/hpsearch data verify mnist 2>/dev/null | grep '^wrong'; then \
		echo "the files above are not MNIST's: the demo does not train on them" >&2; exit 3; \
	else \
		echo; echo "*** MNIST cannot be had here: THE DEMO RUNS ON DIGITS (1,797 images of scikit-learn) INSTEAD ***"; echo; \
		study=quickstart-digits; set -- --set data.dataset=digits --set name=quickstart-digits; \
	fi; \
	$(BIN)/hpsearch run studies/quickstart.toml --workers 1 "$$@" \
		&& $(BIN)/hpsearch export $$study -o best.json \
		&& $(BIN)/hpsearch report $$study -o report.html

lint: venv ## ruff, mypy --strict and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint ## lint, then the tests against a real PostgreSQL (and containers, where Docker answers)
	$(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist worksteal -m "not slow" $(PYTEST_ARGS)

test-slow: venv ## what `make test` leaves out: every benchmark once, small, and the longest cases of some tests
	$(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist worksteal -m slow $(PYTEST_ARGS)

test-compose: venv ## the service as containers, with faults, on a Docker engine that must be there
	HPSEARCH_REQUIRE_DOCKER=1 $(BIN)/python -m pytest -m docker tests/acceptance $(PYTEST_ARGS)

test-faults: venv ## the fault table of docs/faults.md, row by row, and a short soak
	$(BIN)/python -m pytest tests/faults --verbose $(PYTEST_ARGS)

soak: venv ## faults at random for SOAK_SECONDS (30 minutes) over study after study; the log goes to SOAK_LOG
	$(BIN)/python -m tests.faults.soak --seconds $(SOAK_SECONDS) --log $(SOAK_LOG) $(if $(SOAK_SEED),--seed $(SOAK_SEED))

bench: venv ## all benchmarks of a machine without a GPU: tables, and JSON in benchmarks/results (half an hour)
	$(BIN)/python -m benchmarks.training_speed
	$(BIN)/python -m benchmarks.start_up
	$(BIN)/python -m benchmarks.sql_statements
	$(BIN)/python -m benchmarks.report_rate
	$(BIN)/python -m benchmarks.whole_study

notes: venv ## the tutorial's three runs on MNIST again, and docs/results/notes.md with its curves (hours; resumes)
	$(BIN)/python -m benchmarks.notes

clean: ## remove .venv, caches and what the demo made (studies stay in the database)
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	rm -f best.json report.html
	find hpsearch tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
