#!/usr/bin/env bash
# Train a transformer on a formal language, where the language has it under supervision of attention.
#
#   lang=LANGUAGE [NAME=VALUE ...] scripts/train_rasp.sh [fairseq-train flags]
#
# The settings of the original are variables of the environment, as in its example:
#
#   lang=reverse_100 heads=1 layers=2 dim=50 epochs=20 dropout=0.1 gamma=0.99 lr=0.0003 subfolder=example \
#       scripts/train_rasp.sh
#
# Your flags come last and win. A setting for a minute on one core, which learns the language:
#
#   lang=reverse_26 layers=2 dim=64 lr=0.001 epochs=15 \
#       scripts/train_rasp.sh --max-length 20 --train-size 10000 --valid-size 500 --test-size 500
#
# When training ends, or is interrupted by Ctrl-C, the best model is evaluated on train, valid and test: results.json,
# training_prints.txt. Called again, it goes on from SAVE_DIR/checkpoint_last.pt; what is finished is only evaluated.
#
#   lang               required; python preprocessing/languages.py list shows all
#   heads=1 layers=1 dim=128   of the model; its feed-forward maps are twice as wide
#   lr=0.0003 gamma=0.98       rate of the first epoch, and its factor after each
#   position=sin       or embed: learned positions
#   attn_c=100         weight of the attention's loss, for the languages that end in _with_attns
#   dropout=0.0
#   reset_patience=10  epochs without a better model after which the best is taken up again; 0 for never
#   epochs=50          at most: three of perfect validation end it
#   batch_size=50      sequences per update, whatever the number of processes
#   tinyset=0 traincrop=0      samples of train to keep; 0 for all
#   small=false        true: 4 heads, 2 layers, width 16 and 20, 100 samples of train
#   overfit=false      true: one sample, which is train, valid and test, and plain SGD
#   subfolder=         of checkpoints/rasp, for the default of SAVE_DIR
#   SEED=1             of weights and order
#   SAVE_DIR=checkpoints/rasp/[SUBFOLDER/]LANGUAGE/SETTINGS    where all of it goes, with train.log and command.log
#   BATCH_SIZE=N       sequences a process holds at once (default: its share)
#   NPROC=1            processes on a machine without GPU
#   DRY_RUN=1          only print the command
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"
case ${1-} in
    -h | --help) usage && exit ;;
    -* | '') ;;
    *) die "'$1' is no flag of fairseq-train; settings stand before the script: lang=reverse_26 $0" ;;
esac

# one_of NAME VALUE...: the variable NAME has one of the values.
one_of() {
    [[ " ${*:2} " == *" ${!1} "* ]] || die "$1 is '${!1}'; it can be: ${*:2}"
}

# value NAME: what the flag says in the end.
value() { flag "--$1" '' "${all[@]}"; }

# others: what changes a run too, where it is given, for the name of its folder.
others() {
    local name text=''
    for name in independent-layer-init model-bos overfit; do # they have no value
        ! has "--$name" "${all[@]}" || text+=_$name
    done
    for name in rasp-attention positional-dropout tiny crop-train crop-all min-length max-length train-size valid-size \
        test-size batch-size update-freq max-tokens max-update clip-norm weight-decay momentum perfect-acc-cut; do
        ! has "--$name" "${all[@]}" || text+=_$name$(value "$name")
    done
    [[ $(value reset-patience) == 10 ]] || text+=_reset-patience$(value reset-patience)
    printf '%s' "$text"
}

lang=$(flag --language "${lang-}" "$@")
[[ -n $lang ]] || die "which language? lang=reverse_26 $0; python $ROOT/preprocessing/languages.py list shows all"
heads=${heads:-1} layers=${layers:-1} dim=${dim:-128} lr=${lr:-0.0003} gamma=${gamma:-0.98} position=${position:-sin}
attn_c=${attn_c:-100} dropout=${dropout:-0.0} reset_patience=${reset_patience:-10} epochs=${epochs:-50}
batch_size=${batch_size:-50} subfolder=${subfolder:-} small=${small:-false} overfit=${overfit:-false} seed=${SEED:-1}
tinyset=${tinyset:-0} traincrop=${traincrop:-0} ffn=''
one_of position sin embed
one_of small true false
one_of overfit true false
for name in reset_patience tinyset traincrop; do
    [[ ${!name} =~ ^[0-9]+$ ]] || die "$name is '${!name}', not a whole number of at least 0"
done
if [[ $small == true ]]; then heads=4 dim=16 ffn=20 layers=2 traincrop=100; fi
optimizer=adam
[[ $overfit == false ]] || optimizer=sgd
optimizer=$(flag --optimizer "$optimizer" "$@")
for name in heads layers dim epochs batch_size; do check_number "$name" "${!name}"; done

recipe=(--task rasp_lang --language "$lang" --arch rasp_transformer --rasp-layers "$layers" --rasp-heads "$heads"
    --rasp-dim "$dim" --rasp-ffn-dim "${ffn:-$((2 * $(flag --rasp-dim "$dim" "$@")))}"
    --positional-encoding "$position" --dropout "$dropout"
    --criterion rasp_loss --attn-loss-weight "$attn_c"
    --optimizer "$optimizer" --lr "$lr" --lr-scheduler rasp_exponential --gamma "$gamma" --reset-patience "$reset_patience"
    --max-epoch "$epochs" --seed "$seed" --no-epoch-checkpoints)
[[ $optimizer != adam ]] || recipe+=(--adam-betas "(0.9, 0.999)" --adam-eps 1e-08)
((tinyset == 0)) || recipe+=(--tiny "$tinyset")
((traincrop == 0)) || recipe+=(--crop-train "$traincrop")
[[ $overfit == false ]] || recipe+=(--overfit)

all=("${recipe[@]}" "$@")
save_dir=checkpoints/rasp/${subfolder:+$subfolder/}$lang/L$(value rasp-layers)_H$(value rasp-heads)_D$(value rasp-dim)
save_dir+=_FF$(value rasp-ffn-dim)_drop$(value dropout)_epochs$(value max-epoch)_pos-$(value positional-encoding)
save_dir+=_lr$(value lr)_gamma$(value gamma)_c$(value attn-loss-weight)_batch${batch_size}_$optimizer$(others)
save_dir+=_seed$(value seed)

find_environment
longest=$(($(flag --max-length 100 "$@") + 1)) # with its first symbol, or the last pair of brackets
trainer=(python -m fairseq_transnorm.train_rasp)
SEQUENCES=$batch_size train_recipe "$save_dir" "$batch_size" '' '' "$@"
