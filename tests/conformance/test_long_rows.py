"""Operations on rows that are folded, as long ones are on a CPU: the laws again, with two classes for a long row."""

import re

import jax
import pytest

from jaxsoftmax._core import arrays, folds
from tests.conformance import laws
from tests.conformance.operations import OPERATIONS
from tests.helpers import constants

NAMES = (
    "softmax",
    "log_softmax",
    "logsumexp",
    "smooth_max",
    "row_statistics",
    "cross_entropy",
    "cross_entropy_capped",
    "hinge_loss",
    "weston_watkins",
    "soft_cross_entropy",
    "kl_divergence",
    "entropy",
    "gumbel_softmax",
    "gumbel_softmax_hard",
    "linear_statistics",
    "linear_cross_entropy",
    "linear_entropy",
    "linear_kl_divergence",
)
# In custom_vjp reverse mode and both ways of a second derivative; in custom_jvp all first derivatives.
WAYS = [("higher_order", False), ("first_order", True)]


@pytest.fixture(scope="module")
def folded():
    """Rows of three classes and more are long."""
    with constants(folds, LONG=2, LONGEST=2, SHORTEST=2):
        yield


@pytest.mark.usefixtures("folded")
@pytest.mark.parametrize(("law", "forward"), WAYS, ids=["custom_vjp", "custom_jvp"])
@pytest.mark.parametrize("name", NAMES)
def test_law(name, law, forward):
    assert not laws.mistakes(law, OPERATIONS[name], forward, laws.expected(law, OPERATIONS[name]))


@pytest.mark.parametrize(("law", "forward"), WAYS, ids=["custom_vjp", "custom_jvp"])
def test_many_rows(law, forward):
    """On a CPU the entropy of many rows, not short ones, is made in one kernel."""
    with constants(folds, MANY_ROWS=1), constants(arrays, SHORT_ROW=0):
        assert not laws.mistakes(law, OPERATIONS["entropy"], forward, laws.expected(law, OPERATIONS["entropy"]))


@pytest.mark.usefixtures("folded")
@pytest.mark.parametrize("name", NAMES)
def test_rows_are_folded(name):
    """There are arrays of so many rows of two times two classes, which the laws are about."""
    operation = OPERATIONS[name]
    program = jax.make_jaxpr(operation.function)(*operation.args)
    assert re.search(r"f32\[[1-9],2,2\]", str(program))
