# Every target does its own set-up (.ci/setup), again and again without harm. `make help` lists them.
SHELL := /bin/bash
PYTHON := $(CURDIR)/.venv/bin/python
IFACE ?= $(shell ip -o -4 route show default 2>/dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p;q')
FUZZ_S ?= 300
LAB := $(PYTHON) -m tests.lab.run

.DEFAULT_GOAL := help
.PHONY: help setup run lab test test-unit test-kernel lint demo bench bench-core bench-serf bench-metrics bench-discovery bench-page bench-start bench-api attack fuzz soak clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 17

setup: ## Debian packages and the virtual environment
	@.ci/setup

run: setup ## start fusisd: on this machine where its kernel has IPVS, else in the lab with three real servers
	@if $(PYTHON) -m tests.lab.here; then \
	    echo "==> fusisd --iface $(IFACE)"; \
	    if [ "$$(id -u)" -eq 0 ]; then exec $(PYTHON) -m fusisd --iface "$(IFACE)"; \
	    else echo "fusisd changes IPVS and addresses, so it needs root: sudo asks for your password"; \
	        exec sudo $(PYTHON) -m fusisd --iface "$(IFACE)"; fi; \
	else \
	    echo "==> this kernel has no IPVS: starting the lab guest"; \
	    $(LAB) --timeout 86400 --publish 8000:lb1:8000 -- $(PYTHON) -m tests.lab.serve || [ $$? -eq 130 ]; \
	fi

lab: setup ## a shell in which docs/quickstart.md works: as root on this machine where its kernel has IPVS, else in the guest
	@$(LAB) --auto --tty --timeout 86400 -- env PATH="$(CURDIR)/.venv/bin:$$PATH" bash

demo: setup ## the story in a terminal: servers join, one dies, requests go on
	@$(LAB) --auto --timeout 300 -- $(PYTHON) -m tests.lab.demo

test: setup ## everything: lint, unit tests, Serf, the kernel tests on real IPVS
	@.venv/bin/tox

lint: setup ## ruff, mypy --strict, the layers
	@.venv/bin/tox -e lint

test-unit: setup ## tests that need no kernel
	@.venv/bin/tox -e unit

test-kernel: setup ## tests on real IPVS
	@.venv/bin/tox -e kernel

bench: setup ## pyipvs beside ipvsadm, pyroute2, naive calls and C, in the lab: about an hour; BENCH="--shapes 1000x10" for less
	@tests/bench/setup
	@$(LAB) --mem 1G --timeout 14400 -- $(PYTHON) -m tests.bench $(BENCH)

fuzz: setup ## coverage-guided fuzzing of what pyipvs and the Serf client decode, FUZZ_S=300 seconds in all (needs atheris, and says how to get it)
	@FUZZ_S=$(FUZZ_S) nice -n 19 $(PYTHON) -m tests.fuzz

bench-core: setup ## what fusisd's core costs at 10,000 destinations, in the lab, and what checks cost, here: two minutes
	@$(LAB) --mem 1G --timeout 900 -- $(PYTHON) -m tests.bench.core
	@$(PYTHON) -m tests.bench.checks

bench-serf: setup ## what a Serf cluster of 5,000 members and a storm of 30,000 events cost, on a scripted agent: half a minute
	@$(PYTHON) -m tests.bench.serf

bench-metrics: setup ## what a scrape of /metrics costs at 5,000 destinations, here on a fake kernel and in the lab: two minutes
	@$(PYTHON) -m tests.bench.metrics
	@$(LAB) --mem 1G --timeout 900 -- $(PYTHON) -m tests.bench.metrics

bench-discovery: setup ## how soon clients see a server come and go, real Serf on real IPVS: ten minutes; DISCOVERY="--kill 40" for other numbers
	@$(LAB) --auto --timeout 7200 -- $(PYTHON) -m tests.bench.discovery $(DISCOVERY)

bench-page: setup ## what 100 open status pages cost, here on a fake kernel: two minutes
	@$(PYTHON) -m tests.bench.page

bench-start: setup ## how long fusisd takes from its start to serving: five seconds
	@$(PYTHON) -m tests.bench.start

bench-api: setup ## what 50 readers and 20 writers get of the API, beside plain Bottle on cheroot and the disk: two minutes
	@tests/bench/setup
	@$(PYTHON) -m tests.bench.api

attack: setup ## hostile clients on the HTTP front, plain and TLS, and what a good one notices: a quarter of an hour (slowhttptest too, where it is installed)
	@$(PYTHON) -m tests.bench.attack

soak: setup ## over an hour on real IPVS: random changes by several processes, a million operations, 200 kills, 300 machines; 150 Serf agents and an attack here
	@tests/promtool
	@EXAMPLES=300 $(PYTHON) -m pytest -s -p no:cacheprovider tests/fusisd/test_web_schemathesis.py
	@AGENTS=150 $(PYTHON) -m pytest -s -p no:cacheprovider tests/serf/test_crowd.py
	@$(LAB) --auto --timeout 5400 -- env SOAK_S=600 GROWTH_OPERATIONS=1000000 LIVES=200 MACHINES=300 \
	    $(PYTHON) -m pytest -s -p no:cacheprovider tests/kernel/test_soak.py tests/kernel/test_growth.py \
	    tests/kernel/test_campaign.py tests/kernel/test_machine.py
	@$(PYTHON) -m tests.bench.attack

clean: ## remove what was built
	rm -rf .venv .tox build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis .fuzz .import_linter_cache .coverage
