"""Criterions; importing this package registers them (fairseq's spelling of the folder)."""

from . import bert_sop, bigram_icl, dslm_sentence_ranking, rasp_loss, sentence_mean_loss
