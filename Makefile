# One virtual environment, made when something needs it; PYTHON names the interpreter that makes it (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test test-gpu chaos check lint-infra infra format quality bench-train bench-sample bench-shard bench-load bench-fit bench-sample-job bench-quality docs clean
.DELETE_ON_ERROR:

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(INSTALLED): pyproject.toml infra/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c infra/constraints.txt -e '.[dev]'
	@touch $@

# Not by the extra: their own dependency, torchvision, is for other builds of torch (see networks.py, load.py).
PEERS := denoising-diffusion-pytorch==2.3.4 ema-pytorch==0.8.3 pytorch-fid==0.3.0 mosaicml-streaming==0.13.0 \
	litdata==0.2.76 torch-fidelity==0.4.0
BENCH := $(VENV)/.bench

$(BENCH): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c infra/constraints.txt -e '.[bench]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(PEERS)
	@touch $@

install: $(INSTALLED)  ## Make .venv with the pinned dependencies

demo: $(INSTALLED)  ## The whole job on scikit-learn's digits, into ./runs
	$(BIN)/ddpm run digits

test: $(INSTALLED)  ## All tests but the slow ones
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-gpu: $(INSTALLED)  ## The tests that need a GPU; elsewhere they are skipped
	$(BIN)/python -m pytest -m gpu

chaos: $(INSTALLED)  ## The slow tests that kill things
	$(BIN)/python -m pytest -m chaos

check: $(INSTALLED)  ## Lint, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lint-infra: $(INSTALLED)  ## Judge manifests, image and compose file, without a cluster
	cd infra && PYTHONPATH=.. $(abspath $(BIN))/python -m lint

infra: $(INSTALLED)  ## Write the manifests under infra/ from workflows/manifests
	$(BIN)/python -m workflows.manifests infra

format: $(INSTALLED)  ## Let ruff lay out the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(INSTALLED)  ## Judge the demo's samples with a classifier of real digits (after make demo)
	$(BIN)/python tests/quality/digits.py

bench-train: $(BENCH)  ## Training steps beside diffusers and lucidrains, into tests/bench/RESULTS.md
	$(BIN)/python tests/bench/train.py

bench-sample: $(BENCH)  ## Sampling beside diffusers, into tests/bench/RESULTS.md
	$(BIN)/python tests/bench/sample.py

bench-shard: $(INSTALLED)  ## Sharding beside Ray Data and webdataset, into tests/bench/RESULTS.md
	$(BIN)/python tests/bench/shard.py

bench-fit: $(INSTALLED)  ## The training job beside its bare step, into tests/bench/RESULTS.md
	$(BIN)/python tests/bench/fit.py

bench-sample-job: $(INSTALLED)  ## The sampling job beside its bare sampler, into tests/bench/RESULTS.md
	$(BIN)/python tests/bench/sample_job.py

bench-load: $(BENCH)  ## Loading beside webdataset, mosaicml-streaming and litdata, into tests/bench/RESULTS.md
	$(BIN)/python tests/bench/load.py

bench-quality: $(BENCH)  ## Which recipe and sampler need the least computing, into tests/bench (hours)
	$(BIN)/python tests/bench/quality.py

docs: $(INSTALLED)  ## Redraw the pictures of diffusion/README.md (two minutes)
	$(BIN)/python tests/docs/draw.py

clean:  ## Remove the virtual environment and caches, never ./runs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
