"""The printed report, and what counts as success."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.checking import Leaf, Report, Verdict, check_grads
from jaxgrad.checking._report import Identity

WRONG = Leaf(
    path="['b']",
    verdict=Verdict.WRONG,
    shape=(4,),
    relative_error=0.9375,
    error_bar=2e-9,
    minimum_detectable=3e-5,
    worst_index=(1,),
    autodiff=-0.114179,
    numeric=-1.826870,
    dtype=jnp.dtype("float32"),
    working_error=1e-7,
    reason="autodiff is 0.0625 times the numeric one",
)
LARGE = Leaf(
    path="['w']",
    verdict=Verdict.AGREE,
    shape=(80, 40),
    relative_error=3.2e-10,
    error_bar=1e-8,
    minimum_detectable=4e-5,
    autodiff=2.67541,
    numeric=2.67541,
    dtype=jnp.dtype("float32"),
    coverage="directions",
    miss_probability=5e-4,
    working_error=2e-3,
)
REPORT = Report(
    leaves=(WRONG, LARGE),
    identities=(
        Identity("linear", True),
        Identity("zero", False, 0.5),
        Identity("vmap", None, reason="f cannot be mapped"),
    ),
    left_out=(("['n']", "int32[3]"),),
    notes=("functions with a custom derivative rule: layer",),
)
PRINTED = """\
WRONG: 1 WRONG, 1 AGREE; numeric derivative in float64

leaf   verdict  relative error  worst index   autodiff   numeric  error bar  visible error
['b']  WRONG           9.4e-01  [1]          -0.114179  -1.82687      2e-09          3e-05
['w']  AGREE           3.2e-10  a direction    2.67541   2.67541      1e-08          4e-05

['b']: autodiff is 0.0625 times the numeric one
does not hold: a zero cotangent gives a zero gradient (relative error 5.0e-01)

['w']: float32 loses 4 digits here and keeps 3 (relative distance 2.0e-03 from the float64 gradient)

functions with a custom derivative rule: layer
checked along random directions: ['w']; one element off by more than the visible error is always \
seen, errors of ten times that norm over many elements are missed with a probability below 5e-04
also holds: linear in the cotangent
not tried: same under vmap (f cannot be mapped)
not differentiated: ['n'] (int32[3])"""


def test_the_printed_report():
    assert str(REPORT) == PRINTED


def test_modes_and_orders_are_named_where_there_are_several():
    other = dataclasses.replace(WRONG, mode="fwd", order=2)
    lines = str(dataclasses.replace(REPORT, leaves=(WRONG, other))).splitlines()
    assert lines[3].startswith("['b'] rev order 1")
    assert lines[4].startswith("['b'] fwd order 2")
    assert "rev" not in str(REPORT)


@pytest.mark.parametrize(
    ("verdict", "ok", "strictly_ok"),
    [
        (Verdict.AGREE, True, True),
        (Verdict.KINK, True, True),
        (Verdict.UNRESOLVED, True, False),
        (Verdict.WRONG, False, False),
        (Verdict.NONFINITE, False, False),
        (Verdict.NONDETERMINISTIC, False, False),
    ],
)
def test_success(verdict, ok, strictly_ok):
    leaf = dataclasses.replace(WRONG, verdict=verdict)
    report = Report((LARGE, leaf))
    assert report.verdict is verdict
    assert report.ok is ok
    assert Report((LARGE, leaf), strict=True).ok is strictly_ok


def test_a_report_is_true_if_it_is_ok():
    assert not REPORT
    assert Report((LARGE,))


def test_a_report_as_data():
    data = json.loads(REPORT.to_json())
    assert data["verdict"] == "WRONG"
    assert not data["ok"]
    assert data["leaves"][0]["path"] == "['b']"
    assert data["leaves"][1]["worst_index"] is None
    assert data["identities"][1] == {
        "name": "zero",
        "holds": False,
        "error": 0.5,
        "leaf": 0,
        "reason": "",
    }
    lost = dataclasses.replace(WRONG, autodiff=np.nan, numeric=1 + 2j)
    leaf = json.loads(Report((lost,)).to_json())["leaves"][0]
    assert (leaf["autodiff"], leaf["numeric"]) == ("nan", "(1+2j)")
    assert REPORT.to_dict()["leaves"][0]["shape"] == (4,)


def test_leaves_that_agree_are_not_all_printed():
    leaves = (WRONG, *(dataclasses.replace(LARGE, path=f"[{i}]") for i in range(14)))
    lines = str(Report(leaves)).splitlines()
    assert lines[3].startswith("['b']")
    assert lines[13].startswith("[9]")
    assert lines[14] == "and 4 leaves more that agree, with smaller errors"


def test_a_gradient_that_is_lost_in_the_working_type_is_in_the_headline():
    # The square overflows in float32.
    report = check_grads(lambda x: jnp.log(x + jnp.sqrt(x**2 + 1)), jnp.float32(1e22))
    headline = str(report).splitlines()[0]
    assert headline.startswith(
        "AGREE: 1 AGREE; numeric derivative in float64; the gradient is lost"
    )
    assert "argument in float32" in headline
    assert "float32 loses the whole gradient here" in str(report)
