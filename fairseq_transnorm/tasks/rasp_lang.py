"""fairseq task ``rasp_lang``: one output symbol at each position of sequences of a formal language."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Dict, Optional

from fairseq.tasks import FairseqTask, register_task

from ..data import languages
from ..data.language_dataset import LanguageDataset
from ..data.language_samples import Samples
from ..data.languages import Language
from ..data.symbol_dictionary import SymbolDictionary
from ..models.options import flag
from .epoch_log import EpochLogMixin
from .growth_log import GrowthLogMixin
from .perfect_stop import PerfectStopConfig, PerfectStopMixin

NAME = "rasp_lang"  # in messages
CRITERION = "rasp_loss"
STATE = "formal_language"  # in the state of a task
_SAMPLES = Samples()


@dataclass
class RaspLangConfig(PerfectStopConfig):
    """Options of the task."""

    language: Optional[str] = field(
        default=None, metadata={"help": f"name of the formal language, as reverse_26; {languages.LISTING}"}
    )
    min_length: int = field(default=_SAMPLES.min_length, metadata={"help": "least symbols of a sequence"})
    max_length: int = field(
        default=_SAMPLES.max_length,
        metadata={"help": "most symbols of a sequence, BOS not counted; a balanced one of dyck may have one more"},
    )
    train_size: int = field(default=_SAMPLES.train_size, metadata={"help": "sequences of train"})
    valid_size: int = field(default=_SAMPLES.valid_size, metadata={"help": "sequences of valid"})
    test_size: int = field(default=_SAMPLES.test_size, metadata={"help": "sequences of test"})
    tiny: int = field(default=0, metadata={"help": "keep the first N sequences of train only; 0 for all"})
    crop_train: int = field(default=0, metadata={"help": "the same; the least of those given counts"})
    crop_all: int = field(default=0, metadata={"help": "keep the first N sequences of each split only; 0 for all"})
    overfit: bool = field(default=False, metadata={"help": "the first sequence of train is all of train, valid, test"})


@register_task("rasp_lang", dataclass=RaspLangConfig)
class RaspLangTask(EpochLogMixin, PerfectStopMixin, GrowthLogMixin, FairseqTask):
    """Outputs of a language of :mod:`fairseq_transnorm.data.languages`, which shows some; there is no data folder.

    Attributes:
        language: its symbols, classes, function and attention targets.
        samples: which sequences there are.
    """

    _other_samples: Optional[str] = None  # what was different in the training of a checkpoint

    def __init__(self, cfg: RaspLangConfig, language: Language):
        super().__init__(cfg)
        self.language = language
        try:
            self.samples = Samples(**{field.name: getattr(cfg, field.name) for field in fields(Samples)})
        except ValueError as error:
            raise ValueError(f"{NAME}: {error}") from None
        self.dictionary = SymbolDictionary(language.symbols, padding=True)
        self.classes = SymbolDictionary(language.classes, padding=True)

    @classmethod
    def setup_task(cls, cfg: RaspLangConfig, **kwargs: Any) -> "RaspLangTask":
        """Make the task.

        Raises:
            ValueError: there is no such language, or an option makes no sense.
        """
        if cfg.language is None:
            raise ValueError(f"{NAME}: no --language given; {languages.LISTING}")
        try:
            found = languages.get(cfg.language)
        except ValueError as error:
            raise ValueError(f"{NAME}: {error}") from None
        return cls(cfg, found)

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> None:
        """Make a split.

        Raises:
            ValueError: there is no such split.
        """
        texts = self.samples.draw(self.language.sampler, split)
        self.datasets[split] = LanguageDataset(self.language, texts, shuffle=split == "train")

    def get_batch_iterator(self, dataset: LanguageDataset, *args: Any, **kwargs: Any) -> Any:
        """Return fairseq's iterator, whose batches are of any size.

        ``--required-batch-size-multiple``, by default 8, would make 48 of ``--batch-size 50``.
        """
        kwargs["required_batch_size_multiple"] = 1
        return super().get_batch_iterator(dataset, *args, **kwargs)

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion.

        Raises:
            ValueError: it is not for this task.
        """
        if cfg._name != CRITERION:
            raise ValueError(f"{NAME}: --criterion {cfg._name} is not for this task; give --criterion {CRITERION}")
        return super().build_criterion(cfg, from_checkpoint)

    def state_dict(self) -> Dict[str, Any]:
        """Return the state of the task, with all that decides its samples."""
        return {**super().state_dict(), STATE: self.facts()}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Take the state of a checkpoint; errors as of :meth:`check_state`."""
        self.check_state(state_dict)
        super().load_state_dict(state_dict)

    def facts(self) -> Dict[str, Any]:
        """Return the language, its symbols and which samples there are."""
        own = self.language
        return {
            "language": own.name,
            "symbols": list(own.symbols),
            "classes": list(own.classes),
            **asdict(self.samples),
        }

    def check_state(self, state_dict: Dict[str, Any], checkpoint: str = "the checkpoint") -> None:
        """Compare language and samples with those of a checkpoint; other samples are refused in :meth:`begin_training`.

        Raises:
            ValueError: it was trained on other symbols or for other outputs.
        """
        if STATE not in state_dict:
            return
        theirs, ours = state_dict[STATE], self.facts()
        for name, what in {"symbols": "other symbols", "classes": "other outputs"}.items():
            if theirs[name] != ours[name]:
                raise ValueError(
                    f"{NAME}: {checkpoint} was trained on {theirs['language']}, which has {what} than "
                    f"--language {ours['language']}; give its language, or begin a new run with another --save-dir"
                )
        self._other_samples = self.other_samples(theirs, checkpoint)

    def other_samples(self, theirs: Dict[str, Any], checkpoint: str) -> Optional[str]:
        """Say in which of the :meth:`facts` a checkpoint differs; None where it does not."""
        options = {"language": self.language.name, **asdict(self.samples)}
        different = [name for name, ours in options.items() if theirs.get(name) != ours]
        said = ", ".join(f"{flag(name)} {theirs.get(name)}, not {options[name]}" for name in different)
        return f"{NAME}: {checkpoint} was trained with {said}" if different else None

    def begin_training(self, trainer: Any) -> None:
        """Look at the trainer before the first update.

        Raises:
            ValueError: a run would go on with another language or other samples, or as in the parts of this task.
        """
        if self._other_samples is not None and trainer.get_num_updates():
            raise ValueError(
                f"{self._other_samples}; give the same, or begin a new run from its weights with "
                "--finetune-from-model and another --save-dir"
            )
        super().begin_training(trainer)

    @property
    def source_dictionary(self) -> SymbolDictionary:
        """Input symbols; padding has the number after them."""
        return self.dictionary

    @property
    def target_dictionary(self) -> SymbolDictionary:
        """Output classes; padding has the number after them."""
        return self.classes

    def max_positions(self) -> int:
        """Most tokens of an input, BOS included."""
        return self.language.longest(self.samples.max_length)
