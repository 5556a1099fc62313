"""The YAML runs are the recipes of the training scripts and the presets, value by value."""

import shlex
from argparse import Namespace

import pytest
from fairseq import options
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fairseq_transnorm.models.dslm.config import PRESETS as DSLM_PRESETS
from fairseq_transnorm.models.normgrowth.config import PRESETS as NORMGROWTH_PRESETS
from fairseq_transnorm.models.transnormer.config import MLM_PRESETS, PRESETS
from tests.helpers import ROOT, run_cli

pytestmark = [pytest.mark.registered, pytest.mark.filterwarnings("ignore")]
FILES = {path.stem: path for path in sorted((ROOT / "fairseq_transnorm/config").rglob("*.yaml"))}
SCRIPTS = {  # run -> script and architecture
    "t1": ("train_alm.sh", "transnormer_t1"),
    "t2": ("train_alm.sh", "transnormer_t2"),
    "mlm_t1": ("train_blm.sh", "roberta_transnormer_t1"),
    "mlm_t2": ("train_blm.sh", "roberta_transnormer_t2"),
    "dslm_bert": ("train_dslm_bert.sh", "dslm_bert"),
    "vanilla_bert": ("train_vanilla_bert.sh", "vanilla_bert"),
    "normgrowth_control": ("train_normgrowth.sh control", "normgrowth_control"),
    "normgrowth_pre_norm": ("train_normgrowth.sh pre_norm", "normgrowth_pre_norm"),
    "ihead_basic": ("train_birth.sh", "ihead_basic"),
    "ihead_full": ("train_birth.sh", "ihead_full"),
    "rasp_reverse": ("train_rasp.sh", "rasp_transformer"),
    "rasp_double_histogram": (
        "train_rasp.sh --max-length 20 --train-size 10000 --valid-size 500 --test-size 500",
        "rasp_transformer",
    ),
}
CORPUS = {"ihead_basic", "ihead_full"}  # runs that take a text in place of a data folder
LANGUAGES = {  # runs that have no data: the settings of their script
    "rasp_reverse": {"lang": "reverse_100", "layers": 2, "dim": 50, "epochs": 20}
    | {"dropout": 0.1, "gamma": 0.99, "lr": 0.0003},
    "rasp_double_histogram": {"lang": "hist2_26_bos_with_attns", "layers": 2, "heads": 2, "dim": 64}
    | {"epochs": 15, "lr": 0.001},
}
# What a recipe sets to another value than the preset that it names.
RECIPES = {"vanilla_bert": {"dslm_init": "normal"}}
# Where things are, which is the user's to say, and what only one of the two ways knows.
PLACES = {
    "common.user_dir",
    "common.log_file",
    "task.data",
    "task.corpus",
    "checkpoint.save_dir",
    "common.no_progress_bar",
    "model.arch",
}


def from_yaml(name: str, *overrides: str) -> dict:
    hydra_init(name)
    with initialize_config_dir(str(FILES[name].parent), version_base="1.1"):
        data = ["task.corpus=TEXT"] if name in CORPUS else ["task.data=DATA"] if name not in LANGUAGES else []
        cfg = compose(name, overrides=[*data, "common.user_dir=DIR", *overrides])
    add_defaults(cfg)
    return flat(cfg)


def from_command(line: str) -> dict:
    parser = options.get_training_parser()
    _, _, flags = line.partition(" --user-dir")  # after the command
    args = options.parse_args_and_arch(parser, shlex.split("--user-dir" + flags))
    return flat(convert_namespace_to_omegaconf(args))


def flat(cfg, prefix: str = "") -> dict:
    """Dotted name -> value, resolved."""
    if prefix == "":
        cfg = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    found = {}
    for key, value in cfg.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, Namespace):  # of fairseq's SGD, among all other options
            names = ("_name", "lr", "momentum", "weight_decay")
            found |= {f"{prefix}{key}.{name}": getattr(value, name) for name in names}
        else:
            found[prefix + key] = value
    return found


def scripted(data, name: str) -> dict:
    script, arch = SCRIPTS[name]
    env = {"DRY_RUN": 1, "ARCH": arch, "GPUS": 1, "NPROC": 1} | LANGUAGES.get(name, {})
    script, *arguments = script.split()
    data = [ROOT / "README.md"] if name in CORPUS else [data] if name not in LANGUAGES else []  # any text
    printed = run_cli(f"scripts/{script}", *arguments, *data, env=env).stdout
    return from_command(next(line for line in printed.splitlines() if " --user-dir " in line))


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_run_is_that_of_the_script(name, tiny_lm_data):
    yaml, script = from_yaml(name), scripted(tiny_lm_data, name)
    names = {name for name in {*yaml, *script} - PLACES if not name.startswith("scoring.")}  # of translation
    differ = {n: (yaml.get(n, "absent"), script.get(n, "absent")) for n in names if yaml.get(n) != script.get(n)}
    assert not differ


@pytest.mark.parametrize("name", FILES)
def test_every_value_that_a_preset_changes_stands_in_the_file(name):
    yaml = OmegaConf.to_container(OmegaConf.load(FILES[name]))
    presets = PRESETS | MLM_PRESETS | DSLM_PRESETS | NORMGROWTH_PRESETS
    preset = presets.get(yaml["model"]["_name"], {})
    assert yaml["model"].items() >= (preset | RECIPES.get(name, {})).items()


@pytest.mark.parametrize("name", FILES)
def test_the_file_sets_only_options_that_exist(name):
    yaml = OmegaConf.to_container(OmegaConf.load(FILES[name]))
    model = ARCH_MODEL_NAME_REGISTRY[yaml["model"].pop("_name")]
    known = MODEL_DATACLASS_REGISTRY[model].__dataclass_fields__
    assert not set(yaml["model"]) - set(known)
    length = "max_epoch" if "max_epoch" in yaml["optimization"] else "max_update"
    assert from_yaml(name)[f"optimization.{length}"] == yaml["optimization"][length]


def test_the_comparison_sees_one_changed_value(tiny_lm_data):
    yaml = from_yaml("t2", "optimizer.weight_decay=0.02")
    assert yaml["optimizer.weight_decay"] != scripted(tiny_lm_data, "t2")["optimizer.weight_decay"]


@pytest.mark.parametrize("name", ["dslm_bert", "vanilla_bert"])
def test_task_and_criterion_leave_the_sentence_order_out_together(name):
    for wanted in (False, True):
        yaml = from_yaml(name, f"task.masked_lm_only={wanted}")
        assert yaml["task.masked_lm_only"] is yaml["criterion.masked_lm_only"] is wanted


def test_unknown_options_are_refused():
    with pytest.raises(Exception, match="decoder_layer"):
        from_yaml("t2", "+model.decoder_layer=3")


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("normgrowth")])
def test_the_example_of_another_variant_in_the_file_has_all_its_values(name):
    after = FILES[name].read_text().partition("For example")[2].partition("\n#\n")[2].partition("\n\n")[0]
    overrides = shlex.split(after.replace("#", "").replace("\\\n", ""))
    yaml = from_yaml(name, *overrides)
    preset = NORMGROWTH_PRESETS[yaml["model._name"]]
    assert {n: yaml[f"model.{n}"] for n in preset} == preset
    assert yaml["model._name"] != name
    assert yaml["checkpoint.save_dir"].endswith(yaml["model._name"])
