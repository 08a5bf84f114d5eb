"""The public names: where they are, what their signatures look like and what their docstrings say."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from typing import Any

import pytest

import jaxsoftmax
from jaxsoftmax import calibration, objectives

# What offers public names, and the path by which they are reached from the front door.
OFFERING = ((jaxsoftmax, ""), (objectives, "objectives."), (calibration, "calibration."))
PUBLIC: dict[str, Any] = {
    prefix + name: getattr(module, name)
    for module, prefix in OFFERING
    for name in module.__all__
    if not inspect.ismodule(getattr(module, name))
}
FUNCTIONS: dict[str, Callable[..., Any]] = {n: v for n, v in PUBLIC.items() if inspect.isfunction(v)}
TUPLES: dict[str, Any] = {n: v for n, v in PUBLIC.items() if inspect.isclass(v)}
# Modules of the calibration package that serve its other files.
INNER = {"inputs", "rows"}
ARRAY_FUNCTIONS = [name for name in FUNCTIONS if name != "forward_mode"]
NOTHING_TO_RAISE = {"forward_mode", "objectives.z_loss", "objectives.additive_margin"}

# What comes by position, in this order; all else by keyword.
POSITIONAL = (
    "key",
    "statistic",
    "arrays",
    "objective",
    "mesh",
    "features",
    "kernel",
    "student_features",
    "student_kernel",
    "teacher_features",
    "teacher_kernel",
    "k",
    "statistics",
    "hard",
    "soft",
    "costs",
    "acts",
    "threshold",
    "sets",
    "scores",
    "uncertainty",
    "losses",
    "logits",
    "labels",
    "calibrator",
    "targets",
    "target_logits",
    "values",
    "weights",
    "label_smoothing",
)
POSITIONAL_WITH_DEFAULT = {("weighted_mean", "weights")}

# An option has one default wherever it occurs, or one of a few where its meaning differs.
DEFAULTS: dict[str, tuple[Any, ...]] = {
    "axis": (-1,),
    "where": (None,),
    "weights": (None,),
    "keepdims": (False,),
    "temperature": (None, 1.0),
    "logit_cap": (None,),
    "ignore_label": (None,),
    "class_weights": (None,),
    "label_smoothing": (0.0,),
    "smoothing": ("uniform",),
    "z_loss": (0.0,),
    "gamma": (2.0, 0.1),
    "alpha": (None, 0.1),
    "epsilon": (1.0,),
    "margin": (1.0, 0.35, 0.5),
    "scale": (64.0,),
    "variant": ("crammer_singer",),
    "positive_weight": (None,),
    "base": (None,),
    "hard": (False,),
    "reduction": ("mean",),
    "bias": (None,),
    "student_bias": (None,),
    "teacher_bias": (None,),
    "num_classes": (None,),
    "block_size": (None,),
    "precision": (None,),
    "axis_name": (None,),
    "rows": ("data",),
    "classes": ("model",),
    "k": (1, None),
    "logits": (None,),
    "probs": (None,),
    "bins": (15,),
    "binning": ("width",),
    "norm": (1,),
    "classwise": (False,),
    "debias": (False,),
    "resamples": (1000,),
    "level": (0.95,),
    "batch_size": (None,),
    "bandwidth": (None,),
    "points": (201,),
    "method": ("lac",),
    "key": (None,),
    "penalty": (0.01,),
    "k_reg": (5,),
    "nonempty": (False,),
    "reject_cost": (None,),
    "thresholds": (None,),
    "ax": (None,),
    "label": (None,),
    "diagonal_penalty": (2.0,),
    "off_diagonal_penalty": (2.0,),
    "intercept_penalty": (2.0,),
    "folds": (5,),
}

SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Numerics|Gradient|Example|References|Attributes):$", re.MULTILINE)
ORDER = ("Args", "Attributes", "Returns", "Yields", "Raises", "Numerics", "Gradient", "Example", "References")


def sections(documented: Any) -> dict[str, str]:
    """The sections of the docstring, by title, in order."""
    parts = SECTION.split(inspect.getdoc(documented) or "")
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def entries(section: str) -> list[str]:
    """The names that a section explains, one each at the first level of indentation."""
    return re.findall(r"^    (\w+):", section, re.MULTILINE)


def in_order(name: str) -> tuple[bool, str]:
    """Constants, then classes, then functions."""
    return not name.isupper(), name


def test_all_is_sorted_and_complete() -> None:
    """Each front door lists what its modules list, each name once, sorted, and all of it exists."""
    doors = ((jaxsoftmax, {"forward_mode", "objectives", "calibration"}), (calibration, set()))
    for door, gathered in doors:
        for info in pkgutil.iter_modules(door.__path__):
            module = importlib.import_module(f"{door.__name__}.{info.name}")
            if info.name.startswith("_"):
                continue
            assert list(module.__all__) == sorted(set(module.__all__), key=in_order), info.name
            assert all(hasattr(module, name) for name in module.__all__)
            if module not in (objectives, calibration) and info.name not in INNER:
                gathered |= set(module.__all__)
        assert list(door.__all__) == sorted(set(door.__all__))
        assert set(door.__all__) == gathered
        assert all(hasattr(door, name) for name in door.__all__)


def test_one_public_path_per_name() -> None:
    """Nothing is offered twice, and what is not offered starts with an underscore or is a module."""
    offered = [getattr(m, n) for m, _ in OFFERING for n in m.__all__]
    assert len({id(item) for item in offered}) == len(offered)
    for door in (jaxsoftmax, calibration):
        stray = {n for n, v in vars(door).items() if not n.startswith("_") and not inspect.ismodule(v)}
        assert stray <= set(door.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature(name: str) -> None:
    """Arrays by position, a key first, options by keyword with the default that they have everywhere."""
    if name == "forward_mode":
        assert not inspect.signature(FUNCTIONS[name]).parameters
        return
    positional = []
    for parameter in inspect.signature(FUNCTIONS[name]).parameters.values():
        assert parameter.annotation is not parameter.empty, parameter.name
        assert parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY), parameter.name
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert parameter.default in DEFAULTS[parameter.name], parameter.name
        else:
            positional.append(POSITIONAL.index(parameter.name))
            optional = (name, parameter.name) in POSITIONAL_WITH_DEFAULT
            assert parameter.default is (None if optional else parameter.empty), parameter.name
    assert positional == sorted(positional)
    assert inspect.signature(FUNCTIONS[name]).return_annotation is not inspect.Signature.empty


def test_temperature_is_off_or_one() -> None:
    """Only where the temperature sets the unit of the result, or is what the function is about, is it 1.0."""
    ones = {
        name
        for name, function in FUNCTIONS.items()
        if (parameter := inspect.signature(function).parameters.get("temperature")) and parameter.default == 1.0
    }
    assert ones == {"smooth_max", "gumbel_softmax", "calibration.energy_score"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_sections(name: str) -> None:
    """The sections are there, in the one order, and the example is a doctest."""
    found = sections(FUNCTIONS[name])
    assert list(found) == sorted(found, key=ORDER.index)
    assert ">>> " in found["Example"]
    assert ("Raises" in found) == (name not in NOTHING_TO_RAISE)
    first = (inspect.getdoc(FUNCTIONS[name]) or "").splitlines()[0]
    assert first.endswith(".")


@pytest.mark.parametrize("name", ARRAY_FUNCTIONS)
def test_docstring_of_array_functions(name: str) -> None:
    """Args names exactly the parameters, Returns a shape, and the derivative is documented."""
    found = sections(FUNCTIONS[name])
    assert entries(found["Args"]) == list(inspect.signature(FUNCTIONS[name]).parameters)
    tuples = "|".join(kind.__name__ for kind in TUPLES.values())
    assert re.match(rf"\s+(\[.*\]|A scalar|A function|Axes|Figure|{tuples})", found["Returns"])
    assert "Gradient" in found


@pytest.mark.parametrize("name", ARRAY_FUNCTIONS)
def test_docstring_is_evenly_indented(name: str) -> None:
    """A line of a section is indented by a level or two, and the second level is one of an entry that is open."""
    for title, text in sections(FUNCTIONS[name]).items():
        if title in ("Args", "Raises", "Example", "References"):
            continue
        lines = [line for line in text.splitlines() if line.strip()]
        assert {len(line) - len(line.lstrip()) for line in lines} == {4}, title


@pytest.mark.parametrize("name", TUPLES)
def test_docstring_of_the_tuples(name: str) -> None:
    """Attributes names exactly the fields, and every property says what it is."""
    kind = TUPLES[name]
    assert entries(sections(kind)["Attributes"]) == list(kind._fields)
    properties = [v for v in vars(kind).values() if isinstance(v, property)]
    assert all(inspect.getdoc(p) for p in properties)
    assert properties or kind is not jaxsoftmax.RowStatistics
