# One verb per habit. `make run` and `make test` are all that a fresh machine needs.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CARGO ?= cargo
STAMPS := .make
RUST_SOURCES := $(shell find rust -name '*.rs' -o -name '*.toml' -o -name '*.sql' 2>/dev/null) Cargo.toml Cargo.lock
RUN_OPTIONS ?=
export CARGO_TERM_COLOR ?= never

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

check-tools:
	@command -v $(PYTHON) >/dev/null || { echo "make: needs Python 3.11 or newer (apt-get install python3 python3-venv)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: needs Python 3.11 or newer, found $$($(PYTHON) --version)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: needs Python's venv module (apt-get install python3-venv)"; exit 1; }
	@command -v $(CARGO) >/dev/null || { echo "make: needs Rust 1.89 or newer with cargo (rustup.rs)"; exit 1; }
	@v=$$(rustc --version | cut -d' ' -f2); printf '1.89.0\n%s\n' "$$v" | sort -VC || { echo "make: needs Rust 1.89 or newer, found $$v"; exit 1; }
	@command -v cmake >/dev/null || { echo "make: needs cmake (apt-get install cmake)"; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || { echo "make: needs a C++ compiler (apt-get install g++)"; exit 1; }

$(STAMPS)/venv: pyproject.toml | check-tools
	@mkdir -p $(STAMPS)
	@echo "make: preparing the virtual environment .venv (less than a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1" "maturin>=1.9,<2"
	@touch $@

$(STAMPS)/build: $(STAMPS)/venv $(RUST_SOURCES)
	@if [ -e $@ ]; then echo "make: building the parts of the Rust core that changed, and installing the package into .venv"; \
	else echo "make: building the Rust core and its codecs, and installing the package into .venv"; \
	  echo "make: the first build takes 5 to 7 minutes on two cores and prints nothing meanwhile; later starts take seconds"; fi
	@PIP_QUIET=1 VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --release --locked --quiet
	@touch $@

# Commands, and the Debian packages they come with.
KAFKA_TOOLS := java:default-jre-headless mvn:maven
TEST_TOOLS := $(KAFKA_TOOLS) dcmsend:dcmtk dciodvfy:dicom3tools gdcmconv:libgdcm-tools Orthanc:orthanc strace:strace \
  faketime:faketime mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs fusermount3:fuse3 chromium:chromium \
  promtool:prometheus systemd-analyze:systemd cjpeg:libjpeg-turbo-progs opj_compress:libopenjp2-tools \
  ojph_compress:openjph-tools cjxl:libjxl-tools /usr/sbin/haproxy:haproxy /usr/lib/postgresql/*/bin/initdb:postgresql

define install_packages
	@for tool in $(1); do \
	  command -v $${tool%%:*} >/dev/null || missing="$$missing $${tool##*:}"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi; \
	  echo "make: installing$$missing"; \
	  $$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	  for name in haproxy orthanc postgresql prometheus; do case "$$missing" in *$$name*) \
	    $$sudo /etc/init.d/$$name stop >/dev/null 2>&1 || true;; esac; done; \
	fi
endef

# The chart is rendered by helm: the one of this machine, or one that Go builds from its module. Its tests are skipped else.
HELM := helm.sh/helm/v3/cmd/helm@v3.22.0
$(STAMPS)/helm: $(STAMPS)/venv
	@if command -v helm >/dev/null; then :; \
	elif ! command -v go >/dev/null; then echo "make: neither helm nor Go is there: tests that render the chart are skipped"; \
	else echo "make: building helm, which renders the chart (1 to 4 minutes)"; \
	  GOBIN=$(CURDIR)/$(BIN) CGO_ENABLED=0 go install $(HELM) 2>$(STAMPS)/helm.log \
	  || { tail -n 3 $(STAMPS)/helm.log; echo "make: helm cannot be built: tests that render the chart are skipped"; }; fi
	@touch $@

$(STAMPS)/test-tools: $(STAMPS)/venv $(STAMPS)/helm
	@$(BIN)/pip install --quiet --disable-pip-version-check --group test --group docs --group lint
	$(call install_packages,$(TEST_TOOLS))
	@touch $@

$(STAMPS)/kafka-tools:
	@mkdir -p $(STAMPS)
	$(call install_packages,$(KAFKA_TOOLS))
	@touch $@

# The extension as it is, but for the places where tests end the process.
$(STAMPS)/failpoints: $(STAMPS)/build
	rm -rf target/failpoints
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin build --release --locked --quiet --features failpoints --out target/failpoints
	$(BIN)/python -m zipfile -e target/failpoints/*.whl target/failpoints
	@touch $@

build: $(STAMPS)/build ## Build the extension and install the package into .venv

run: $(STAMPS)/build ## Build what is missing and serve in evaluation mode (RUN_OPTIONS="-p 11112 ...")
	$(BIN)/python -m storescp $(RUN_OPTIONS)

# Three at a time where tests allow it, on two processors: half of their time they wait. tests/conftest.py says which do not, and which are slow.
BESIDE := not ceiling and not alone
BESIDE_EACH_OTHER := -n 3 --dist worksteal

test: $(STAMPS)/failpoints $(STAMPS)/test-tools ## Install what the tests need, and run all of them
	$(CARGO) test --release --locked --quiet
	$(BIN)/python -m pytest tests -m ceiling
	$(BIN)/python -m pytest tests $(BESIDE_EACH_OTHER) -m "$(BESIDE)"
	$(BIN)/python -m pytest tests -m "alone and not ceiling"

check: $(STAMPS)/build $(STAMPS)/test-tools ## What to run before a commit: linters, cargo test, unit and integration tests but the slow ones, in minutes
	@$(MAKE) --no-print-directory --jobs 2 check-rust check-python

check-rust: lint
	$(CARGO) test --release --locked --quiet

check-python: $(STAMPS)/build $(STAMPS)/test-tools
	$(BIN)/python -m pytest tests/unit tests/integration $(BESIDE_EACH_OTHER) -m "$(BESIDE) and not slow" --durations=0 --durations-min=5

lint: $(STAMPS)/build $(STAMPS)/test-tools ## Formatters, linters and type checks, changing nothing
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets --quiet -- -D warnings
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	MYPYPATH=python $(BIN)/python -m mypy.stubtest storescp._core

format: $(STAMPS)/test-tools ## Rewrite the sources in the project's form
	$(CARGO) fmt --all
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format --quiet .

kafka: $(STAMPS)/build $(STAMPS)/kafka-tools ## A Kafka broker on 127.0.0.1:9092 with both topics, without containers
	PYTHONPATH=tests $(BIN)/python -m support.broker

bench: $(STAMPS)/build $(STAMPS)/test-tools ## The Rust engine against the pure-Python engine
	$(BIN)/python -m pytest benches -s --timeout 900 --ignore benches/bench_peers.py --ignore benches/bench_durability.py --ignore benches/bench_scale.py --ignore benches/bench_pair.py --benchmark-columns=median,iqr,rounds --benchmark-sort=name

bench-peers: $(STAMPS)/build $(STAMPS)/test-tools ## Other receivers and us, ROUNDS rounds (default 15)
	$(CARGO) build --release --locked --quiet -p storescp-sink
	STORESCP_PEERS_ROUNDS=$${ROUNDS:-15} $(BIN)/python -m pytest benches/bench_peers.py -s --timeout 0

# The other revision has a folder, a virtual environment and a build of its own, which are kept.
# Builds another revision beside this one; its interpreter is what the benches are told.
define OTHER_BUILD
test -n "$(OLD)" || { echo "make: which build? (make $@ OLD=REVISION)"; exit 1; }; \
set -e; revision=$$(git rev-parse --verify "$(OLD)^{commit}"); other=$(CURDIR)/target/pair/$$revision; \
if [ ! -e $$other/built ]; then \
  echo "make: building $$revision"; rm -rf $$other; mkdir -p $$other/source; \
  git archive $$revision | tar -x -C $$other/source; \
  $(PYTHON) -m venv $$other/venv; \
  CARGO_TARGET_DIR=$(CURDIR)/target/pair/cargo $$other/venv/bin/pip install --quiet --disable-pip-version-check "$$other/source[postgresql]"; \
  touch $$other/built; \
fi; \
export STORESCP_PAIR_PYTHON=$$other/venv/bin/python
endef

bench-pair: $(STAMPS)/build $(STAMPS)/test-tools ## This build against another: OLD=REVISION, ROUNDS rounds (default 15)
	$(CARGO) build --release --locked --quiet -p storescp-sink
	@$(OTHER_BUILD); STORESCP_PAIR_ROUNDS=$${ROUNDS:-15} $(BIN)/python -m pytest benches/bench_pair.py -s --timeout 0

bench-index: $(STAMPS)/build $(STAMPS)/test-tools ## Records a second into the tables, against another build: OLD=REVISION
	@$(OTHER_BUILD); STORESCP_PAIR_ROUNDS=$${ROUNDS:-7} $(BIN)/python -m pytest benches/bench_index.py -s --timeout 0

bench-scale: $(STAMPS)/build $(STAMPS)/test-tools ## More associations, a million rows, a hundred tenants, ROUNDS rounds (default 5)
	STORESCP_PEERS_ROUNDS=$${ROUNDS:-5} $(BIN)/python -m pytest benches/bench_scale.py -s --timeout 0

bench-durability: $(STAMPS)/build $(STAMPS)/test-tools ## What we and others lose under kill -9 and power cuts, ROUNDS times (default 100)
	STORESCP_DURABILITY_ROUNDS=$${ROUNDS:-100} $(BIN)/python -m pytest benches/bench_durability.py -s --timeout 0

soak: $(STAMPS)/build $(STAMPS)/test-tools ## Every fault of a broker, RECORDS records (default 200000), and 500 lost answers
	STORESCP_SOAK_RECORDS=$${RECORDS:-200000} STORESCP_LOST_ANSWERS=500 $(BIN)/python -m pytest -s --timeout 0 \
	  tests/kafka/test_soak.py tests/kafka/test_faults.py::test_answers_that_are_lost_after_the_write

soak-index: $(STAMPS)/build $(STAMPS)/test-tools ## Tables and study events, RECORDS records (default 200000), a worker killed every 10 s; two million lines followed; a million instances migrated
	STORESCP_INDEX_RECORDS=$${RECORDS:-200000} STORESCP_INDEX_KILLS_EVERY=10 STORESCP_INDEX_LINES=2000000 STORESCP_INDEX_INSTANCES=1000000 \
	  $(BIN)/python -m pytest -s --timeout 0 tests/kafka/test_study_events.py \
	  tests/index/test_follow.py::test_every_line_is_applied_once_whatever_is_killed \
	  tests/index/test_migrations.py::test_a_migration_that_is_killed_half_way_goes_on

tables: $(STAMPS)/build $(STAMPS)/test-tools ## Write docs/reference/transcoding-files.md from the curated files
	STORESCP_WRITE_TABLES=1 $(BIN)/python -m pytest tests/conformance/test_transcoding.py -q -k reference

crash: $(STAMPS)/failpoints $(STAMPS)/test-tools ## The fault bench, each row ROUNDS times, or as often as it is meant to run
	STORESCP_CRASH_ROUNDS=$${ROUNDS:-500000} $(BIN)/python -m pytest tests/crash -s --timeout 0

FUZZ_TARGETS := association command dataset charset layout transcode
fuzz: $(STAMPS)/build $(STAMPS)/test-tools ## Each fuzz target for SECONDS_EACH (default 60); needs nightly Rust and cargo-fuzz
	@command -v cargo-fuzz >/dev/null || { echo "make: needs cargo-fuzz (cargo install cargo-fuzz) and nightly Rust"; exit 1; }
	$(BIN)/python rust/fuzz/corpus.py target/fuzz-corpus
	cd rust/fuzz && for target in $(FUZZ_TARGETS); do \
	  mkdir -p ../../target/fuzz-corpus/$$target; \
	  $(CARGO) +nightly fuzz run --fuzz-dir . --target-dir ../../target/fuzz $$target \
	    ../../target/fuzz-corpus/$$target regressions/$$target -- \
	    -max_total_time=$${SECONDS_EACH:-60} -max_len=100000 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 || exit 1; done

reference: $(STAMPS)/build ## Write the pages of docs/reference anew that come from the code
	$(BIN)/python docs/generate.py

docs: $(STAMPS)/build ## The documentation as a site, in docs/_build
	@$(BIN)/pip install --quiet --disable-pip-version-check --group docs
	$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build

wheel: | check-tools ## Build a wheel into dist/
	$(PYTHON) -m pip wheel --no-deps --wheel-dir dist .

sdist: $(STAMPS)/venv ## Build the source distribution into dist/
	$(BIN)/maturin sdist --out dist

# Versions and hashes of the Python packages in the image: what is installed, and what builds the wheel.
LOCK := $(STAMPS)/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
  --custom-compile-command "make lock"
lock: | check-tools ## Write deploy/*.lock anew: the newest packages that pyproject.toml allows, with their hashes
	@mkdir -p $(STAMPS)
	$(PYTHON) -m venv --clear $(STAMPS)/lock
	$(STAMPS)/lock/bin/pip install --quiet --disable-pip-version-check "uv>=0.9,<1"
	$(LOCK) --extra postgresql --output-file deploy/runtime.lock pyproject.toml
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	  | $(LOCK) --output-file deploy/build.lock -

sbom: | check-tools ## Write bills of materials (CycloneDX) of both halves into dist/
	@mkdir -p dist $(STAMPS)
	$(PYTHON) -m venv --clear $(STAMPS)/shipped
	$(STAMPS)/shipped/bin/pip install --quiet --disable-pip-version-check .
	$(PYTHON) -m venv --clear $(STAMPS)/sbom
	$(STAMPS)/sbom/bin/pip install --quiet --disable-pip-version-check "cyclonedx-bom>=7"
	$(STAMPS)/sbom/bin/cyclonedx-py environment --output-reproducible --of JSON -o dist/storescp-python.cdx.json $(STAMPS)/shipped/bin/python
	@command -v cargo-cyclonedx >/dev/null || $(CARGO) install --locked --quiet cargo-cyclonedx
	$(CARGO) cyclonedx --format json --manifest-path rust/py/Cargo.toml --override-filename storescp-rust.cdx
	mv rust/py/storescp-rust.cdx.json dist/
	find rust -name storescp-rust.cdx.json -delete

smoke: wheel ## Try the wheel out in a fresh virtual environment
	.ci/smoke dist/storescp-*.whl

clean: ## Remove what was built
	rm -rf $(VENV) $(STAMPS) dist target

.PHONY: help check check-tools build run test lint format kafka bench bench-index bench-pair bench-peers bench-scale bench-durability soak soak-index tables crash fuzz reference docs wheel sdist sbom smoke lock clean
