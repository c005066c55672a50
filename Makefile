# Every verb makes the virtual environment itself when it is missing or older than its specification.
PYTHON ?= python3
CHECKPOINT ?= export/demo_checkpoint/checkpoint
PROFILE ?= cpu
REPOSITORY := build/model_repository
BIN := .venv/bin
STAMP := .venv/.installed
.DEFAULT_GOAL := help
.PHONY: help setup check demo serve export test test-unit test-integration lint format bench bench-quality bench-strides bench-load bench-gateway bench-tritons bench-gpu bench-gpu-variants bench-orchestration rehearse clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## the virtual environment .venv with everything pinned

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || { \
	  echo "setup: Python 3.11 or 3.12 is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); install one (apt-get install python3.11 python3.11-venv) or name one: make setup PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "setup: $(PYTHON) has no venv; install it with: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: check export ## set up, export, start the stack, paint build/demo.jpg, stop
	$(BIN)/multsd-stack demo --request client/examples/request.json --output build/demo.jpg

serve: check export ## Triton (8000-8002) and the gateway (5000) until Ctrl-C
	$(BIN)/multsd-stack serve

check: $(STAMP) ## whether Triton could start here: libraries and ports
	@$(BIN)/multsd-stack check

export: $(STAMP) $(filter build/random_checkpoint,$(CHECKPOINT)) ## CHECKPOINT (build/random_checkpoint: made now) -> build/model_repository
	@$(BIN)/multsd-export --checkpoint $(CHECKPOINT) --output $(REPOSITORY) --profile $(PROFILE)

build/random_checkpoint: $(STAMP)
	@mkdir -p build
	PYTHONPATH=export $(BIN)/python -m demo_checkpoint.random_checkpoint $@.partial --seed 0
	@rm -rf $@ && mv $@.partial $@

test: test-unit test-integration ## all tests

test-unit: $(STAMP) ## tests of every part by itself
	$(BIN)/python -m pytest tests/unit -q --numprocesses auto

test-integration: export ## tests of the whole stack on a real Triton
	$(BIN)/python -m pytest tests/integration -q -rs --numprocesses 2
	@command -v chromium > /dev/null && command -v chromedriver > /dev/null || \
	  echo "test: Chromium is missing, so the page was NOT tested; install it with: apt-get install chromium chromium-driver" >&2

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy client gateway export model_repository/multidiffusion/1
	$(BIN)/mypy tests
	$(BIN)/mypy docker/triton docker/kubernetes

format: $(STAMP) ## let ruff put the sources in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-quality: export ## whether regions hold what their prompts say: 100 requests, about 30 minutes
	$(BIN)/python -m tests.benchmarks quality

bench-strides: export ## what views farther apart cost, and tiles of the VAE: about 10 minutes
	$(BIN)/python -m tests.benchmarks strides

bench-load: export ## many requests at once: cpu, a simulated gpu, overload, soak, deterministic; about 30 minutes
	status=0; for part in cpu gpu overload soak deterministic; do \
	  $(BIN)/python -m tests.benchmarks load $$part || status=1; done; exit $$status

bench-gateway: $(STAMP) ## what the gateway adds to a direct call
	$(BIN)/python -m tests.benchmarks gateway

bench-tritons: $(STAMP) ## two Tritons behind one gateway: one killed, one hung, both restarted; 3 minutes
	$(BIN)/python -m tests.benchmarks tritons

bench-gpu: $(STAMP) ## the torch profile beside the published method, at true size on a GPU, tiny without
	$(BIN)/python -m tests.benchmarks gpu

bench-gpu-variants: $(STAMP) ## every way to run the torch profile's UNet, without Triton
	$(BIN)/python -m tests.benchmarks gpu-variants

bench-orchestration: $(STAMP) ## what the orchestrator adds to a GPU's work, by a simulated one: 3 minutes
	$(BIN)/python -m tests.benchmarks orchestration

bench: export bench-gateway ## where the time of one request goes, and what the gateway adds
	$(BIN)/python -m tests.benchmarks request

rehearse: $(STAMP) ## FAMILY=sd15, sd2 or sdxl at true size, random weights: export, audit, compose; sd15 is served too
	$(BIN)/python -m multsd_export.rehearsal $(FAMILY)
	$(if $(filter sd15,$(FAMILY)),$(BIN)/python -m tests.benchmarks.rehearsal_request build/rehearsal/$(FAMILY))

clean: ## remove what was built, the virtual environment too
	rm -rf build .venv
