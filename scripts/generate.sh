#!/usr/bin/env bash
# Let a language model go on with a text.
#
#   PROMPT="The king" scripts/generate.sh CHECKPOINT DATA_BIN [fairseq-interactive flags]
#   scripts/generate.sh CHECKPOINT DATA_BIN [fairseq-interactive flags] <prompts.txt      (one a line)
#
# Prints each text with its prompt, tokenised as DATA_BIN/tokenizer.json says. Tokens are drawn from the 50 likeliest
# at each step; your flags come last and win: --sampling-topp 0.9, --temperature 0.8, --beam 5, ... The same call gives
# the same text, another --seed another one.
#
#   LENGTH=200   most tokens to add; a text ends earlier where the model ends the line (--min-len N forbids it)
#   GO_ON=1      go on after the end of a line: exactly LENGTH tokens, on as many lines as the model likes
#   RAW=1        print all that fairseq-interactive prints
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"

case ${1:---help} in
    -h | --help) usage && exit ;;
esac
(($# >= 2)) || die "give a checkpoint and a data folder: $0 CHECKPOINT DATA_BIN [fairseq-interactive flags]"
check_data "$2"
find_environment
how=()
[[ ${RAW:-0} != 1 ]] || how+=(--raw)
[[ ${GO_ON:-0} != 1 ]] || how+=(--go-on)
exec python -m fairseq_transnorm.measure.samples "$1" "$2" --length "${LENGTH:-200}" \
    ${how[@]+"${how[@]}"} ${PROMPT+--prompt "$PROMPT"} "${@:3}"
