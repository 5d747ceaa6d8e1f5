"""The compiled operations, checked in Python and registered as torch ops on the device of their tensors.

Functions that end in ``_`` write into memory of the caller and return None. Keys are 64-bit: any Python int in
``[0, 2**64)``, as ``derive_key`` gives. ``journey.ops.reference`` is each operation again in slow float64, and
``journey.ops.reference_packed`` what packed rows are.

In reading order: ``noise`` (random words and normals), ``sketch`` (the count sketch, of gradients and fused with the
product that forms them), ``norm`` (gradients of normalisation layers), ``project`` (dense random projections),
``gram`` (the Gram matrix of features), ``packed`` (rows of features in few bits, and products with them). Beside them
``keys`` (names of random streams), ``geometry`` (how a convolution walks), ``weight_grad`` (per-sample weight
gradients, tile by tile), ``reference``, ``reference_norm`` and ``reference_packed``. Below them ``checks`` (errors in
words), ``registry`` (torch ops), ``kernels`` (the arguments of each kernel), ``cpu`` and ``cuda`` (the two kinds of
memory), ``_native`` (the compiled module).
"""

from journey.ops import registry  # noqa: F401 - registers the torch ops
from journey.ops._native import build_info
from journey.ops.geometry import ConvGeometry
from journey.ops.gram import accumulate_gram_
from journey.ops.keys import derive_key
from journey.ops.noise import philox_normal, philox_words
from journey.ops.norm import norm_grads
from journey.ops.packed import pack_rows, packed_products_, unpack_rows
from journey.ops.project import ProjectionKind, project_
from journey.ops.sketch import sketch_, sketch_many_, sketch_outer_, sketch_outer_many_

__all__ = [
    "ConvGeometry",
    "ProjectionKind",
    "accumulate_gram_",
    "build_info",
    "derive_key",
    "norm_grads",
    "pack_rows",
    "packed_products_",
    "philox_normal",
    "philox_words",
    "project_",
    "sketch_",
    "sketch_many_",
    "sketch_outer_",
    "sketch_outer_many_",
    "unpack_rows",
]
