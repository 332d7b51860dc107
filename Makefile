# The README's commands `make demo`, `make app`, `make test` and `make docs`; each is enough on a fresh machine
# with Python 3.10 or later.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# The demo's subject: a folder of photos, and what is in them.
SUBJECT ?= samples/flow_subjects/blue_clock
CLASS ?= clock
OUTPUT ?= outputs/$(notdir $(SUBJECT))

# On Linux without an NVIDIA GPU, the small build of torch.
CPU_TORCH := torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu --retries 1
TORCH := $(shell [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null && echo '$(CPU_TORCH)' || echo torch)

# What pip may install; CI names its lock file.
CONSTRAINTS ?=
PIP_INSTALL := $(BIN)/pip install --quiet $(CONSTRAINTS)

.PHONY: demo app test lint types unit wheel fuzz robustness audit lock browser docs format bench-quality bench-speed soak attacks clean

demo: $(VENV)/core
	$(BIN)/python train_dreambooth_svfit.py \
	    --pretrained_model_name_or_path=samples/toybox_flow \
	    --instance_data_dir=$(SUBJECT) --instance_prompt="a photo of sks $(CLASS)" \
	    --target all --learning_rate=0.06 --train_identifier=sks --output_strength=0.7 \
	    --validation_prompt "a photo of sks $(CLASS) on the beach" "a photo of sks $(CLASS) in the snow" \
	        "a photo of sks $(CLASS) on the grass" "a photo of sks $(CLASS) on a city street" \
	    --validation_steps=1000 --num_validation_images=1 \
	    --seed=1 --output_dir=$(OUTPUT) --overwrite

# Options of `make app`, such as ARGS="--port 8000", and of `make robustness`.
ARGS ?=

app: $(VENV)/app
	$(BIN)/python -m app $(ARGS)

test: lint types unit wheel

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test
	$(BIN)/mypy

# A worker per core, one thread each.
unit: $(VENV)/test browser
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

# Damaged files and random mathematics, others in each round, until the time is over or one is taken
# wrongly; the file is then in tests/fuzz/found.
FUZZ_SECONDS ?= 3600

fuzz: $(VENV)/test
	end=$$(($$(date +%s) + $(FUZZ_SECONDS))); \
	while [ $$(date +%s) -lt $$end ]; do \
	    SVFIT_HYPOTHESIS=fuzz OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --timeout=0 \
	        tests/fuzz tests/spectrum/test_properties.py || exit 1; \
	done

# How many damaged files and kills were tried, and what was lost; ARGS="--adapters 10000 --cachefiles 1400"
# tries as many as the first report did.
robustness: $(VENV)/test
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/figures.py $(ARGS)

# The wheel, installed into an environment of its own and used there.
wheel: $(VENV)/test
	rm -rf build/wheel
	$(BIN)/python -m build --wheel --outdir build/wheel . >/dev/null
	$(PYTHON) -m venv build/wheel/env
	build/wheel/env/bin/pip install --quiet $(CONSTRAINTS) $(TORCH)
	build/wheel/env/bin/pip install --quiet $(CONSTRAINTS) build/wheel/*.whl
	$(BIN)/python tests/check_wheel.py build/wheel/*.whl build/wheel/env/bin

# The documentation as a site that needs no network, nor does its building; warnings are errors.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open build/site/index.html"

# A reduced version of the quality benchmark, under 15 minutes on 2 cores.
bench-quality: $(VENV)/bench
	$(BIN)/python -m benchmarks.quality --quick

# Training, loading, switching and generating against peers, under 30 minutes on 2 cores.
bench-speed: $(VENV)/bench
	$(BIN)/python -m benchmarks.speed

# Four visitors of the app for so many minutes, and what hostile ones cost it.
MINUTES ?= 20

soak: $(VENV)/test
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

attacks: $(VENV)/test
	$(BIN)/python -m benchmarks.attacks

# Known weaknesses of what is installed.
audit: $(VENV)/maintain
	$(BIN)/pip-audit --skip-editable

# CI's lock file anew, of what is installed; no GPU's libraries, which its torch does not bring.
lock: $(VENV)/maintain
	mkdir -p build
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' >build/installed.txt
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --python $(BIN)/python \
	    --extra test --constraint build/installed.txt pyproject.toml >build/all.lock
	{ echo '# What CI installs, of Python 3.11 on Linux without a GPU; `make lock` makes it.'; \
	  grep -vE '^(nvidia|cuda|triton)' build/all.lock; } >.ci/requirements.lock

# The app's pages are tested in Debian's Chromium. Where it can neither be found nor installed, those
# tests are skipped with a notice.
browser:
	@command -v chromium >/dev/null || \
	    { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	      apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
	    echo "No Chromium: the app's pages will not be tested. Install it, or run 'playwright install chromium'."

format: $(VENV)/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) outputs build

$(VENV)/core: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(TORCH)
	$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/app: $(VENV)/core
	$(PIP_INSTALL) --editable '.[app]'
	touch $@

$(VENV)/docs: $(VENV)/core
	$(PIP_INSTALL) --editable '.[docs]'
	touch $@

$(VENV)/test: $(VENV)/core
	$(PIP_INSTALL) --editable '.[test]'
	touch $@

$(VENV)/bench: $(VENV)/core
	$(PIP_INSTALL) --editable '.[bench]'
	touch $@

$(VENV)/maintain: $(VENV)/test
	$(PIP_INSTALL) --editable '.[maintain]'
	touch $@
