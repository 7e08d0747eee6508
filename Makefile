# Each target is one line; what needs more is a script in libs/tools/scripts.
SCRIPTS := libs/tools/scripts
.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: ## Start everything in one process on loopback (flags: ARGS="--help")
	@$(SCRIPTS)/run $(ARGS)

.PHONY: test
test: ## Run all tests: unit, integration (kfake and Apache Kafka), end to end
	@$(SCRIPTS)/test

.PHONY: lint
lint: ## Vet, lint and build each module by itself; lint the protos
	@$(SCRIPTS)/lint

.PHONY: verify
verify: ## Regenerate, format and tidy, then fail if that changed anything
	@$(SCRIPTS)/verify

.PHONY: proto
proto: ## Lint the protos and generate proto/gen
	@$(SCRIPTS)/proto

.PHONY: build
build: ## Build all binaries to .bin
	@$(SCRIPTS)/build

.PHONY: bench
bench: ## Run the benchmarks (BENCH=regexp, COUNT=n)
	@$(SCRIPTS)/bench

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME (30s)
	@$(SCRIPTS)/fuzz

.PHONY: tidy
tidy: ## Align the dependencies of all modules, and tidy them
	@$(SCRIPTS)/tidy

.PHONY: vuln
vuln: ## Look for known vulnerabilities that the code can reach
	@$(SCRIPTS)/vuln

.PHONY: clean
clean: ## Remove what make has built or downloaded (.bin, .cache)
	@rm -rf .bin .cache
