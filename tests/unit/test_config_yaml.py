"""The YAML runs are the recipes of scripts/train_alm.sh and train_blm.sh and the presets, value by value."""

import shlex

import pytest
from fairseq import options
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fairseq_transnorm.models.transnormer.config import MLM_PRESETS, PRESETS
from tests.helpers import ROOT, run_cli

pytestmark = [pytest.mark.registered, pytest.mark.filterwarnings("ignore")]
FOLDER = ROOT / "fairseq_transnorm/config/transnormer"
RUNS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
# Where things are, which is the user's to say, and what only one of the two ways knows.
PLACES = {
    "common.user_dir",
    "common.log_file",
    "task.data",
    "checkpoint.save_dir",
    "common.no_progress_bar",
    "model.arch",
}


def from_yaml(name: str, *overrides: str) -> dict:
    hydra_init(name)
    with initialize_config_dir(str(FOLDER), version_base="1.1"):
        cfg = compose(name, overrides=["task.data=DATA", "common.user_dir=DIR", *overrides])
    add_defaults(cfg)
    return flat(cfg)


def from_command(line: str) -> dict:
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, shlex.split(line)[1:])
    return flat(convert_namespace_to_omegaconf(args))


def flat(cfg, prefix: str = "") -> dict:
    """Dotted name -> value, resolved."""
    if prefix == "":
        cfg = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    found = {}
    for key, value in cfg.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def scripted(data, arch: str) -> dict:
    env = {"DRY_RUN": 1, "ARCH": arch, "GPUS": 1, "NPROC": 1}
    script = "train_blm.sh" if arch.startswith("roberta") else "train_alm.sh"
    printed = run_cli(f"scripts/{script}", data, env=env).stdout
    return from_command(next(line for line in printed.splitlines() if line.startswith("fairseq-train")))


@pytest.mark.parametrize("name", ["t1", "t2", "mlm_t1", "mlm_t2"])
def test_the_run_is_that_of_the_script(name, tiny_lm_data):
    arch = f"transnormer_{name}" if len(name) == 2 else f"roberta_transnormer_{name[-2:]}"
    yaml, script = from_yaml(name), scripted(tiny_lm_data, arch)
    names = {name for name in {*yaml, *script} - PLACES if not name.startswith("scoring.")}  # of translation
    differ = {n: (yaml.get(n, "absent"), script.get(n, "absent")) for n in names if yaml.get(n) != script.get(n)}
    assert not differ


@pytest.mark.parametrize("name", RUNS)
def test_every_value_that_a_preset_changes_stands_in_the_file(name):
    yaml = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml"))
    arch = yaml["model"]["_name"]
    assert yaml["model"].items() >= (PRESETS | MLM_PRESETS)[arch].items()


@pytest.mark.parametrize("name", RUNS)
def test_the_file_sets_only_options_that_exist(name):
    yaml = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml"))
    model = ARCH_MODEL_NAME_REGISTRY[yaml["model"].pop("_name")]
    known = MODEL_DATACLASS_REGISTRY[model].__dataclass_fields__
    assert not set(yaml["model"]) - set(known)
    assert from_yaml(name)["optimization.max_update"] == yaml["optimization"]["max_update"]


def test_the_comparison_sees_one_changed_value(tiny_lm_data):
    yaml = from_yaml("t2", "optimizer.weight_decay=0.02")
    assert yaml["optimizer.weight_decay"] != scripted(tiny_lm_data, "transnormer_t2")["optimizer.weight_decay"]


def test_unknown_options_are_refused():
    with pytest.raises(Exception, match="decoder_layer"):
        from_yaml("t2", "+model.decoder_layer=3")
