# Two commands: `make video` shows what the package does, `make test` checks it. Each does its own set-up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt

PHOTO  ?= examples/castle.jpg
PROMPT ?= the camera pans to the right
OUT    ?= out/video.mp4

.PHONY: video test lint clean

video: $(VENV)/core
	@$(BIN)/i2vgen generate "$(PHOTO)" "$(PROMPT)" -o "$(OUT)" --force

test: $(VENV)/dev
	@$(BIN)/python -m pytest -q

lint: $(VENV)/dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

$(VENV)/core: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once, a few minutes)"
	@$(PIP) -e .
	@touch $@

$(VENV)/dev: $(VENV)/core
	@echo "installing the development tools into $(VENV)"
	@$(PIP) -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) out build *.egg-info
