# Handheld Diffusion. `make` or `make help` prints the targets; nothing but Python 3.11, make and (for the kernels) a C++ compiler is needed.

# What a user may set, on the command line only: `make export MODEL=sd14`.
PYTHON = python3.11
MODEL = tiny
WEIGHTS =
TARGET = cpu
PRECISION =
SOC =
CHECK =
OUT = build/$(notdir $(MODEL))-$(TARGET)
PACKAGE = build/demo/package

BIN := .venv/bin
DEMO := build/demo
INTEROP := build/interop
ABLATION := build/ablation/$(notdir $(MODEL))
PEERS := build/peers/$(notdir $(MODEL))
PROMPT := a red circle above a blue square on a yellow background
GRAPHS := text_encoder unet vae_encoder vae_decoder

# An environment is as old as the files that describe it, so its stamp carries their checksum: "the folder exists" says nothing.
checksum = $(shell cat $(1) | cksum | cut -d' ' -f1)
SETUP := .venv/.installed-$(call checksum,pyproject.toml constraints.txt)
SETUP_INTEROP := .venv-interop/.installed-$(call checksum,constraints-interop.txt)
SETUP_PEERS := .venv-peers/.installed-$(call checksum,constraints-peers.txt)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup kernels demo test test-asan test-arm64 lint export parity-full bench report ablation peers interop clean
.DELETE_ON_ERROR:

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  make export MODEL=sd14 [WEIGHTS=hub|PATH|random[:SEED]] [TARGET=portable|cpu|..] [PRECISION=fp32] [SOC=sm8550] [CHECK=full|quick|none] [OUT=build/sd14-cpu]"
	@echo "  make bench|report [PACKAGE=build/demo/package]"

setup: $(SETUP) ## Make the environment .venv with the pinned packages
$(SETUP):
	@rm -f .venv/.installed-*
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

kernels: setup ## Compile the native kernels of runtime/ops, where there is a C++ compiler
	@if command -v $(firstword $(CXX)) > /dev/null; then \
	  $(BIN)/cmake -S runtime/ops -B build/ops -G Ninja --log-level=WARNING \
	    -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DPython3_EXECUTABLE=$(abspath $(BIN)/python) -DCMAKE_BUILD_TYPE=Release \
	  && $(BIN)/cmake --build build/ops; \
	else \
	  echo "There is no C++ compiler ('$(CXX)'), so no native kernels: the reference bodies inside the packages run in their place."; \
	fi

demo: kernels ## From the trained model in models/tiny to a checked package, a picture and a report
	$(BIN)/python -m export tiny $(DEMO)/package --target cpu --force
	$(BIN)/python -m runtime.generate $(DEMO)/package "$(PROMPT)" --out $(DEMO)/picture.png
	$(BIN)/python -m runtime.bench $(DEMO)/package --json $(DEMO)/bench.json
	$(BIN)/python -m runtime.score $(DEMO)/package --json $(DEMO)/score.json
	$(BIN)/python -m runtime.report $(DEMO)/package --bench $(DEMO)/bench.json --score $(DEMO)/score.json --prompt "$(PROMPT)" --out $(DEMO)/report.html
	@printf '\n%s\n' "$(PROMPT):" "  picture  $(DEMO)/picture.png" "  report   $(DEMO)/report.html" "  package  $(DEMO)/package"

# As many processes as cores, so that each computes in one thread; who has nothing left takes tests of another.
test: kernels ## Run every test: C++, then Python
	@if [ -f build/ops/CTestTestfile.cmake ]; then $(BIN)/ctest --test-dir build/ops --output-on-failure; fi
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# The build of a preset of runtime/ops/CMakePresets.json in build/<folder>, and its C++ tests.
define test_preset
	$(BIN)/cmake -S runtime/ops --preset $(1) --log-level=WARNING \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DPython3_EXECUTABLE=$(abspath $(BIN)/python) > /dev/null
	$(BIN)/cmake --build build/$(2)
	$(BIN)/ctest --test-dir build/$(2) --output-on-failure
endef

test-asan: setup ## Run the C++ tests with AddressSanitizer and UndefinedBehaviorSanitizer
	$(call test_preset,host-asan,ops-asan)

test-arm64: setup ## Run the C++ tests as 64-bit Arm programs under qemu
	@for tool in aarch64-linux-gnu-g++ qemu-aarch64-static; do command -v $$tool > /dev/null || { \
	  echo "There is no $$tool: install g++-aarch64-linux-gnu and qemu-user-static to test the Arm kernels here." >&2; exit 3; }; done
	$(call test_preset,linux-arm64,ops-arm64)

lint: setup ## Check the style and the types of the Python files
	$(BIN)/ruff check
	$(BIN)/mypy

# The recipe's line is the equivalent command: make prints it.
export: kernels ## Make one package: MODEL, WEIGHTS, TARGET, PRECISION, SOC, CHECK, OUT
	$(BIN)/python -m export "$(MODEL)" "$(OUT)" --target $(TARGET)$(if $(WEIGHTS), --weights "$(WEIGHTS)")$(if $(PRECISION), --precision $(PRECISION))$(if $(SOC), --soc $(SOC))$(if $(CHECK), --check $(CHECK))

parity-full: kernels ## Hold every component of MODEL in full size against torch, one at a time: MODEL, WEIGHTS
	$(BIN)/python -m export.parity_full "$(MODEL)"$(if $(filter-out file,$(origin TARGET)), --target $(TARGET)) --weights "$(or $(WEIGHTS),random)" \
	  --json build/parity-$(notdir $(MODEL)).json

bench: kernels ## Measure PACKAGE, by default the demo's
	$(BIN)/python -m runtime.bench $(PACKAGE) --json build/bench.json

report: bench ## Write the report of PACKAGE, freshly measured
	$(BIN)/python -m runtime.report $(PACKAGE) --bench build/bench.json --out build/report.html

# Nothing is checked here: every row is held against torch before its time counts.
ablation: kernels ## What each optimization is worth here, as the paper's table: MODEL, WEIGHTS
	$(BIN)/python -m export "$(MODEL)" $(ABLATION)/package --target portable --check none --force$(if $(WEIGHTS), --weights "$(WEIGHTS)")
	$(BIN)/python -m export.ablation $(ABLATION)/package "$(MODEL)" --json $(ABLATION)/ablation.json$(if $(WEIGHTS), --weights "$(WEIGHTS)")
	$(BIN)/python -m runtime.report $(ABLATION)/package --ablation $(ABLATION)/ablation.json --out $(ABLATION)/report.html

$(SETUP_PEERS):
	@rm -f .venv-peers/.installed-*
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install -q -r constraints-peers.txt
	@touch $@

peers: kernels $(SETUP_PEERS) ## The U-Net and the decoder against stock ONNX Runtime and OpenVINO, in one run: MODEL, WEIGHTS
	$(BIN)/python -m export "$(MODEL)" $(PEERS)/portable --target portable --check none --force$(if $(WEIGHTS), --weights "$(WEIGHTS)")
	for precision in fp32 bf16; do \
	  $(BIN)/python -m export "$(MODEL)" $(PEERS)/$$precision --target cpu --precision $$precision --check none --force$(if $(WEIGHTS), --weights "$(WEIGHTS)") || exit; \
	done
	$(BIN)/python -m runtime.peers $(PEERS)/fp32 $(PEERS)/bf16 --baseline $(PEERS)/portable --openvino .venv-peers/bin/python --json $(PEERS)/peers.json

$(SETUP_INTEROP):
	@rm -f .venv-interop/.installed-*
	$(PYTHON) -m venv .venv-interop
	.venv-interop/bin/pip install -q -r constraints-interop.txt
	@touch $@

# Two proofs: optimum runs what we export, and our passes take what optimum exports.
interop: setup $(SETUP_INTEROP) ## Prove in a second environment that optimum's pipelines and ours take each other's packages
	$(BIN)/python -m export tiny $(INTEROP)/package --target portable --force
	$(BIN)/python -m export tiny-sdxl $(INTEROP)/sdxl --target portable --force
	$(BIN)/python tests/interop/save_sdxl.py $(INTEROP)/sdxl-checkpoint
	rm -rf $(INTEROP)/optimum $(INTEROP)/rewritten $(INTEROP)/fused
	.venv-interop/bin/optimum-cli export onnx --model models/tiny --task text-to-image $(INTEROP)/optimum
	for graph in $(GRAPHS); do \
	  mkdir -p $(INTEROP)/rewritten/$$graph $(INTEROP)/fused/$$graph || exit; \
	  $(BIN)/python -m graph_passes $(INTEROP)/optimum/$$graph/model.onnx $(INTEROP)/rewritten/$$graph/model.onnx --target portable || exit; \
	  $(BIN)/python -m graph_passes $(INTEROP)/optimum/$$graph/model.onnx $(INTEROP)/fused/$$graph/model.onnx --target cpu \
	    --json $(INTEROP)/fused/$$graph/passes.json || exit; \
	done
	.venv-interop/bin/python -m pytest tests/interop --confcutdir tests/interop

clean: ## Remove build/; the environments stay
	rm -rf build
