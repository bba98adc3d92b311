# Two commands on a fresh machine with Python >= 3.10: `make demo` and `make test`.

.DEFAULT_GOAL := help
.PHONY: help install demo export batch tag strip verify test test-providers test-gpu test-sources test-newest-torch test-portable test-wheel zoo zoo-levels profile-zoo compare-zoo compare-faults properties lint format fuzz bench docs site faults picture clean

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
RUN := $(BIN)/modelexport-optimum
# Other builds of ONNX Runtime, which take the place of the installed one in `make test-providers`.
OTHER := $(VENV)/onnxruntimes
OPENVINO := onnxruntime-openvino==1.24.1
GGML := onnxruntime-ggml==0.2.0 onnxruntime==1.30.0
TRANSFORMERS5 := $(VENV)/transformers5
LOWEST := $(shell sed -n 's/.*"onnxruntime>=\([0-9.]*\)".*/\1/p' pyproject.toml)

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt scripts/sample.txt
	@echo "Installing into $(VENV), which takes some minutes the first time ..."
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/pip install --quiet --no-deps --require-hashes --requirement scripts/sample.txt
	@touch $@

install: $(STAMP) ## install into .venv (the other targets do it when needed)

demo: $(STAMP) ## export a real model, and show what came out
	@$(BIN)/python scripts/demo.py

export: $(STAMP) ## export MODEL=... [TASK=...] [OUTPUT=...] [ARGS="..."]
	@test -n "$(MODEL)" || { echo 'usage: make export MODEL=... [TASK=...] [OUTPUT=...]' >&2; exit 2; }
	@$(RUN) export "$(MODEL)" $(if $(TASK),--task "$(TASK)") $(if $(OUTPUT),-o "$(OUTPUT)") $(ARGS)

batch: $(STAMP) ## convert many models, MANIFEST=... [OUTPUT=...] [ARGS="..."]
	@test -n "$(MANIFEST)" || { echo 'usage: make batch MANIFEST=... [OUTPUT=...]' >&2; exit 2; }
	@$(RUN) batch "$(MANIFEST)" $(if $(OUTPUT),-o "$(OUTPUT)") $(ARGS)

tag: $(STAMP) ## tag an export that exists, DIR=...
	@test -n "$(DIR)" || { echo 'usage: make tag DIR=...' >&2; exit 2; }
	@$(RUN) tag "$(DIR)" $(ARGS)

strip: $(STAMP) ## take the tags out again, DIR=...
	@test -n "$(DIR)" || { echo 'usage: make strip DIR=...' >&2; exit 2; }
	@$(RUN) strip "$(DIR)" $(ARGS)

verify: $(STAMP) ## check an export, DIR=...
	@test -n "$(DIR)" || { echo 'usage: make verify DIR=...' >&2; exit 2; }
	@$(RUN) verify "$(DIR)" $(ARGS)

# The order of the groups is tests/conftest.py's.
test: $(STAMP) ## run the tests
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

$(OTHER)/%/.installed: $(STAMP) Makefile pyproject.toml
	@rm -rf $(@D)
	@$(BIN)/pip install --quiet --no-deps --target $(@D) \
		$(if $(filter openvino,$*),$(OPENVINO),$(if $(filter ggml,$*),$(GGML),onnxruntime==$(LOWEST)))
	@touch $@

test-providers: $(STAMP) $(OTHER)/openvino/.installed $(OTHER)/lowest/.installed $(OTHER)/ggml/.installed ## run the commands on OpenVINO, ggml, the lowest onnxruntime, and a GPU where there is one
	@exports=$$(mktemp -d) && trap 'rm -rf "$$exports"' EXIT && \
	for runtime in openvino lowest ggml installed; do \
		TEST_RUNTIME=$$runtime TEST_EXPORTS=$$exports LOWEST_ONNXRUNTIME=$(LOWEST) \
		PYTHONPATH=$$PWD/$(OTHER)/$$runtime $(BIN)/python -m pytest -rs tests/test_other_providers.py tests/test_plugin_provider.py $(ARGS); \
		status=$$?; case $$status in 0|5) ;; *) exit $$status ;; esac; \
	done

# An environment of its own: transformers 5, and no Optimum, which cannot be installed beside it.
$(TRANSFORMERS5)/.installed: pyproject.toml constraints-transformers5.txt
	@echo "Installing into $(TRANSFORMERS5), which takes some minutes the first time ..."
	@test -x $(TRANSFORMERS5)/bin/pip || $(PYTHON) -m venv $(TRANSFORMERS5)
	@$(TRANSFORMERS5)/bin/pip install --quiet --requirement constraints-transformers5.txt
	@$(TRANSFORMERS5)/bin/pip install --quiet --no-deps --editable .
	@touch $@

test-sources: $(TRANSFORMERS5)/.installed ## run the tests of transformers 5's exports, without Optimum
	@$(TRANSFORMERS5)/bin/python -m pytest -n auto --maxprocesses 4 tests/test_sources.py $(ARGS)

test-newest-torch: ## run the tests of exports with the newest PyTorch, where pip has a CPU build of it
	@$(PYTHON) scripts/newest_torch.py $(ARGS)

# Exports, tags, checks, a batch and kills. `tests/needs.py` says which tests need more.
PORTABLE := tests/test_other_system.py tests/test_pass.py tests/test_export.py tests/test_providers.py \
	tests/test_batch.py -k "test_other_system or (test_pass and not (t5 or musicgen or time_grows)) \
	or staging or publish or second_run or without_locks or killed_run or without_forks or Crashing \
	or cannot_start or worker_that_dies or two_batches"

test-portable: $(STAMP) ## run tests without what macOS and Windows lack (tests/other_system)
	@PYTHONPATH=$$PWD/tests/other_system $(BIN)/python -m pytest -n auto --maxprocesses 4 \
		$(PORTABLE) $(ARGS)

test-gpu: $(STAMP) ## profile and compare models on a GPU, and print a table; without one it says so
	@$(BIN)/python scripts/gpu $(ARGS)

test-wheel: ## install the wheel into a fresh environment, without extras, and export there
	@$(PYTHON) scripts/wheel_test.py

zoo: $(STAMP) ## tag every architecture of the tests, and print how its nodes were placed
	@$(BIN)/python scripts/zoo.py $(ARGS)

zoo-levels: $(STAMP) ## run every architecture at every optimization level of ONNX Runtime, with tags and without
	@EVERY_LEVEL=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 tests/test_zoo.py -k onnx_runtime $(ARGS)

compare-zoo: $(STAMP) ## compare PyTorch with the export of every architecture of the tests: none may differ
	@$(BIN)/python scripts/compare_zoo.py $(ARGS)

profile-zoo: $(STAMP) ## profile every architecture of the tests, without an option: each must run
	@$(BIN)/python scripts/profile_zoo.py $(ARGS)

compare-faults: $(STAMP) ## plant 40 faults, and see that compare accuses the modules that have them
	@$(BIN)/python scripts/compare_faults.py $(ARGS)

properties: $(STAMP) ## tag 10,000 random modules, and count the tags that are wrong or coarser
	@$(BIN)/python scripts/properties.py $(ARGS)

lint: $(STAMP) ## ruff, mypy (for other systems, too) and import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@for system in win32 darwin; do \
		$(BIN)/mypy --config-file= --no-site-packages --ignore-missing-imports \
		--platform $$system --cache-dir .mypy_cache/$$system modelexport_optimum || exit; \
	done
	@$(BIN)/lint-imports

format: $(STAMP) ## let ruff format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

fuzz: $(STAMP) ## damage files for TIME=60 seconds, and see that each verb says so in one line
	@$(BIN)/python tests/fuzz --seconds $(or $(TIME),60) $(ARGS)

bench: $(STAMP) ## measure time and memory against Optimum alone (some minutes)
	@$(BIN)/python scripts/bench.py $(ARGS)

docs: $(STAMP) ## write anew what is written from the code: the reference, the documents and the design
	@$(BIN)/python scripts/reference.py
	@$(BIN)/python scripts/rooms.py
	@$(BIN)/python scripts/documents.py

site: $(STAMP) ## build the site of docs/ into site/; a broken link or reference fails
	@test -x $(BIN)/zensical || { echo 'the site needs Python 3.11 or newer' >&2; exit 2; }
	@$(BIN)/zensical build --clean --strict

faults: $(STAMP) ## let every system call of tag, strip and publishing fail in turn (some minutes)
	@$(BIN)/python scripts/faults.py $(ARGS)

picture: $(STAMP) ## take the README's picture of `make demo` anew
	@$(BIN)/python scripts/picture.py

clean: ## remove the virtual environment, the demo and all caches
	rm -rf $(VENV) demo site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
