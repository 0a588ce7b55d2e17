# `make` alone shows what there is. ARGS go to the command: make dev ARGS="--port 4001".

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help dev test check image-check image-test deploy-check deploy-test drills load soak upgrade-test aws-calls fuzz metrics-page trace-page observability-test mutants table scaling lock clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)

# Python compiles what it imports once, and not at each start: the API alone imports 1,380 modules.
unexport PYTHONDONTWRITEBYTECODE

# The lock is whole: nothing is resolved again, and every file is checked against its hash.
LOCKED := --no-deps --require-hashes -r
ITSELF := --no-deps --no-build-isolation -e .
ifdef UV
INSTALL := $(UV) pip install --quiet --compile-bytecode --python $(BIN)/python
else
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif

help: ## Shows this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# A file is one process's, in the order of tests/conftest.py. Tests wait for servers now and then, so
# there is one process more than the two cores of CI; with two more, a run took longer.
SHARED := -n 3 --dist loadfile --no-loadscope-reorder

dev: $(VENV)/.local ## Starts everything on this machine, until Ctrl-C
	@exec $(BIN)/k9 dev $(ARGS)

test: $(VENV)/.dev ## Runs every test; without ARGS with branch coverage, which has a floor, and the slowest
	$(BIN)/python -m pytest $(SHARED) $(if $(ARGS),$(ARGS),-p tests.branch_coverage --durations=40 --durations-min=5)

check: $(VENV)/.dev ## The fast loop: format, lint, types, import rules, template, unit tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/cfn-lint deploy/cloudformation/*.yaml
	$(BIN)/python -m pytest -q $(SHARED) tests/unit $(ARGS)

image-check: $(VENV)-infra/.ready ## Checks the Dockerfiles and compose.yaml, without Docker
	$(VENV)-infra/bin/hadolint deploy/container/Dockerfile*
	$(VENV)-infra/bin/docker-compose --profile '*' config --quiet

image-test: image-check $(VENV)/.dev ## Builds the image, and runs compose.yaml under faults (Docker, or root)
	$(BIN)/python -m tests.image.run

load: $(VENV)/.dev ## Puts load on the `make dev` of this directory
	$(BIN)/python -m tests.load.run $(ARGS)

soak: $(VENV)/.dev ## Puts load on a stack of its own for half an hour, and tells what grew
	$(BIN)/python -m tests.load.soak $(ARGS)

upgrade-test: $(VENV)/.dev ## Runs commit 23e14f8 beside this code: an upgrade and a downgrade (7 min)
	$(BIN)/python -m tests.upgrade $(ARGS)

deploy-check: $(VENV)-infra/.ready ## What is deployed by: checkov over the templates, shellcheck over the script
	$(VENV)-infra/bin/shellcheck deploy/*.sh
	$(VENV)-infra/bin/checkov --config-file deploy/checkov.yaml

deploy-test: $(VENV)/.dev ## Builds, pushes and deploys by deploy.sh, on the embedded AWS (Docker, docker-registry)
	$(BIN)/python -m pytest -q tests/e2e/deploy_journey.py
	$(BIN)/python -m tests.image.push

aws-calls: $(VENV)/.dev ## Records anew which calls of AWS the API and the worker make (20 minutes)
	rm -rf build/aws-calls && mkdir -p build/aws-calls
	K9_RECORD_AWS_CALLS=$(CURDIR)/build/aws-calls $(BIN)/python -m pytest -q $(SHARED) tests/api tests/worker tests/faults tests/e2e
	$(BIN)/python -m tests.aws_calls build/aws-calls

drills: $(VENV)/.dev ## Loses data and services of an embedded stack, and brings all of it back (minutes)
	for drill in backup table_lost region_lost pitr redis_lost alerts alerts_of_work; do $(BIN)/python -m tests.drills.$$drill; done

fuzz: $(VENV)/.dev ## Ten thousand requests made from the OpenAPI document, and `schemathesis run`
	$(BIN)/python -m pytest -q -s tests/api/fuzz.py $(ARGS)

metrics-page: $(VENV)/.dev ## Writes the table of deploy/docs/metrics.md from the code
	$(BIN)/python -m tests.observability.page

trace-page: $(VENV)/.dev ## Runs a build with tracing on, and writes deploy/docs/trace.md from it
	$(BIN)/python -m tests.observability.trace_page

observability-test: $(VENV)/.dev ## Runs every query of rules and dashboard on a real Prometheus and stack
	$(BIN)/python -m tests.observability.check $(ARGS)

# What K9 runs with, in an environment that has nothing else.
RUNTIME := $(VENV)-runtime
SUPPLY := $(VENV)-supply
.PHONY: sbom licences audit release
sbom: $(RUNTIME)/.ready $(SUPPLY)/.ready ## Writes what K9 runs with as a CycloneDX document
	@mkdir -p build
	$(SUPPLY)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o build/sbom.cdx.json $(RUNTIME)/bin/python
	@echo build/sbom.cdx.json

licences: $(VENV)/.dev $(RUNTIME)/.ready $(SUPPLY)/.ready ## Lists the licences of what K9 runs with; fails on one not allowed
	@$(BIN)/python -m tests.supply.licences $(SUPPLY)/bin/pip-licenses $(RUNTIME)/bin/python

audit: $(VENV)/.dev $(SUPPLY)/.ready ## Looks for known vulnerabilities of what K9 runs with
	@$(BIN)/python -m tests.supply.audit $(SUPPLY)/bin/pip-audit requirements/runtime.txt

release: $(VENV)/.dev ## Makes the tag of a release: make release VERSION=1.2.3
	@$(BIN)/python -m tests.supply.release "$(VERSION)"

mutants: $(VENV)/.mutants ## Changes code in small ways, and lists what no test notices (hours)
	$(BIN)/python -m tests.mutants $(ARGS)

table: $(VENV)/.plots ## Measures every figure of speed, and writes a table and a plot (an hour)
	$(BIN)/python -m tests.benchmarks.table $(ARGS)

scaling: $(VENV)/.plots ## Measures as the rows grow, to a million: a table and plots (hours)
	$(BIN)/python -m tests.benchmarks.scaling $(ARGS)

# Versions that are locked stay, unless UPGRADE is set: make lock UPGRADE=1.
# Each file holds the one before it, at the same versions. No host name is written into them, so
# that they install from whichever index is configured. setuptools is the build backend.
COMPILE = $(if $(UV),$(UV),$(BIN)/uv) pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
	$(if $(UPGRADE),--upgrade)
lock: $(VENV)/pyvenv.cfg ## Locks the dependencies anew into requirements/
	$(if $(UV),,@$(BIN)/python -c 'import uv' 2>/dev/null || $(INSTALL) uv)
	$(COMPILE) pyproject.toml -o requirements/runtime.txt
	$(COMPILE) pyproject.toml --extra local --group build -c requirements/runtime.txt -o requirements/local.txt
	$(COMPILE) pyproject.toml --extra lambda --extra local --group dev -c requirements/local.txt -o requirements/dev.txt
	$(COMPILE) pyproject.toml --extra lambda --group build -c requirements/dev.txt -o requirements/lambda.txt
	$(COMPILE) pyproject.toml --extra lambda --extra local --group mutants -c requirements/dev.txt -o requirements/mutants.txt
	$(COMPILE) pyproject.toml --extra lambda --extra local --group plots -c requirements/dev.txt -o requirements/plots.txt
	$(COMPILE) --group build -c requirements/local.txt -o requirements/build.txt
	$(COMPILE) --group infra -o requirements/infra.txt
	$(COMPILE) --group supply -o requirements/supply.txt

clean: ## Removes what was installed or made by tools; the data in .k9 stays
	rm -rf $(VENV) $(VENV)-* build mutants *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
ifdef UV
	$(UV) venv --quiet --allow-existing --python '>=3.11' $(VENV)
else
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "K9 needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1 || true):" \
			"name a newer one, as in make dev PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
endif

# Programs whose dependencies clash with K9's: each set in an environment of its own.
$(VENV)-%/.ready: requirements/%.txt
ifdef UV
	$(UV) venv --quiet --allow-existing --python '>=3.11' $(@D)
	$(UV) pip install --quiet --compile-bytecode --python $(@D)/bin/python $(LOCKED) $<
else
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(LOCKED) $<
endif
	@touch $@

# A stamp a set: what is in it is installed once, and again when its lock or the project changes.
$(VENV)/.%: requirements/%.txt pyproject.toml | $(VENV)/pyvenv.cfg
	@echo "installing requirements/$*.txt into $(VENV)"
	@$(INSTALL) $(LOCKED) requirements/$*.txt
	@$(INSTALL) $(LOCKED) requirements/build.txt
	@$(INSTALL) $(ITSELF)
	@touch $@
