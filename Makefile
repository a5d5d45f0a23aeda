# SPDX-License-Identifier: GPL-3.0-or-later
VENV := .venv
BIN := $(VENV)/bin
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/.ansible/collections
# Ansible wants a locale in UTF-8, which a bare container may not name.
export LC_ALL := C.UTF-8

.PHONY: help demo demo-clean test lint unit integration bench-thousand-tables clean

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-24s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.run postgresql ## See a distribution happen between two throwaway servers
	@$(BIN)/ansible-playbook playbooks/demo.yml

demo-clean: $(VENV)/.run ## Remove what the demo made
	@$(BIN)/ansible-playbook playbooks/demo.yml -e pgml_demo_state=absent
	@$(MAKE) --no-print-directory clean

test: lint ## Run every check and test
	@$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.dev postgresql ## Run the static checks
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@MYPYPATH=.ansible/collections $(BIN)/mypy --no-error-summary plugins/module_utils plugins/plugin_utils
	@$(BIN)/yamllint --strict .
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ansible-lint --offline -q

unit: $(VENV)/.dev ## Run the tests that need no server
	@$(BIN)/python -m pytest tests/unit

integration: $(VENV)/.dev postgresql ## Run the tests on real servers
	@$(BIN)/python -m pytest -n 2 --dist loadfile tests/integration

bench-thousand-tables: $(VENV)/.dev postgresql ## Measure a run that has nothing to do, over 1,000 tables
	@$(BIN)/python -m benchmarks.thousand_tables --write

clean: ## Remove what was installed into this directory
	@rm -rf $(VENV) .ansible .cache .pytest_cache .ruff_cache .mypy_cache

.PHONY: postgresql
postgresql:
	@sh scripts/postgresql.sh

$(VENV)/.run: requirements.txt scripts/venv.sh scripts/collections.sh scripts/fetch_collections.py
	@sh scripts/venv.sh $(VENV) requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	@sh scripts/venv.sh $(VENV) requirements-dev.txt
	@touch $@
