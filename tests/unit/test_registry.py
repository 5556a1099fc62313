"""What the package registers is its own: fairseq hands back its own class for a name that it already has."""

import ast
import dataclasses

import pytest
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY
from fairseq.optim import OPTIMIZER_REGISTRY
from fairseq.optim.lr_scheduler import LR_SCHEDULER_REGISTRY
from fairseq.tasks import TASK_REGISTRY

import fairseq_transnorm
from tests.helpers import ROOT

pytestmark = pytest.mark.registered
PACKAGE = fairseq_transnorm.__name__
REGISTRIES = {
    "register_model": MODEL_REGISTRY,
    "register_task": TASK_REGISTRY,
    "register_criterion": CRITERION_REGISTRY,
    "register_optimizer": OPTIMIZER_REGISTRY,
    "register_lr_scheduler": LR_SCHEDULER_REGISTRY,
}


def decorated() -> list[tuple[str, str, str]]:
    """(decorator, name, class) of every registration that stands in the source of the package."""
    return [
        (call.func.id, ast.literal_eval(call.args[0]), node.name)
        for path in sorted((ROOT / PACKAGE).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for call in node.decorator_list
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in REGISTRIES
    ]


def test_the_package_registers_something():
    assert ("register_model", "transnormer_lm", "TransNormerLM") in decorated()


@pytest.mark.parametrize(("kind", "name", "class_name"), decorated())
def test_a_registered_name_is_ours(kind, name, class_name):
    cls = REGISTRIES[kind][name]
    assert (cls.__module__.split(".")[0], cls.__name__) == (PACKAGE, class_name)


OUR_ARCHS = sorted(a for a, m in ARCH_MODEL_REGISTRY.items() if m.__module__.startswith(f"{PACKAGE}."))


@pytest.mark.parametrize("arch", OUR_ARCHS)
def test_an_architecture_belongs_to_a_model_of_ours_with_a_dataclass(arch):
    model = ARCH_MODEL_NAME_REGISTRY[arch]
    assert MODEL_REGISTRY[model].__module__.startswith(f"{PACKAGE}.")
    assert dataclasses.is_dataclass(MODEL_DATACLASS_REGISTRY[model])


@pytest.mark.parametrize("arch", OUR_ARCHS)
def test_every_option_has_a_help_text_and_no_flag_is_on_by_default(arch):
    for field in dataclasses.fields(MODEL_DATACLASS_REGISTRY[ARCH_MODEL_NAME_REGISTRY[arch]]):
        if field.name.startswith("_") or str(field.default).startswith("${"):
            continue  # fairseq's own, or shared with another group
        assert field.metadata.get("help"), f"{arch}: {field.name} has no help"
        assert field.default is not True, f"{arch}: --{field.name.replace('_', '-')} would turn itself off"
