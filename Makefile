# `make help` explains every target. Everything installed goes into .venv and .kuasar of this checkout, except Debian packages.

PYTHON ?= /usr/bin/python3
ENGINE ?=
CONTAINERD ?=
PYTEST_ARGS ?=
REFRESH ?=

V := .venv/bin
VENV := .venv/.installed
SYSTEM := .kuasar/.system
CONTAINERD_DEB := .kuasar/containerd/.package
ENGINES := .kuasar/wasmedge/.package .kuasar/runsc/.package
PYTEST := $(V)/python -m pytest $(PYTEST_ARGS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run start stop status guest test test-unit test-integration test-e2e chaos soak check format bench pictures proto install clean template

help: ## this text
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: start ## install what is needed, start the stack, run a runc pod, a Wasm pod and a virtual machine; CONTAINERD=socket uses another containerd
	@$(V)/python -m scripts.demo $(if $(CONTAINERD),--containerd $(CONTAINERD))

start: install ## start the stack only
	@$(V)/python -m scripts.stack start $(if $(CONTAINERD),--containerd $(CONTAINERD))

status: $(VENV) ## what runs
	@$(V)/python -m scripts.stack status

stop: $(VENV) ## stop the stack with all its pods, and say if anything was left behind
	@$(V)/python -m scripts.stack stop $(if $(CONTAINERD),--containerd $(CONTAINERD))

guest: $(SYSTEM) ## build the guest image of the microVM engines in .kuasar/guest/image; REFRESH=1 fetches newest packages
	@$(PYTHON) -m guest.build $(if $(REFRESH),--refresh)

test: install ## all tests: unit, integration, end to end with containerd, a quick round of chaos, a newcomer's walk
	@$(PYTEST) tests/unit tests/integration tests/e2e tests/chaos tests/walk; code=$$?; echo $$code >.kuasar/test-exit; exit $$code

test-unit: $(VENV) ## what needs neither root nor containerd
	@$(PYTEST) tests/unit

test-integration: $(SYSTEM) $(VENV) $(ENGINES) template ## real processes, sockets and namespaces (root)
	@$(PYTEST) tests/integration

test-e2e: install ## pods through the real containerd (root); ENGINE=name for one engine, QEMU=path for another QEMU, CHANNEL=name for another way to agents
	@ENGINE=$(ENGINE) QEMU=$(QEMU) CHANNEL=$(CHANNEL) $(PYTEST) tests/e2e

chaos: install ## kill everything of ours under load, again and again (root); QUICK=1 for two minutes, SEED=n to repeat
	@$(V)/python -m tests.chaos $(if $(QUICK),--quick) $(if $(SEED),--seed $(SEED))

soak: install ## 2,000 pods come and go, and what stays must not grow (root); PODS=n for fewer
	@$(V)/python -m tests.chaos.soak $(if $(PODS),--pods $(PODS))

check: $(VENV) ## format, lint, types, unit tests
	@$(V)/ruff format --check .
	@$(V)/ruff check .
	@$(V)/mypy kuasar tests scripts
	@$(PYTEST) -q tests/unit

format: $(VENV) ## format the code
	@$(V)/ruff format .
	@$(V)/ruff check --fix .

pictures: $(VENV) ## draw the README's pictures of kuasarctl from what runs now (after make run)
	@$(V)/python -m scripts.pictures

bench: install ## measure our handlers and containerd's own shim; results in bench-results/
	@$(V)/python -m tests.bench $(BENCH_ARGS)

proto: $(VENV) ## generate the stubs from kuasar/api/protos
	@$(V)/python scripts/gen_proto.py

template: $(VENV) guest ## the template of virtual machines, if there is none for this guest image yet
	@$(V)/python -m scripts.template

install: $(SYSTEM) $(VENV) $(CONTAINERD_DEB) $(ENGINES) template ## Debian packages, .venv, containerd, WasmEdge, gVisor, guest image and template

clean: ## stop the stack and remove .venv, .kuasar and all caches
	@if [ -e $(VENV) ]; then $(V)/python -m scripts.stack stop || true; fi
	@rm -rf .venv .kuasar .mypy_cache .ruff_cache .pytest_cache .hypothesis build ./*.egg-info
	@find kuasar tests scripts -name __pycache__ -prune -exec rm -rf {} +

# Packages may be removed behind our back, so this is asked each time; it takes 0.1 s.
.PHONY: $(SYSTEM)
$(SYSTEM):
	@scripts/install-system.sh

$(VENV): pyproject.toml scripts/make-venv.sh
	@scripts/make-venv.sh $(PYTHON)
	@touch $@

.kuasar/%/.package: scripts/fetch-%.sh scripts/fetch-deb.sh
	@scripts/fetch-$*.sh
	@touch $@
