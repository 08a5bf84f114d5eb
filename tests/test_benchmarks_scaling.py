"""The cost model of a head over a mesh, and how the text of compiled programs is read."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import programs, scaling

# Three blocks; the sums are one asynchronous pair; what runs after the loop goes over the rows in one message.
TEXT = """\
HloModule jit_step, is_scheduled=true

%region_add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p0: f32[16,48], p1: f32[48,128]) -> f32[16,128] {
  %p0 = f32[16,48]{1,0} parameter(0)
  %p1 = f32[48,128]{1,0} parameter(1)
  ROOT %dot.1 = f32[16,128]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (c: (s32[], f32[16,48])) -> (s32[], f32[16,48]) {
  %c = (s32[], f32[16,48]{1,0}) parameter(0)
  %h = f32[16,48]{1,0} get-tuple-element(%c), index=1
  %w = f32[48,128]{1,0} constant({...})
  %z = f32[16,128]{1,0} fusion(%h, %w), kind=kCustom, calls=%fused
  %top = f32[16]{0} all-reduce(%z), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%region_add
  %start = f32[2,16]{1,0} all-reduce-start(%z), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%region_add
  ROOT %done = f32[2,16]{1,0} all-reduce-done(%start)
}

%condition (c: (s32[], f32[16,48])) -> pred[] {
  ROOT %more = pred[] constant(true)
}

ENTRY %main (h: f32[16,48]) -> f32[] {
  %h = f32[16,48]{1,0} parameter(0)
  %loop = (s32[], f32[16,48]{1,0}) while(%h), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}
  %both = (f32[48,128]{1,0:T(8,128)}, bf16[128]{0}) all-reduce(%h, %h), replica_groups=[4,2]<=[2,4]T(1,0), \
to_apply=%region_add
  %alone = f32[7]{0} all-reduce(%h), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%region_add
  ROOT %end = f32[] constant(0)
}
"""


def test_program_text():
    found = programs.collectives(TEXT, 8)
    assert [(one.kind, one.bytes, one.count) for one in found] == [
        ("all-reduce", 64, 3),
        ("all-reduce", 128, 3),
        ("all-reduce", 4 * 48 * 128 + 2 * 128, 1),
    ]
    assert scaling.compiled_bytes(found, (2, 4)) == {"rows": 24832, "classes": 3 * 192}
    others = {"all-reduce over other devices": 24832}
    assert scaling.compiled_bytes(found[2:], (4, 2)) == {"rows": 0, "classes": 0} | others
    assert programs.dot_flops(TEXT) == 3 * 2 * 16 * 48 * 128


@pytest.mark.parametrize(
    "groups",
    ["{{0,4},{1,5},{2,6},{3,7}}", "[4,2]<=[2,4]T(1,0)", "mesh['a'=2,'b'=4] {'a'}", "mesh['b'=2,'c'=2,'a'=2] {'b'}"],
)
def test_replica_groups(groups):
    found = programs.groups_of(f"all-reduce(%x), replica_groups={groups}, to_apply=%add", 8)
    assert found == frozenset(frozenset((i, i + 4)) for i in range(4))


def test_a_loop_of_unknown_length_is_an_error():
    with pytest.raises(ValueError, match="a loop of unknown length"):
        programs.collectives(TEXT.replace("known_trip_count", "other"), 8)


def test_messages():
    head = scaling.Head(rows=24, width=5, classes=32, over=(2, 4), block=5, numbers=4, bias=True)
    # Twelve rows in three blocks of five, eight classes.
    assert scaling.message_bytes(head) == {
        "classes": 3 * 5 * 4 * (1 + 4) + 4 * 12 * 5,
        "rows": 8 + 4 * 5 * 8 + 4 * 8,
    }
    assert scaling.product_flops(head) == 6 * 15 * 5 * 8
    assert scaling.message_bytes(dataclasses.replace(head, over=(1, 4), block=24))["rows"] == 0
    assert scaling.sent_bytes(100, 4) == 150
    assert scaling.sent_bytes(100, 1) == 0


def test_bandwidth_of_an_axis():
    rates = scaling.Rates("", flops=1e12, near=100.0, far=10.0, node=8)
    by_split = {split: (64 // split, split) for split in (1, 2, 8, 32)}
    assert [rates.bandwidth("classes", over) for over in by_split.values()] == [100.0, 100.0, 100.0, 80.0]
    assert [rates.bandwidth("rows", over) for over in by_split.values()] == [80.0, 40.0, 10.0, 10.0]


def test_features_gradient_takes_as_long_as_the_products_there():
    width, classes, bandwidth, flops = 64, 4096, 2e9, 3e11
    split = scaling.most_devices(classes, bandwidth, flops)
    own_rows = 100
    seconds = scaling.sent_bytes(4 * own_rows * width, split) / bandwidth
    assert math.isclose(seconds, 6 * own_rows * width * classes / split / flops)


@pytest.mark.parametrize("case", scaling.cases((64, 16, 256), (2, 4)))
def test_compiled_programs_agree(case):
    result = scaling.check(case, scaling.cases((64, 16, 256), (2, 4))[case])
    assert result.agrees, (result.expected, result.compiled)


def test_a_gathered_array_is_seen():
    mesh = scaling.mesh_of((2, 4))
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=NamedSharding(mesh, P("rows", "classes")))
    program = jax.jit(lambda x: 2 * x, out_shardings=NamedSharding(mesh, P("rows"))).lower(x).compile()
    found = scaling.compiled_bytes(programs.collectives(program.as_text(), 8), (2, 4))
    assert found == {"rows": 0, "classes": 0, "all-gather": 4 * 4 * 16}
