#!/usr/bin/env bash
# Transformers on formal languages at a size for two cores: what they learn, with attention as a program's and without.
#
#   bash scripts/repro_rasp.sh [--fresh]
#
# Makes .venv first where it is missing. Trains small transformers on sequences of 1 to 20 letters: reverse with as many
# layers as a program needs and with one fewer, histogram, double histogram with supervision of attention and without,
# most-freq with supervision, and one kind of brackets. Evaluates them, draws three heat maps and compares all of it with
# what is known: status 3 if something differs. Everything goes to outputs/rasp/; summary.md, phenomena.json and maps/
# are what to read. Called again, it keeps what is finished and goes on with the rest.
#
# scripts/repro/rasp_languages.sh trains on every language.
#
#   --fresh            remove outputs/rasp/ first
#   OUT=outputs/rasp   another folder
#   SEEDS=1            or several: "1 2"; by default double histograms, which vary much, have "1 2 3"
#   JOBS=2             trainings side by side, a core each
#   DRY_RUN=1          only print the commands of the trainings
#   NO_CHECK=1         only draw
#   NO_VENV=1          use the environment that is active instead of .venv
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_rasp.sh"

# Those that take longest first: name, language, layers, heads.
one=${SEEDS:-1} several=${SEEDS:-1 2 3}
plan most_freq sort_by_freq_26_bos_with_attns 3 2 "$one"
plan double_histogram hist2_26_bos_with_attns 2 2 "$several"
plan unsupervised hist2_26_bos 2 2 "$several"
plan reverse reverse_26 2 1 "$one"
plan one_layer reverse_26 1 1 "$one"
plan brackets dyck1_ptf_bos 2 1 "$one"
plan histogram hist_26_bos 1 1 "$one"

main() {
    prepare outputs/rasp \
        "Transformers on formal languages: ${#runs[@]} small ones, heat maps and phenomena; about 8 minutes on 2 cores." \
        "$@"
    train_runs '[1/3]'
    begin '[2/3] summary and heat maps'
    summarise
    map reverse abcdefgh
    map double_histogram languages
    map most_freq languages
    finish
    end
    cat "$out/summary.md"
    compare '[3/3]' rasp
}

# In braces, for bash reads a script as it goes and this one may be changed while it runs.
{
    main "$@"
    exit
}
