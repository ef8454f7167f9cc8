# Two commands matter: `make train` pretrains the quickstart, `make test` runs the tests.
# Each sets up what it needs in .venv, from the versions in constraints.txt.

PYTHON ?= $(or $(shell command -v python3.12), $(shell command -v python3))
VENV := .venv
RUN := $(VENV)/bin
READY := $(VENV)/ready

# glibc hands freed blocks back to the system, and XLA's CPU backend then faults a gigabyte of
# temporaries in anew at every step; kept, a step is faster (docs/performance.md).
train bench saving: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:$\
	glibc.malloc.trim_threshold=8000000000:glibc.malloc.arena_max=1

.PHONY: train test fuzz check format bench saving soak plan-all clean

train: $(READY)  ## prepare text and images, pretrain a small Gemma 3 on them, sample, draw its curves
	$(RUN)/gemma-train prepare data_recipes/quickstart.py
	$(RUN)/gemma-train embed data_recipes/quickstart_images.py
	$(RUN)/gemma-train prepare data_recipes/quickstart_images.py
	$(RUN)/gemma-train train configs/quickstart.py
	$(RUN)/gemma-train sample runs/quickstart --prompt "def __init__(self" --prompt "import os" --save
	$(RUN)/gemma-train report runs/quickstart

test: $(READY)  ## every test that needs no accelerator
	$(RUN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not tpu"

fuzz: $(READY)  ## every reader of files with 10,000 damaged inputs (drawn reports: 1,000): three quarters of an hour
	$(RUN)/python -m tests.fuzz

check: $(READY)  ## format, lint and types
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/basedpyright

format: $(READY)  ## put the code in its one format
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

bench: $(READY)  ## the benchmarks behind the performance claims
	$(RUN)/python benchmarks/cpu_step.py
	$(RUN)/python -m benchmarks.distillation
	$(RUN)/python benchmarks/data.py
	$(RUN)/python -m benchmarks.images
	$(RUN)/python -m benchmarks.attention
	$(RUN)/python -m benchmarks.saving

saving: $(READY)  ## what saving costs the loop: five minutes
	$(RUN)/python -m benchmarks.saving

soak: $(READY)  ## a hundred kills, and two hundred and fifty damaged checkpoints: five minutes
	$(RUN)/python -m pytest -s -m slow tests/commands/test_soak.py

plan-all: $(READY)  ## the gates on the meshes of the Gemma 3 report, then docs/pods.md's tables: hours
	$(RUN)/python -m pytest -m slow tests/compile
	mkdir -p runs
	$(RUN)/python -m benchmarks.pod_compile --lean --table-2 --long --keep runs/pod_compile.jsonl --write docs/pods.md

clean:  ## remove what the commands above made
	rm -rf $(VENV) runs data .pytest_cache .ruff_cache *.egg-info

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[develop]'
	touch $(READY)
