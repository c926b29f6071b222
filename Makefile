# Region Search: `make run` starts it, `make test` proves it; both install what they need into .venv.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check -q
STEPS ?=
PROFILE ?=
ARGS ?=
export OMP_WAIT_POLICY ?= PASSIVE

TESTS := $(BIN)/python -m pytest

.PHONY: help run test test-unit test-slow lint protos bench compare bench-gpu train-pocket evaluate loadtest loadtest-flood loadtest-ui docs-site clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# pip comes last into an environment: one whose making broke off, as without Debian's python3-venv, is made again.
$(BIN)/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt constraints-torch.txt | $(BIN)/pip
	$(PIP) install -c constraints.txt -e '.[all]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt constraints-torch.txt scripts/install_test_tools.sh | $(BIN)/pip
	$(PIP) install -c constraints.txt -e '.[dev]'
	@# Not in [dev]: pip would build it against a second torch of its own choice, out of reach of the constraints.
	SAM2_BUILD_CUDA=0 $(PIP) install -c constraints.txt --no-build-isolation sam2 || echo "without sam2 its tests are skipped"
	scripts/install_test_tools.sh
	@touch $@ $(VENV)/.run

run: $(VENV)/.run  ## Install, start everything with demo images, print the URL (PROFILE=base pulls real models first)
	$(if $(PROFILE),$(BIN)/regionsearch models pull $(PROFILE))
	$(BIN)/regionsearch up --demo $(if $(PROFILE),--profile $(PROFILE))

test: $(VENV)/.dev  ## Install what the tests need and run them all, or those that ARGS selects
	$(TESTS) -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

test-unit: $(VENV)/.dev  ## The fast tests: no processes of ours, no models, no browser
	$(TESTS) $(if $(ARGS),,-n 3 --dist worksteal) -m 'not (stack or browser or slow)' $(ARGS)

test-slow: $(VENV)/.dev  ## The long suites: hundreds of crash rounds, soak runs, other engines
	$(TESTS) -m slow $(ARGS)

lint: $(VENV)/.dev  ## ruff, mypy, the architecture, the contract's style, the types of the page's scripts
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if command -v buf >/dev/null; then cd protos && buf lint; else echo "without buf the contract's style is not checked"; fi
	@if command -v tsc >/dev/null; then tsc -p gateway/web/jsconfig.json; else echo "without tsc the page's types are not checked"; fi

protos: $(VENV)/.dev  ## Generate the stubs of protos/ into regionsearch/v1
	$(BIN)/python scripts/generate_protos.py

bench: $(VENV)/.dev  ## Measure speed as ratios; writes benchmarks/out/latest.json
	$(BIN)/python -m benchmarks $(ARGS)

compare: $(VENV)/.dev  ## Measure what a user would take instead, each in its own environment; writes docs/comparison.md
	$(BIN)/python -m benchmarks.compare $(ARGS)

bench-gpu: $(VENV)/.dev  ## Measure what a GPU must prove, in 8 minutes; writes rows to benchmarks/out/gpu.md
	$(BIN)/python -m benchmarks.gpu $(ARGS)

train-pocket: $(VENV)/.dev  ## Train the pocket models (STEPS=20 for a quick run)
	scripts/install_training_data.sh
	@# Threads that wait awake: a step in 1.2 s instead of 1.55 s. The services want the others, see above.
	env -u OMP_WAIT_POLICY $(BIN)/python -m training $(if $(STEPS),--steps $(STEPS)) $(ARGS)
	$(BIN)/python -m training graph

evaluate: $(VENV)/.run  ## Measure what the models find, on the bundled held-out scenes
	$(BIN)/regionsearch evaluate --fixture $(ARGS)

loadtest: $(VENV)/.dev  ## A minute of load on a local stack; a table, HTML, CSV and a verdict
	$(BIN)/python -m loadtests $(ARGS)

loadtest-flood: $(VENV)/.dev  ## The same promises next to one caller who floods the stack
	$(BIN)/python -m loadtests --flood 24 $(ARGS)

loadtest-ui: $(VENV)/.dev  ## The same stack with Locust's page
	$(BIN)/python -m loadtests --ui $(ARGS)

docs-site: $(VENV)/.dev  ## Build the documents as a site, into site/ (ARGS="--site-dir …")
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build $(ARGS)

docs/models.md: $(VENV)/.dev FORCE
	nice $(BIN)/python -m tests.embedder.open_clip_parity $@

FORCE:

clean:  ## Remove the environment and generated files; collected data and what training keeps stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache benchmarks/out loadtests/out out site
