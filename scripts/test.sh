#!/usr/bin/env bash
# Check everything: format, lint, types, shell scripts, tests.  Usage: scripts/test.sh [pytest arguments]
# `scripts/test.sh tests/unit -k norms` runs those tests only; `-n 0` runs them in one process.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
echo "Checking format, lint, types, shell scripts and tests: about 10 minutes for all of it on 2 cores."
ensure_env || exit 1
cd "$ROOT" || exit 1
export OMP_NUM_THREADS=1

summary=()
failed=0
# stage NAME COMMAND...: run it whatever happened before.
stage() {
    local name=$1 started=$SECONDS verdict=passed
    shift
    printf '\n== %s\n' "$name"
    "$@" || { verdict=FAILED && failed=$((failed + 1)); }
    summary+=("$(printf '%-8s %-7s %4d s' "$name" "$verdict" $((SECONDS - started)))")
}

shopt -s nullglob
stage format ruff format --check .
stage lint ruff check .
stage types mypy
stage shell shellcheck --external-sources --source-path=SCRIPTDIR scripts/*.sh scripts/*/*.sh .ci/run
stage tests python -m pytest -n "${PYTEST_WORKERS:-2}" --dist worksteal --durations=8 --durations-min=5 "$@"

printf '\n== summary\n'
printf '%s\n' "${summary[@]}"
((failed == 0))
