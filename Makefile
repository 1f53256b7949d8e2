# make demo   shows the library at work, without the network
# make test   runs the tests
#
# Both first build the package and install it into .venv. All they need is Python >= 3.11, a C++
# compiler, and the network the first time.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test install wheel clean

PYTHON ?= python3
PYTEST ?= -m pytest
PYTEST_ARGS ?= --numprocesses=logical --maxprocesses=4
EXTRAS := cli,text,server,textual

BUILD := .venv-build
VENV := .venv
WHEELS := build/wheels
PIP := -m pip --quiet --disable-pip-version-check
NATIVE := CMakeLists.txt $(shell find src/native -type f)
SOURCES := $(shell find src/aioembed -type f -not -name '*.pyc' -not -name '*.so' -not -name '*.dylib')
BUILD_REQUIREMENTS := $(PYTHON) -c 'import tomllib; \
  print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")'

demo: install
	@$(VENV)/bin/aioembed demo

test: install $(VENV)/.test-requirements
	@$(VENV)/bin/python $(PYTEST) $(PYTEST_ARGS)

install: $(VENV)/.package

wheel: $(WHEELS)/.built

clean:
	rm -rf $(BUILD) $(VENV) build

# The build requirements stay in their own environment, so that a second build takes seconds.
# Of executorch it needs the C++ SDK, not the 580 MB of packages which that depends on.
$(BUILD)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, such as: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || \
	  { echo "A C++ compiler is needed: apt-get install g++, or xcode-select --install" >&2; exit 1; }
	@echo "== 1/3 fetching what the build needs ($(BUILD))"
	@$(PYTHON) -m venv $(BUILD)
	@$(BUILD)/bin/python $(PIP) install --upgrade pip
	@$(BUILD_REQUIREMENTS) | grep -v '^executorch' | $(BUILD)/bin/python $(PIP) install -r /dev/stdin
	@$(BUILD_REQUIREMENTS) | grep '^executorch' | $(BUILD)/bin/python $(PIP) install --no-deps -r /dev/stdin
	@touch $@

$(WHEELS)/.built: $(BUILD)/.ready $(NATIVE) $(SOURCES) README.md LICENSE
	@echo "== 2/3 building the wheel ($(WHEELS))"
	@rm -rf $(WHEELS)
	@PATH="$(CURDIR)/$(BUILD)/bin:$$PATH" $(BUILD)/bin/python $(PIP) wheel . \
	  --no-build-isolation --no-deps --wheel-dir $(WHEELS)
	@touch $@

$(VENV)/.requirements: pyproject.toml | $(WHEELS)/.built
	@echo "== 3/3 installing ($(VENV))"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python $(PIP) install --upgrade pip
	@$(VENV)/bin/python $(PIP) install "$$(echo $(WHEELS)/*.whl)[$(EXTRAS)]"
	@touch $@

$(VENV)/.package: $(VENV)/.requirements $(WHEELS)/.built
	@$(VENV)/bin/python $(PIP) install --force-reinstall --no-deps $(WHEELS)/*.whl
	@touch $@

$(VENV)/.test-requirements: $(VENV)/.requirements
	@$(VENV)/bin/python $(PIP) install --group test --group server-test --group examples
	@touch $@
