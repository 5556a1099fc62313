#!/usr/bin/env bash
# How signals and gradients travel through 192 layers: DeepScaleLM and the vanilla BERT, Pre-LN and Post-LN.
#
#   bash scripts/repro/signal_propagation.sh [options of analysis/dslm/signal_propagation.py]
#
# Makes .venv first where it is missing. Draws for each scheme preln_forward.png, preln_backward.png, postln_forward.png
# and postln_backward.png, with the gradient of the stream and the correlation between positions beside them, into
# outputs/signal_propagation/dslm and .../xavier, an overview into outputs/signal_propagation.png, and compares all of it
# with the published behaviour: status 3 if something differs. About a minute on one core, and 3 GB.
#
#   --data DATA_BIN    a batch of text instead of a made-up one
#   --layers, --dim, --heads, --length, --sequences    192, 256, 4, 128, 4
#   NO_VENV=1          use the environment that is active instead of .venv
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../_env.sh"
source "$(dirname "${BASH_SOURCE[0]}")/../_run.sh"

# In braces, for bash reads a script as it goes and this one may be changed while it runs.
{
    case ${1-} in -h | --help) usage && exit ;; esac
    [[ -n ${NO_VENV:-} ]] || ensure_env
    find_environment
    python "$ROOT/analysis/dslm/signal_propagation.py" --check "$@"
    exit
}
