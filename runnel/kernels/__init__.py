"""Arrays in, arrays out: arithmetic of codecs, the exact outer step, sums in a fixed order.

Knows no sockets, no clock, no threads. Importing it loads numpy only; numba follows at first use.
"""

from runnel.kernels.arrays import require_vector
from runnel.kernels.dispatch import implementation, require_arithmetic, warm_up
from runnel.kernels.draws import Words, words_of
from runnel.kernels.outer_step import adam_step, momentum_step, plain_step
from runnel.kernels.signatures import (
    BlockKernels,
    ElementwiseKernels,
    Float32,
    HalfKernels,
    Implementation,
    RotationKernels,
    SketchKernels,
    SparseKernels,
)
from runnel.kernels.statistics import first_non_finite, norm, sum_of_squares

__all__ = [
    "BlockKernels",
    "ElementwiseKernels",
    "Float32",
    "HalfKernels",
    "Implementation",
    "RotationKernels",
    "SketchKernels",
    "SparseKernels",
    "Words",
    "adam_step",
    "first_non_finite",
    "implementation",
    "momentum_step",
    "norm",
    "plain_step",
    "require_arithmetic",
    "require_vector",
    "sum_of_squares",
    "warm_up",
    "words_of",
]
