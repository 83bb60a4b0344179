# Needs make and Python 3.11, 3.12 or 3.13. Everything else goes into .venv, from wheels: no compiler, no root.

.DEFAULT_GOAL := help
.PHONY: help demo test check docs bench chaos clean runtime dev

RUN := .venv/bin/

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: runtime  ## a conversation that survives everything, in about a minute
	@$(RUN)inturn demo

# What promises something in seconds runs by itself. Most others wait for processes half of their time, so there are more
# of them at once than cores, and who is done takes from those who are not.
FAULTS := tests/acceptance/test_faults.py tests/acceptance/test_rate_limits.py tests/integration/test_writers_in_turn.py
CHAOS := tests/acceptance/test_chaos.py tests/acceptance/test_batch_chaos.py

test: dev  ## the tests, on real servers (ARGS="-k lease" runs pytest once, with them)
ifdef ARGS
	@$(RUN)python -m pytest $(ARGS)
else
	@$(RUN)python -m pytest -n 4 --dist worksteal $(addprefix --ignore ,$(FAULTS) $(CHAOS))
	@$(RUN)python -m pytest -n 2 $(CHAOS)
	@$(RUN)python -m pytest $(FAULTS)
endif

check: dev  ## lint, format, types, import contracts
	@$(RUN)ruff check .
	@$(RUN)ruff format --check .
	@$(RUN)mypy
	@$(RUN)lint-imports

docs: dev  ## the site of docs/, with dead links as errors, into build/docs
	@$(RUN)python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "build/docs/index.html"

bench: dev  ## cost per turn beside a bare loop (ROWS="...", JSON=file)
	@$(RUN)python -m ops.bench $(if $(ROWS),--rows "$(ROWS)") $(if $(JSON),--json "$(JSON)")

chaos: dev  ## kill, freeze and wipe things in mid-turn, and count what is lost (SECONDS=600 SEED=7 DATABASE=sqlite)
	@$(RUN)python -m ops.chaos run $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) \
		$(if $(DATABASE),--database $(DATABASE)) $(if $(RECORD),--record) $(ARGS)

clean:  ## remove .venv and all caches
	@rm -rf .venv build dist inturn.egg-info
	@rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find inturn ops examples tests -type d -name __pycache__ -prune -exec rm -rf {} +

# The interpreters to try, best first. PYTHON=/path/to/python chooses one.
PYTHON ?= python3.13 python3.12 python3.11 python3

# $1 is what to install, $2 names it, the rest are names of installs that hold it as well.
#
# .venv/<name>   written after an install: the place and the pyproject.toml it was made for. Neither a new date on
#                that file nor another branch with the same content asks for a new install.
# .venv/whole    the place, absent while pip is at work. A .venv without it was interrupted, one with another place was
#                moved, which a virtual environment does not survive: both are made anew.
define INSTALL
set -eu
say() { echo "inturn: $$*" >&2; }
what=$$1 name=$$2
shift
here=$$(pwd -P)
wanted="$$here $$(cksum < pyproject.toml)"
works() { .venv/bin/python -c '' 2>/dev/null && [ "$$(cat .venv/whole 2>/dev/null)" = "$$here" ]; }
if works; then
    for installed; do
        [ "$$(cat ".venv/$$installed" 2>/dev/null)" != "$$wanted" ] || exit 0
    done
else
    python= no_venv=
    for candidate in $$PYTHON; do
        "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null || continue
        if "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then python=$$candidate && break; fi
        no_venv=$$candidate
    done
    if [ -z "$$python" ] && [ -n "$$no_venv" ]; then
        say "$$no_venv cannot make virtual environments: its modules venv and ensurepip are missing." \
            "On Debian and Ubuntu: apt install $$("$$no_venv" -c 'import sys; print("python3.%d-venv" % sys.version_info[1])')"
        exit 1
    elif [ -z "$$python" ]; then
        say "needs Python 3.11, 3.12 or 3.13, and found none among: $$PYTHON." \
            "Install one, or name it: make PYTHON=/path/to/python3.12 ..."
        exit 1
    fi
    say "making .venv with $$("$$python" --version)"
    rm -rf .venv
    "$$python" -m venv .venv
fi
say "installing into .venv (the first time takes a minute or two)"
trap 'exit 130' INT TERM
rm -f .venv/whole
failed=0
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --only-binary :all: -e "$$what" || failed=$$?
printf '%s\n' "$$here" > .venv/whole
[ "$$failed" = 0 ] || { say "pip could not install inturn's packages: its reason stands above"; exit "$$failed"; }
printf '%s\n' "$$wanted" > ".venv/$$name"
endef
export INSTALL PYTHON

runtime:
	@sh -c "$$INSTALL" inturn . runtime dev

dev:
	@sh -c "$$INSTALL" inturn '.[dev]' dev
