# shellcheck shell=bash
# How scripts/train_dslm_bert.sh and scripts/train_vanilla_bert.sh pretrain.  Source this file.
#
#   train_bert KIND ARCH "$@"   KIND dslm or vanilla, whose ARCHs begin so; flags of the model in `model_flags`; "$@"
#                               begins with the data folder
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh"

train_bert() {
    local kind=$1 arch=$2 data max_update warmup
    shift 2
    arch=$(flag --arch "$arch" "$@")
    [[ $arch == "$kind"_bert* ]] || die "--arch $arch is not for this script, which trains ${kind}_bert and its sizes" \
        "dslm_bert*: scripts/train_dslm_bert.sh; vanilla_bert*: scripts/train_vanilla_bert.sh; others: fairseq-train"
    text_folder "$@"
    shift
    find_environment
    max_update=$(flag --max-update 488281 "$@")
    check_number --max-update "$max_update"
    warmup=$(((max_update + 99) / 100))
    # shellcheck disable=SC2034  # for train_recipe
    local valid_sequences=12800 # 50 batches of 256, as in the original: not a whole split every 4000 updates
    # shellcheck disable=SC2034,SC2154  # both are shared with other scripts
    recipe=(
        --task bert_sop_lm --criterion bert_sop --tokens-per-sample 512 --arch "$arch" ${model_flags[@]+"${model_flags[@]}"}
        --dropout 0.1 --attention-dropout 0.1
        --optimizer bert_adam --adam-betas "(0.9, 0.999)" --adam-eps 1e-08 --weight-decay 0.01 --clip-norm 1.0
        --lr 1e-4 --lr-scheduler polynomial_decay --power 1 --end-learning-rate 0
        --warmup-updates "$warmup" --max-update "$max_update" --total-num-update "$max_update" --seed 1234
        --no-epoch-checkpoints --save-interval-updates 4000 --keep-interval-updates 1
    )
    ! has --masked-lm-only "$@" || recipe+=(--find-unused-parameters) # pooler and order head
    ! has --fp16 "$@" || recipe+=(--fp16-no-flatten-grads)            # bert_adam tells matrices from biases
    train_recipe "checkpoints/${kind}_bert" 256 8 "$data" "$@"
}
