"""What a GPU's name tells about it.

Changes when there is another kind of GPU.  Sources, read 2026-11-21: NVIDIA's list of compute capabilities
(https://developer.nvidia.com/cuda-gpus) and the table of types by compute capability in its CUDA programming guide (tensor cores
take bf16 from 8.0 on, fp16 from 7.0 on); AMD's data types and precision support (rocm.docs.amd.com: matrix cores take bf16 from
CDNA, the MI100, on).
"""

from __future__ import annotations

import re

from neox_hpc.site import Dtype

_KINDS: tuple[tuple[str, tuple[Dtype, ...]], ...] = (
    (r"v100s?|titan[ _-]?v|t4|rtx[ _-]?20[5678]0|quadro[ _-]?rtx[ _-]?\d+", ("fp32", "fp16")),
    (r"(gh|gb|h|b)[12]00|gb300|b300|h20|h800|a800|a100x?|a[1346]0g?|a2|a16|l4|l40s?", ("fp32", "fp16", "bf16")),
    (r"rtx[ _-]?(30[5-9]0|40[5-9]0|50[5-9]0|a\d{4})", ("fp32", "fp16", "bf16")),
    (r"mi(100|210|250x?|300[ax]?|325x|350x|355x)", ("fp32", "fp16", "bf16")),
)
"""The part of a name that tells the kind -> its types."""


def dtypes_of(name: str) -> tuple[Dtype, ...] | None:
    """Types whose matrix products a GPU of this name computes in hardware; None: the name is not known.

    A name may be a scheduler's (``a100``, ``TeslaV100_SXM2_``, ``nvidia_h100_80gb_hbm3``) or a data sheet's.
    """
    for kind, dtypes in _KINDS:
        if re.search(rf"(?<![a-z0-9])(tesla|nvidia|amd|instinct)?({kind})(?![0-9])(?![a-z])", name.lower().replace("_", " ")):
            return dtypes
    return None
