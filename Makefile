# Every target is a plain command that can be typed by hand. `make` alone lists them.

GO      ?= go
ARGS    ?=
N       ?= 20000
EACH    ?= 1000
PKG     ?= ./...
# How long fuzz, soak and the like run for each of their targets.
TIME    ?= 20s

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X main.version=$(VERSION)
# grpcnotrace leaves out gRPC's trace pages, whose templates make the linker keep every method of every type; without cgo
# there is no libc: together they are a fifth of an idle sidecar's memory (docs/adr/0028).
BUILD   := CGO_ENABLED=0 $(GO) build -trimpath -tags grpcnotrace

# The linter is pinned: the same findings everywhere. It is built once from the module proxy.
GOLANGCI_VERSION := v2.15.0
GOLANGCI := $(shell $(GO) env GOPATH)/bin/golangci-lint-$(GOLANGCI_VERSION)

# $(call need,PATH,WHAT): a target whose code does not exist yet says so and fails; it never pretends.
need = @test -e $(1) || { echo "make $@: $(2) does not exist yet ($(1))" >&2; exit 2; }

.DEFAULT_GOAL := help
.PHONY: help build etcd test race test-net test-compat test-websocket soak soak-kill chaos demo fleet fleet-down sim mutate fuzz bench bench-quick bench-go bench-go-quick lint lint-ready check e2e cover-e2e proto clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/txmesh, bin/txmesh-sidecar and bin/txmesh-controlplane
	$(call need,cmd/txmesh,the command line tool)
	$(call need,cmd/txmesh-sidecar,the sidecar)
	$(call need,cmd/txmesh-controlplane,the control plane)
	$(BUILD) -ldflags '$(LDFLAGS)' -o bin/ ./cmd/txmesh ./cmd/txmesh-sidecar ./cmd/txmesh-controlplane

test: ## go vet and all tests that need neither root nor a network: four or five minutes
	$(GO) vet $(PKG)
	$(GO) test -timeout 10m $(PKG)

race: ## the same tests under the race detector
	$(GO) test -race -timeout 15m $(PKG)

test-net: ## as root: power cuts and full disks on a loop mount, transparent mode in namespaces; ARGS='-cuts 200' for more of them
	$(call need,tests/power,the test of power cuts)
	@test "$$(id -u)" = 0 || { echo "make test-net: needs root to mount loop devices: run it as sudo make test-net" >&2; exit 2; }
	$(GO) test -count=1 -timeout 20m -tags power -v ./tests/power/... $(ARGS)
	$(GO) test -count=1 -timeout 5m -tags power -v -run OnAFullExt4 ./tests/e2e/
	$(GO) test -count=1 -timeout 10m -v ./tests/transparent/

test-compat: ## published clients of DTM against the sidecar; as root it installs what is missing
	$(call need,tests/compat,the test with real clients)
	tests/compat/install.sh
	cd tests/compat && $(GO) test -count=1 -timeout 20m ./... $(ARGS)

test-websocket: ## as root: the test suites of WebSocket libraries, unmodified, through a transparent sidecar
	@test "$$(id -u)" = 0 || { echo "make test-websocket: needs root for a host of its own: run it as sudo make test-websocket" >&2; exit 2; }
	$(GO) test -count=1 -timeout 20m -tags websocket -v ./tests/websocket/ $(ARGS)

soak: TIME = 20m
soak: ## as root: a fleet on etcd under cut wires, lost packets, delays, stops, kills and full disks for TIME (TIME=20m)
	$(call need,tests/fleet,the test of the fleet)
	@test "$$(id -u)" = 0 || { echo "make soak: needs root for hosts of its own: run it as sudo make soak" >&2; exit 2; }
	TXMESH_FLEET=$(TIME) $(GO) test -count=1 -timeout 0 -v -run FleetLosesNothing ./tests/fleet/ $(ARGS)

soak-kill: TIME = 20m
soak-kill: ## transfers under kill -9 with embedded stores for TIME (TIME=20m), another order each time
	$(call need,tests/e2e,the test with real processes)
	TXMESH_E2E=$(TIME) $(GO) test -count=1 -timeout 0 -v -run NothingIsLost ./tests/e2e/ $(ARGS)

chaos: ## clients of DTM move money between MariaDB and PostgreSQL under kill -9: EACH of each type (EACH=1000)
	$(call need,tests/chaos,the test of clients of DTM under kill -9)
	TXMESH_CHAOS=$(EACH) $(GO) test -count=1 -timeout 20m -v ./tests/chaos/ $(ARGS)

demo: ## three transfers through three services and their sidecars; ARGS=--once ends after them
	$(call need,cmd/txmesh,the demonstration)
	$(GO) run -trimpath -ldflags '$(LDFLAGS)' ./cmd/txmesh demo $(ARGS)

etcd: ## build the etcd server that tests of the shared store start; without it they are skipped
	TXMESH_BUILD=1 $(GO) test -count=1 -timeout 15m -v -run EtcdIsBuilt ./tests/databases/

fleet: ## a whole mesh as processes, which stays up: etcd, control plane, three services with sidecars, a stand-by
	deploy/fleet/fleet.sh up

fleet-down: ## end it
	deploy/fleet/fleet.sh down

sim: ## N simulated histories with crashes, checked against the laws (N=20000)
	$(call need,tests/sim,the simulation)
	$(GO) test -count=1 -timeout 0 -v ./tests/sim -seeds $(N) $(ARGS)

mutate: ## break the code in known ways; each break must be caught by the law it violates
	$(call need,tests/mutate,the list of mutations)
	$(GO) run ./tests/mutate $(ARGS)

fuzz: ## each fuzz target for TIME (TIME=20s)
	@found=0; for p in $$($(GO) list $(PKG)); do \
	  names=$$($(GO) test -list '^Fuzz' $$p) || { echo "$$names" >&2; exit 1; }; \
	  for f in $$(echo "$$names" | grep '^Fuzz'); do \
	    found=1; echo "== $$p $$f"; GO=$(GO) .ci/fuzz $$p $$f $(TIME) || exit 1; \
	  done; \
	done; test $$found = 1 || { echo "make fuzz: no fuzz target in $(PKG)" >&2; exit 2; }

bench: ## txmesh beside nginx, HAProxy, Envoy and a minimal proxy: 25 minutes, writes benchmarks/RESULTS.md and docs/benchmarks
	benchmarks/rivals/install.sh
	$(GO) run ./benchmarks/rivals $(ARGS)

bench-quick: ## the same with 1 KiB at 32 connections: 3 minutes, writes into benchmarks/out
	benchmarks/rivals/install.sh
	$(GO) run ./benchmarks/rivals -quick -budget 165s -results benchmarks/out/RESULTS.md -plots benchmarks/out/plots $(ARGS)

bench-go: ## all benchmarks of packages, ten runs each, for benchstat
	$(GO) test -run '^$$' -bench . -benchmem -count 10 -timeout 60m $(PKG)

bench-go-quick: ## all benchmarks of packages once, to see that they run
	$(GO) test -run '^$$' -bench . -benchmem -benchtime 100x -timeout 10m $(PKG)

lint: $(GOLANGCI) ## the linters of .golangci.yml
	$(GOLANGCI) run $(PKG)

lint-ready: $(GOLANGCI)

$(GOLANGCI):
	d=$$(mktemp -d) && \
	GOBIN=$$d $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION) && \
	mkdir -p $(@D) && mv $$d/golangci-lint $@ && rmdir $$d

check: lint test ## what to run before a commit

e2e: ## real processes, the long form: 4,000 transfers under 84 kills, and each feature once
	$(call need,tests/e2e,the test with real processes)
	TXMESH_E2E=full $(GO) test -count=1 -timeout 20m -v -run '$(or $(RUN),.)' ./tests/e2e/ $(ARGS)

cover-e2e: ## which functions of txn and engine no process test reached, and why; fails if a reason is missing
	$(call need,tests/e2e,the test with real processes)
	rm -rf bin/cover && mkdir -p bin/cover/data
	$(GO) build -cover -coverpkg=txmesh/txn/...,txmesh/sidecar/engine/...,txmesh/cmd/... -o bin/cover/ ./cmd/txmesh ./cmd/txmesh-sidecar
	GOCOVERDIR=$(CURDIR)/bin/cover/data TXMESH_BIN=$(CURDIR)/bin/cover $(GO) test -count=1 -timeout 20m ./tests/e2e/
	$(GO) tool covdata textfmt -pkg=txmesh/txn,txmesh/txn/barrier,txmesh/sidecar/engine -i=bin/cover/data -o=bin/cover/profile
	$(GO) tool cover -func=bin/cover/profile | $(GO) run ./tests/e2e/reached tests/e2e/unreached.txt

# The generators are pinned; protoc itself comes with the Python package grpcio-tools.
proto: ## generate the code of the gRPC APIs anew
	d=$$(mktemp -d) && python3 -m venv $$d && $$d/bin/pip -q install grpcio-tools==1.85.1 && \
	GOBIN=$$d/bin $(GO) install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12 && \
	GOBIN=$$d/bin $(GO) install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2 && \
	cd interceptor/dtm/dtmgimp && PATH=$$d/bin:$$PATH $$d/bin/python -m grpc_tools.protoc -I. --go_out=. \
	  --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative dtmgimp.proto && \
	cd ../../../sidecar/xds/envoy && PATH=$$d/bin:$$PATH $$d/bin/python -m grpc_tools.protoc -I. --go_out=. \
	  --go_opt=paths=source_relative envoy.proto && rm -rf $$d

clean: ## remove what was built
	rm -rf bin
