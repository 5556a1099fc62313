#!/usr/bin/env bash
# Which formal languages does a transformer learn that has the layers and heads of the language's program?
#
#   bash scripts/repro/rasp_languages.sh [--fresh]
#
# Makes .venv first where it is missing. Trains one model on each language, on sequences of 1 to 20 symbols: with
# softmax attention, where the language has it also under supervision, and with linear attention, without a denominator
# (TransNormer's) and with one. Everything goes to outputs/rasp_languages/; summary.md and summary_runs.csv are what to read.
# Called again, it keeps what is finished and goes on with the rest.
#
#   --fresh            remove outputs/rasp_languages/ first
#   OUT=outputs/rasp_languages   another folder
#   SEEDS=1            or several: "1 2"
#   ATTENTION="softmax linear linear_denominator"    or some of them
#   JOBS=2             trainings side by side, a core each
#   DRY_RUN=1          only print the commands of the trainings
#   NO_VENV=1          use the environment that is active instead of .venv
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../_rasp.sh"

# language, and layers and heads of its program
sizes=(
    "reverse_26 2 1"
    "hist_26_bos 1 1"
    "hist_26 1 2"
    "hist2_26_bos 2 2"
    "sort_26 2 1"
    "sort_by_freq_26_bos 3 2"
    "dyck1_ptf_bos 2 1"
    "dyck2_ptf_bos 3 1"
    "dyck3_ptf_bos 3 1"
    "dyck4_ptf_bos 3 1"
    "dyck5_ptf_bos 3 1"
    "dyck6_ptf_bos 3 1"
    "dyck7_ptf_bos 3 1"
    "dyck8_ptf_bos 3 1"
)
supervised=(
    "hist2_26_bos_with_attns 2 2"
    "sort_26_with_attns 2 1"
    "sort_26_bos_with_attns 2 1"
    "sort_by_freq_26_bos_with_attns 3 2"
)
larger=("reverse_52 2 1" "reverse_100 2 1")

for attention in ${ATTENTION:-softmax linear linear_denominator}; do
    models=("${sizes[@]}")
    case $attention in
        softmax) models+=("${supervised[@]}" "${larger[@]}") ;;
        linear | linear_denominator) ;;
        *) die "ATTENTION is '$attention'; it can be: softmax linear linear_denominator" ;;
    esac
    for model in "${models[@]}"; do
        read -r language layers heads <<<"$model"
        plan "${language}_$attention" "$language" "$layers" "$heads" "${SEEDS:-1}" --rasp-attention "$attention"
    done
done

main() {
    prepare outputs/rasp_languages \
        "Transformers on formal languages: ${#runs[@]} small ones, about half a minute each on a core." "$@"
    train_runs '[1/2]'
    begin '[2/2] summary'
    summarise
    finish
    end
    cat "$out/summary.md"
}

# In braces, for bash reads a script as it goes and this one may be changed while it runs.
{
    main "$@"
    exit
}
