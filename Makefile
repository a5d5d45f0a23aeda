# SPDX-License-Identifier: GPL-3.0-or-later
VENV := .venv
BIN := $(VENV)/bin
# The servers of a file's tests are started once; a file of few tests may be the longest. Tests also wait, so that there are four.
ON_TWO_CORES := -n 4 --dist loadfile --no-loadscope-reorder
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/.ansible/collections
# Ansible wants a locale in UTF-8, which a bare container may not name.
export LC_ALL := C.UTF-8

.PHONY: help demo demo-clean test test-variations lint unit integration molecule molecule-all docs clean
.PHONY: bench bench-growth bench-forky bench-subscription bench-subscription-forky bench-physical-seed
.PHONY: bench-fdw bench-fdw-forky bench-thousand-tables bench-no-op bench-definitions

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-24s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.run postgresql ## See a distribution happen between two throwaway servers
	@$(BIN)/ansible-playbook playbooks/demo.yml

demo-clean: $(VENV)/.run ## Remove what the demo made
	@$(BIN)/ansible-playbook playbooks/demo.yml -e pgml_demo_state=absent
	@$(MAKE) --no-print-directory clean

test: lint docs postgresql ## Run every check and test
	@sh scripts/containers.sh || : # says why not, and the tests that need them are skipped
	@sh scripts/plpython.sh || :
	@$(BIN)/python -m pytest $(ON_TWO_CORES) --sampled

test-variations: lint docs postgresql ## ... and each variation of the tests, which takes too long for make test
	@sh scripts/containers.sh || :
	@sh scripts/plpython.sh || :
	@$(BIN)/python -m pytest $(ON_TWO_CORES)

# The slowest first.
GATES := lint-sanity-oldest lint-sanity-newest lint-ansible lint-docs lint-importer lint-python lint-yaml lint-changelog lint-shell
GATE = @PATH="$(CURDIR)/$(BIN):$$PATH" sh scripts/gate.sh $@
ARTIFACT := .cache/artifact

lint: $(VENV)/.dev ## Run all static checks
	@$(MAKE) --no-print-directory --keep-going -j2 --output-sync=target $(GATES)

.PHONY: lint-sanity $(GATES) $(ARTIFACT)
lint-sanity: lint-sanity-newest lint-sanity-oldest ## Run ansible-test sanity on what is shipped
lint-sanity-newest: $(ARTIFACT) ## ... with the newest ansible-core that runs here
	$(GATE) sh scripts/sanity.sh newest $(ARTIFACT)/*.tar.gz
lint-sanity-oldest: $(ARTIFACT) ## ... with the oldest
	$(GATE) sh scripts/sanity.sh oldest $(ARTIFACT)/*.tar.gz
lint-ansible: $(VENV)/.dev ## Run ansible-lint
	$(GATE) ansible-lint --offline --strict
lint-docs: $(VENV)/.dev ## Check the documentation of plugins and roles
	$(GATE) sh scripts/docs_lint.sh
lint-importer: $(ARTIFACT) ## Import what is shipped as Galaxy does
	$(GATE) sh scripts/importer.sh $(ARTIFACT)/*.tar.gz
lint-python: $(VENV)/.dev ## Run ruff and mypy
	$(GATE) sh -c 'ruff check . && ruff format --check . && mypy plugins/module_utils plugins/plugin_utils'
lint-yaml: $(VENV)/.dev ## Run yamllint
	$(GATE) yamllint --strict .
lint-changelog: $(VENV)/.dev ## Check the changelog and its fragments
	$(GATE) sh -c 'antsibull-changelog lint && antsibull-changelog lint-changelog-yaml --strict changelogs/changelog.yaml'
lint-shell: $(VENV)/.dev ## Run shellcheck
	$(GATE) shellcheck --shell=sh $(shell find . -name '.?*' -prune -o -name '*.sh' -print)

# Always anew: what it is made of is everything.
$(ARTIFACT): $(VENV)/.dev
	@rm -rf $@
	@$(BIN)/ansible-galaxy collection build --output-path $@ . >/dev/null

unit: $(VENV)/.dev ## Run the tests that need no server
	@$(BIN)/python -m pytest tests/unit

integration: $(VENV)/.dev postgresql ## Run the tests on real servers
	@sh scripts/plpython.sh || :
	@$(BIN)/python -m pytest $(ON_TWO_CORES) tests/integration

MOLECULE = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/molecule test --all

molecule: $(VENV)/.dev containers ## Run the roles on hosts of their own, in containers
	@$(MOLECULE)

# A copy of a cluster is of the same version, so that the last has no scenario for it.
molecule-all: $(VENV)/.dev containers ## ... on each Debian from 11 to 14, and from PostgreSQL 15 to 17
	@for suites in bullseye bookworm trixie forky bookworm:trixie; do \
		echo "Debian $$suites"; \
		PGML_TEST_SUITE="$${suites%:*}" PGML_TEST_REPLICA_SUITE="$${suites#*:}" $(MOLECULE) \
			$$(case $$suites in *:*) echo --exclude=seed ;; esac) || exit 1; \
	done

bench: $(VENV)/.dev postgresql ## Measure dump and restore, a first copy, a physical seed, and foreign tables, beside the other ways there are
	@$(BIN)/python -m benchmarks.dump_restore --write
	@$(BIN)/python -m benchmarks.subscription --write
	@$(BIN)/python -m benchmarks.physical_seed --write
	@$(BIN)/python -m benchmarks.fdw --write

bench-growth: $(VENV)/.dev postgresql ## ... dump and restore as the data grows
	@$(BIN)/python -m benchmarks.dump_restore --growth --write

bench-forky: $(VENV)/.dev containers ## ... dump and restore with PostgreSQL 18, in a container of Debian forky
	@$(BIN)/python -m benchmarks.dump_restore --forky --write

bench-subscription: $(VENV)/.dev postgresql ## Measure a subscription's first copy alone
	@$(BIN)/python -m benchmarks.subscription --write

bench-subscription-forky: $(VENV)/.dev containers ## ... with PostgreSQL 18, in a container of Debian forky
	@$(BIN)/python -m benchmarks.subscription --forky --write

bench-physical-seed: $(VENV)/.dev postgresql ## Measure a physical copy that becomes a replica alone, and as the data grows
	@$(BIN)/python -m benchmarks.physical_seed --write
	@$(BIN)/python -m benchmarks.physical_seed --growth --write

bench-fdw: $(VENV)/.dev postgresql ## Measure foreign tables and local snapshots alone
	@$(BIN)/python -m benchmarks.fdw --write

bench-fdw-forky: $(VENV)/.dev containers ## ... with PostgreSQL 18, in a container of Debian forky
	@$(BIN)/python -m benchmarks.fdw --forky --write

bench-thousand-tables: $(VENV)/.dev postgresql ## Measure a run that has nothing to do, over 1,000 tables
	@$(BIN)/python -m benchmarks.thousand_tables --write

bench-no-op: $(VENV)/.dev postgresql ## Measure distribute.yml over three replicas when it has nothing to do, beside community.postgresql
	@$(BIN)/python -m benchmarks.no_op --write

bench-definitions: $(VENV)/.dev postgresql ## Measure a comparison of the definitions of 5,000 tables
	@$(BIN)/python -m benchmarks.definitions --write

docs: $(VENV)/.docs ## Build the documentation as HTML
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/docs.py

clean: ## Remove what was installed into this directory
	@rm -rf $(VENV) .ansible .cache .pytest_cache .ruff_cache .mypy_cache

.PHONY: postgresql containers
postgresql:
	@sh scripts/postgresql.sh
containers:
	@sh scripts/containers.sh

$(VENV)/.run: requirements.txt scripts/venv.sh scripts/collections.sh scripts/fetch_collections.py
	@sh scripts/venv.sh $(VENV) requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	@sh scripts/venv.sh $(VENV) requirements-dev.txt
	@touch $@

$(VENV)/.docs: requirements-docs.txt $(VENV)/.run
	@sh scripts/venv.sh $(VENV) requirements-docs.txt
	@touch $@
