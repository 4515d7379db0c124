"""Explicit SIMD for numba: a vector of LANES numbers is one value, so that no kernel depends on what LLVM vectorises.

`load` and `store` move a vector between memory and a register, `+ - * /` work lane by lane (with a plain number too),
`fma(a, b, c)` is a * b + c in one instruction where the processor has one. Element type: float32 or float64.
"""

import operator
from typing import get_type_hints

import llvmlite.binding as llvm
import llvmlite.ir as ir
from numba import njit, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

# Only compiled code calls these functions: without entrances from Python they take less time to compile.
compiled = njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)

# One cache line of float32 on AVX-512, half of one elsewhere; wider than the processor is legal, only slower.
LANES = 16 if llvm.get_host_cpu_features().get("avx512f") else 8

# 2^f on [-1/2, 1/2] and atanh(sqrt(v)) / sqrt(v) on [0, 1/9]: minimax in the relative error, exactly 1 at 0,
# because a bias near exp(0) would add up over a long memory. Relative error 9e-8, 3e-18; 1e-10, 1e-21.
EXP2 = {
    types.float32: [1.0, 0.69314697756880985, 0.24022242065734471, 0.055507337868076469, 0.009671513540438726]
    + [0.0013264714101207217],
    types.float64: [1.0, 0.69314718055994533, 0.24022650695910131, 0.055504108664820079, 0.009618129107594081]
    + [0.0013333558146775424, 0.00015403530457154024, 1.5252733492459915e-05, 1.3215435263966407e-06]
    + [1.0178199819313555e-07, 7.0737860747722373e-09, 4.4347374555651771e-10],
}
ATANH = {
    types.float32: [1.0, 0.33333337750422439, 0.19999444162381583, 0.14308298690482756, 0.10715367552448651]
    + [0.12144787897128517],
    types.float64: [1.0, 0.33333333333333333, 0.20000000000000111, 0.14285714285690651, 0.11111111113623447]
    + [0.090909089346210874, 0.076923138695957285, 0.066665043436370668, 0.058852501695755264, 0.05227983700244195]
    + [0.050462742670440102, 0.029017277383782235, 0.080235575399347375],
}


class Lanes(types.Type):
    """The numba type of a vector of `count` elements of `dtype`: LANES, or four times as many."""

    def __init__(self, dtype: types.Float, count: int = LANES):
        self.dtype, self.count = dtype, count
        super().__init__(name=f"Lanes({dtype}, {count})")


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, vector_type(kind))


def vector_type(kind: Lanes):
    return ir.VectorType(ir.FloatType() if kind.dtype == types.float32 else ir.DoubleType(), kind.count)


def shuffle(builder, a, b, indices):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(indices)), list(indices)))


def broadcast(builder, value, vector):
    """The vector whose lanes all hold the scalar `value`."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return shuffle(builder, first, undefined, [0] * vector.count)


def constant(vector, value):
    return ir.Constant(vector, [ir.Constant(vector.element, value)] * vector.count)


def polynomial(builder, coefficients, x):
    """Horner's rule, one fma a coefficient."""
    result = constant(x.type, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = fused(builder, result, x, constant(x.type, coefficient))
    return result


def fused(builder, a, b, c):
    multiply_add = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(a.type, [a.type] * 3),
        f"llvm.fmuladd.v{a.type.count}{'f32' if isinstance(a.type.element, ir.FloatType) else 'f64'}",
    )
    return builder.call(multiply_add, [a, b, c])


def elementwise(operation, instruction):
    """Give `operation` (operator.add, ...) a meaning for two vectors, and for a vector and a number."""

    @infer_global(operation)
    class Typing(AbstractTemplate):
        def generic(self, args, kws):
            vectors = [arg for arg in args if isinstance(arg, Lanes)]
            numbers = [arg for arg in args if isinstance(arg, types.Number)]
            if len(args) == 2 and len(vectors + numbers) == 2 and len(set(vectors)) == 1:
                return signature(vectors[0], *args)

    @lower_builtin(operation, Lanes, Lanes)
    def lanes_lanes(context, builder, sig, args):
        return getattr(builder, instruction)(*args)

    @lower_builtin(operation, Lanes, types.Number)
    def lanes_number(context, builder, sig, args):
        number = context.cast(builder, args[1], sig.args[1], sig.args[0].dtype)
        return getattr(builder, instruction)(args[0], broadcast(builder, number, args[0].type))

    @lower_builtin(operation, types.Number, Lanes)
    def number_lanes(context, builder, sig, args):
        number = context.cast(builder, args[0], sig.args[0], sig.args[1].dtype)
        return getattr(builder, instruction)(broadcast(builder, number, args[1].type), args[1])


for pair in [(operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv")]:
    elementwise(*pair)


@intrinsic
def pointer(typingctx, address, dtype):
    """The integer `address` as a pointer to `dtype`."""

    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return types.CPointer(dtype.dtype)(address, dtype), codegen


def field_type(kind: type):
    """The numba type of a record's field: a named tuple of such fields, float64, or int64."""
    if issubclass(kind, tuple):
        return types.BaseTuple.from_types([field_type(field) for field in get_type_hints(kind).values()], kind)
    return types.float64 if kind is float else types.int64


@intrinsic
def unpack(typingctx, address, record):
    """The record at the integer `address`, by its class (see `records.py`), and the address behind it."""

    def codegen(context, builder, sig, args):
        layout = context.get_value_type(sig.return_type[0])
        size = ir.Constant(ir.IntType(64), context.get_abi_sizeof(layout))
        values = [builder.load(builder.inttoptr(args[0], layout.as_pointer())), builder.add(args[0], size)]
        return context.make_tuple(builder, sig.return_type, values)

    return types.Tuple([field_type(record.instance_class), types.int64])(types.int64, record), codegen


@intrinsic
def stack(typingctx, count, dtype):
    """A pointer to `count` uninitialised elements on the stack, aligned to a cache line."""

    def codegen(context, builder, sig, args):
        memory = builder.alloca(context.get_value_type(sig.args[1].dtype), size=args[0])
        memory.align = 64
        return memory

    return types.CPointer(dtype.dtype)(count, dtype), codegen


@intrinsic
def take_ticket(typingctx, counter):
    """Add one to the integer at the address `counter`, atomically, and return what it was."""

    def codegen(context, builder, sig, args):
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.int64), codegen


def element(context, builder, memory, index, dtype):
    return builder.gep(memory, [index], source_etype=context.get_value_type(dtype))


def store_vector(builder, value, place, align):
    builder.store(value, builder.bitcast(place, value.type.as_pointer()), align=align)


@intrinsic
def splat(typingctx, memory, index):
    """The number at memory[index] in every lane."""

    def codegen(context, builder, sig, args):
        dtype = sig.args[0].dtype
        value = builder.load(element(context, builder, args[0], args[1], dtype), typ=context.get_value_type(dtype))
        return broadcast(builder, value, vector_type(sig.return_type))

    return Lanes(memory.dtype)(memory, types.int64), codegen


@intrinsic
def zero(typingctx, dtype):
    """A vector of zeros."""

    def codegen(context, builder, sig, args):
        return constant(vector_type(sig.return_type), 0.0)

    return Lanes(dtype.dtype)(dtype), codegen


def load_vector(memory, index, kind):
    def codegen(context, builder, sig, args):
        place = element(context, builder, args[0], args[1], kind.dtype)
        return builder.load(place, typ=vector_type(kind), align=kind.dtype.bitwidth // 8)

    return kind(memory, types.int64), codegen


@intrinsic
def load(typingctx, memory, index):
    """LANES elements from memory[index] on."""
    return load_vector(memory, index, Lanes(memory.dtype))


@intrinsic
def load_four(typingctx, memory, index):
    """Four vectors as one, from memory[index] on: independent neighbours hide each other's latency."""
    return load_vector(memory, index, Lanes(memory.dtype, 4 * LANES))


@intrinsic
def prefetch(typingctx, memory, index):
    """Ask for the cache line of memory[index]; nothing happens where there is no such memory."""

    def codegen(context, builder, sig, args):
        place = builder.bitcast(element(context, builder, args[0], args[1], sig.args[0].dtype), cgutils.voidptr_t)
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [place, number(0), number(3), number(1)])  # to read, to keep, data

    return types.void(memory, types.int64), codegen


@intrinsic
def store(typingctx, memory, index, value):
    """Write a vector to memory[index] and on."""

    def codegen(context, builder, sig, args):
        dtype = sig.args[0].dtype
        store_vector(builder, args[2], element(context, builder, args[0], args[1], dtype), dtype.bitwidth // 8)

    return types.void(memory, types.int64, value), codegen


def copy_elements(context, builder, dtype, target, source, count):
    target, source = (builder.bitcast(place, context.get_value_type(dtype).as_pointer()) for place in (target, source))
    with cgutils.for_range(builder, count) as loop:
        value = builder.load(element(context, builder, source, loop.index, dtype), typ=context.get_value_type(dtype))
        builder.store(value, element(context, builder, target, loop.index, dtype))


@intrinsic
def load_part(typingctx, memory, index, count):
    """Like `load`, but only the first `count` lanes are read; the others are 0."""

    def codegen(context, builder, sig, args):
        dtype = sig.return_type.dtype
        vector, align = vector_type(sig.return_type), dtype.bitwidth // 8
        place = element(context, builder, args[0], args[1], dtype)
        buffer = cgutils.alloca_once(builder, vector)
        enough = builder.icmp_signed(">=", args[2], ir.Constant(args[2].type, LANES))
        with builder.if_else(enough, likely=True) as (whole, part):
            with whole:
                loaded, whole_end = builder.load(place, typ=vector, align=align), builder.block
            with part:
                builder.store(constant(vector, 0.0), buffer, align=align)
                copy_elements(context, builder, dtype, buffer, place, args[2])
                copied, part_end = builder.load(buffer, typ=vector, align=align), builder.block
        value = builder.phi(vector)
        value.add_incoming(loaded, whole_end)
        value.add_incoming(copied, part_end)
        return value

    return Lanes(memory.dtype)(memory, types.int64, types.int64), codegen


@intrinsic
def store_part(typingctx, memory, index, value, count):
    """Like `store`, but only the first `count` lanes are written."""

    def codegen(context, builder, sig, args):
        dtype = sig.args[0].dtype
        align = dtype.bitwidth // 8
        place = element(context, builder, args[0], args[1], dtype)
        buffer = cgutils.alloca_once(builder, args[2].type)
        with builder.if_else(builder.icmp_signed(">=", args[3], ir.Constant(args[3].type, LANES)), likely=True) as (
            whole,
            part,
        ):
            with whole:
                store_vector(builder, args[2], place, align)
            with part:
                builder.store(args[2], buffer, align=align)
                copy_elements(context, builder, dtype, place, buffer, args[3])

    return types.void(memory, types.int64, value, types.int64), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c, lane by lane."""

    def codegen(context, builder, sig, args):
        return fused(builder, *args)

    return a(a, b, c), codegen


@intrinsic
def store_total(typingctx, memory, index, value):
    """Write the sum over the lanes to memory[index], in a fixed order: halves are folded until one lane is left."""

    def codegen(context, builder, sig, args):
        result, width = args[2], LANES
        while width > 1:
            width //= 2
            undefined = ir.Constant(result.type, ir.Undefined)
            halves = [shuffle(builder, result, undefined, range(start, start + width)) for start in (0, width)]
            result = builder.fadd(*halves)
        one = builder.extract_element(result, ir.Constant(ir.IntType(32), 0))
        builder.store(one, element(context, builder, args[0], args[1], sig.args[0].dtype))

    return types.void(memory, types.int64, value), codegen


@intrinsic
def exp2(typingctx, x):
    """2^x: x = k + f with k the nearest integer, 2^f by polynomial, and k added to the exponent bits.

    Below the smallest normal number the result stays there; above the largest it is inf; nan stays nan.
    """

    def codegen(context, builder, sig, args):
        return power_of_two(builder, sig.return_type.dtype, args[0])

    return x(x), codegen


def power_of_two(builder, dtype, x):
    mantissa, low, high = (23, -126.0, 128.0) if dtype == types.float32 else (52, -1022.0, 1024.0)
    low, high = constant(x.type, low), constant(x.type, high)
    # The order of the comparison lets nan through.
    x = builder.select(builder.fcmp_ordered(">", low, x), low, x)
    x = builder.select(builder.fcmp_ordered("<", high, x), high, x)
    # Adding 1.5 * 2^mantissa leaves the rounded integer in the low bits.
    magic = constant(x.type, 1.5 * 2.0**mantissa)
    shifted = builder.fadd(x, magic)
    power = polynomial(builder, EXP2[dtype], builder.fsub(x, builder.fsub(shifted, magic)))
    integers = ir.VectorType(ir.IntType(dtype.bitwidth), x.type.count)
    exponent = builder.shl(builder.bitcast(shifted, integers), constant(integers, mantissa))
    return builder.bitcast(builder.add(builder.bitcast(power, integers), exponent), x.type)


@intrinsic
def exp2_four(typingctx, a, b, c, d):
    """2^a, 2^b, 2^c, 2^d, computed in step: faster than one after the other."""

    def codegen(context, builder, sig, args):
        halves = [shuffle(builder, *pair, range(2 * LANES)) for pair in (args[:2], args[2:])]
        whole = power_of_two(builder, a.dtype, shuffle(builder, *halves, range(4 * LANES)))
        parts = [shuffle(builder, whole, whole, range(k * LANES, (k + 1) * LANES)) for k in range(4)]
        return context.make_tuple(builder, sig.return_type, parts)

    return types.UniTuple(a, 4)(a, b, c, d), codegen


@intrinsic
def atanh_series(typingctx, v):
    """atanh(s) / s at v = s^2, for 0 <= v <= 1/9."""

    def codegen(context, builder, sig, args):
        return polynomial(builder, ATANH[sig.return_type.dtype], args[0])

    return v(v), codegen


@intrinsic
def absolute(typingctx, x):
    """|x|, lane by lane."""

    def codegen(context, builder, sig, args):
        x = args[0]
        return builder.select(builder.fcmp_ordered("<", x, constant(x.type, 0.0)), builder.fneg(x), x)

    return x(x), codegen


@intrinsic
def where_negative(typingctx, x, a, b):
    """a in the lanes where x < 0, b in the others."""

    def codegen(context, builder, sig, args):
        x, a, b = args
        return builder.select(builder.fcmp_ordered("<", x, constant(x.type, 0.0)), a, b)

    return x(x, a, b), codegen


LOG2E = 1.4426950408889634


@compiled
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (exp2(x * -LOG2E) + 1.0)


@compiled
def softplus(x):
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)); log1p(w) = 2 atanh(w / (2 + w)) is accurate for tiny w too."""
    return softplus_and_slope(x)[0]


@compiled
def softplus_and_slope(x):
    """softplus(x) and its derivative sigmoid(x), from one exponential."""
    size = absolute(x)
    w = exp2(size * -LOG2E)
    s = w / (w + 2.0)
    larger = 1.0 / (w + 1.0)  # sigmoid(|x|)
    return (x + size) * 0.5 + s * atanh_series(s * s) * 2.0, where_negative(x, w * larger, larger)
