"""What kernels declare about their updates."""

import importlib
import pkgutil

import pytest

import gradtx
from gradtx.kernel import NON_NEGATIVE, Kernel

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(gradtx.__path__, "gradtx.")
    if "__main__" not in module.name
]
KERNELS = {
    f"{module.__name__}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if isinstance(value, Kernel)
}


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_says_how_its_updates_grow(name):
    assert KERNELS[name].is_declared


def test_there_are_kernels():
    assert len(KERNELS) > 60


@pytest.mark.parametrize(
    "declared",
    [
        {"factor": "size"},
        {"factor": lambda size: 2 * size},
        {"applies": "here"},
        {"decay_applies": "here"},
        {"decays": "shrinkage"},
        {"rate": "size"},
    ],
    ids=["name", "function", "applies", "decay_applies", "decays", "rate"],
)
def test_a_declaration_that_names_what_is_not_there_is_refused(declared):
    def scaled(g, *, step_size):
        return step_size * g

    with pytest.raises(ValueError, match=r"^mine: its effect names \['\w+'\]"):
        Kernel("mine", scaled, hyperparameters={"step_size": NON_NEGATIVE}, **declared)
