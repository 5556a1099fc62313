"""fairseq task ``normgrowth_masked_lm``: fairseq's ``masked_lm`` with a log of norm growth."""

from dataclasses import dataclass

from fairseq.tasks import register_task
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask

from .growth_log import GrowthLogConfig, GrowthLogMixin
from .kept_dictionary import KeptDictionary


@dataclass
class NormGrowthMaskedLMConfig(GrowthLogConfig, MaskedLMConfig):
    """The options of fairseq's task and of the log."""


@register_task("normgrowth_masked_lm", dataclass=NormGrowthMaskedLMConfig)
class NormGrowthMaskedLMTask(KeptDictionary, GrowthLogMixin, MaskedLMTask):
    """As fairseq's ``masked_lm``, whose samples it has bit for bit; for masked language models of both packages."""
