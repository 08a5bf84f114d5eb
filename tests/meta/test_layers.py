"""The imports of every file of the package: downward only, and nothing that the user did not ask for."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxsoftmax

PACKAGE = Path(jaxsoftmax.__file__).parent
FILES = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in sorted(PACKAGE.rglob("*.py"))}

CORE = {
    "_core",
    "_core.arrays",
    "_core.blocks",
    "_core.calls",
    "_core.checks",
    "_core.closures",
    "_core.folds",
    "_core.meshes",
    "_core.passes",
    "_core.row_rules",
    "_core.rules",
    "_core.scalars",
    "_core.streams",
}
L1 = {"normalizers", "statistics"}
L2 = {"objectives", "relaxations", "divergences", "entropies", "hinges", "linear_rows"}
L3 = {"losses", "binary_losses", "linear", "linear_distributions", "linear_ranks", "sharding"}
UP_TO_L3 = CORE | L1 | L2 | L3
L4_MODULES = ("metrics", "resampling", "smooth_metrics", "summaries")
L4_MODULES += ("conformal", "decisions", "plots", "risks", "scores")
L4_MODULES += ("affine", "choices", "platt", "scaling")
L4 = {f"calibration.{module}" for module in L4_MODULES}
ALLOWED: dict[str, set[str]] = {
    "_core.__init__": set(),
    "_core.meshes": set(),
    "_core.blocks": {"_core.meshes"},
    "_core.calls": {"_core.meshes"},
    "_core.closures": set(),
    "_core.folds": {"_core.meshes"},
    "_core.passes": {"_core.folds", "_core.meshes"},
    "_core.arrays": {"_core.folds", "_core.meshes", "_core.passes"},
    "_core.checks": {"_core.arrays", "_core.meshes"},
    "_core.rules": {"_core.arrays", "_core.folds", "_core.meshes", "_core.passes", "_core.scalars"},
    "_core.row_rules": {"_core.folds"},
    "_core.scalars": {"_core.arrays"},
    "_core.streams": {"_core.arrays", "_core.blocks", "_core.meshes", "_core.passes", "_core.row_rules", "_core.rules"},
    "normalizers": CORE,
    "statistics": CORE,
    "hinges": CORE,
    "objectives": CORE | {"statistics"},
    "relaxations": CORE | {"normalizers"},
    "divergences": CORE | L1,
    "entropies": CORE,
    "losses": CORE | L1 | L2,
    "binary_losses": CORE | L1 | L2,
    "linear_rows": CORE | L1,
    "linear": CORE | L1 | L2,
    "linear_distributions": CORE | L1 | L2,
    "linear_ranks": CORE | L1 | L2 | {"losses"},
    "sharding": CORE | L1 | {"linear", "linear_rows"},
    "calibration.inputs": CORE | L1,
    "calibration.metrics": UP_TO_L3 | {"calibration.inputs"},
    "calibration.smooth_metrics": UP_TO_L3 | {"calibration.inputs"},
    "calibration.summaries": UP_TO_L3 | {f"calibration.{name}" for name in ("inputs", "metrics", "smooth_metrics")},
    "calibration.resampling": UP_TO_L3 | {"calibration.inputs"},
    "calibration.rows": CORE | L1 | {"calibration.inputs"},
    "calibration.scores": UP_TO_L3,
    "calibration.scaling": UP_TO_L3 | {"calibration.inputs"},
    "calibration.platt": UP_TO_L3 | {"calibration.inputs"},
    "calibration.affine_fits": UP_TO_L3 | {"calibration.inputs", "calibration.scaling"},
    "calibration.affine": UP_TO_L3 | {f"calibration.{name}" for name in ("inputs", "scaling", "affine_fits")},
    "calibration.choices": UP_TO_L3
    | {f"calibration.{name}" for name in ("inputs", "scaling", "affine", "affine_fits")},
    "calibration.risks": UP_TO_L3 | {"calibration.inputs"},
    "calibration.conformal": UP_TO_L3 | {"calibration.inputs", "calibration.rows"},
    "calibration.decisions": UP_TO_L3 | {"calibration.inputs", "calibration.rows"},
    "calibration.plots": UP_TO_L3 | {"calibration.metrics", "calibration.risks"},
    "calibration.__init__": L4,
    "__init__": CORE | L1 | L2 | L3 | {"calibration"},
}
OUTSIDE = {"jax", "numpy"}
# What a file imports where it is used, and not when it is imported itself.
LATE = {"calibration.plots": {"matplotlib"}, "calibration.affine_fits": {"optax"}}
LINES = 500


def imported(path: Path) -> tuple[set[str], set[str]]:
    """The modules of the package that the file imports, and the packages outside, wherever in the file they stand."""
    inside, outside = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            # `from package import name`: the name is a module, or else it stands in one
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] != "jaxsoftmax":
                outside.add(parts[0])
                continue
            while ".".join(parts[1:]) not in FILES and len(parts) > 2 and parts[1:] != ["_core"]:
                parts.pop()
            inside.add(".".join(parts[1:]))
    return inside, outside


def test_every_file_has_a_layer() -> None:
    """A new file needs a line in the table above."""
    assert set(FILES) == set(ALLOWED)


@pytest.mark.parametrize("name", FILES)
def test_imports_point_downward(name: str) -> None:
    """A file imports from the layers below its own, jax, numpy and the standard library."""
    inside, outside = imported(FILES[name])
    assert inside <= ALLOWED[name], f"upward: {sorted(inside - ALLOWED[name])}"
    foreign = outside - OUTSIDE - LATE.get(name, set()) - set(sys.stdlib_module_names)
    assert not foreign


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    """Each form of an import is read, in functions too."""
    file = tmp_path / "file.py"
    file.write_text(
        "import optax.losses\nfrom jaxsoftmax import losses, softmax\nfrom jaxsoftmax._core import rules\n"
        "def f():\n    from jaxsoftmax.normalizers import softmax\n    import jaxsoftmax.statistics\n"
    )
    inside, outside = imported(file)
    assert inside == {"losses", "softmax", "_core.rules", "normalizers", "statistics"}
    assert outside == {"optax"}


@pytest.mark.parametrize("name", FILES)
def test_files_are_short(name: str) -> None:
    """One idea a file."""
    assert len(FILES[name].read_text().splitlines()) <= LINES


def test_importing_changes_and_loads_nothing() -> None:
    """No jax option changes; no plotting library, framework or kernel language is loaded, nor what waits to be used."""
    script = """
import json, sys
import jax, jax.numpy
before, loaded = {k: repr(v) for k, v in jax.config.values.items()}, set(sys.modules)
import jaxsoftmax
after = {k: repr(v) for k, v in jax.config.values.items()}
loaded = sorted(set(sys.modules) - loaded)
jaxsoftmax.calibration.fit_temperature
print(json.dumps([before, after, loaded]))
"""
    root = PACKAGE.parent
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    before, after, loaded = json.loads(run.stdout)
    assert before and before == after
    assert "jaxsoftmax.losses" in loaded
    unwanted = {"matplotlib", "flax", "haiku", "optax", "sklearn", "tqdm", "pallas", "triton", "mosaic", "calibration"}
    assert not [name for name in loaded if unwanted & set(name.split("."))]
