# make demo   sound and a report, offline, from nothing but git, Python and make
# make demo-music   the same for music: loops, a codec and a small MusicGen, in minutes
# make test   all tests but the slow ones and those for a GPU or published weights (adds PyTorch and the rest to .venv)

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
CONSTRAINTS := -c constraints.txt
comma := ,
MLX := $(if $(filter Linux,$(shell uname -s)),[cpu],)
ALL := $(if $(filter Linux,$(shell uname -s)),[$(if $(CUDA),cuda,cpu)$(comma)torch$(comma)test],[torch$(comma)test])

.PHONY: demo demo-music test test-slow test-cuda test-weights lint bench clean

demo: $(VENV)/.mlx
	$(PY) -m examples.demo

demo-music: $(VENV)/.mlx
	$(PY) -m examples.demo_music

test: $(VENV)/.all
	$(PY) -m pytest -n 2 -m "not slow and not cuda and not weights"

test-slow: $(VENV)/.all
	$(PY) -m pytest -m slow

test-cuda: $(VENV)/.all
	$(PY) -m pytest -m cuda

test-weights: $(VENV)/.all
	HF_HUB_OFFLINE=0 $(PY) -m pytest -m weights

lint: $(VENV)/.all
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

bench: $(VENV)/.all
	$(PY) -m pip install -q $(CONSTRAINTS) mlx-audio==0.6.2
	AUDIOSMITH_BLAS=openblas $(PY) -m benchmarks.csm_frames --compile
	$(PY) -m benchmarks.csm_depth_fraction

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade pip
	touch $@

$(VENV)/.mlx: $(VENV)/.created pyproject.toml constraints.txt
	$(PY) -m pip install -q $(CONSTRAINTS) -e ".$(MLX)"
	touch $@

# PyTorch goes first: with that version in place nothing pulls in another build.
$(VENV)/.all: $(VENV)/.created pyproject.toml constraints.txt
	$(PY) -m pip install -q $(CONSTRAINTS) torch
	$(PY) -m pip install -q $(CONSTRAINTS) -e ".$(ALL)"
	touch $@ $(VENV)/.mlx

clean:
	rm -rf $(VENV) demo_output .pytest_cache .ruff_cache
