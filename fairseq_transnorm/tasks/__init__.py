"""Tasks; importing this package registers them."""

from . import (
    bert_sop_lm,
    bigram_icl,
    dslm_sentence_prediction,
    dslm_sentence_ranking,
    normgrowth_lm,
    normgrowth_masked_lm,
    rasp_lang,
)
