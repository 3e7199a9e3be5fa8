"""With this folder on PYTHONPATH, `BNB_AVX512BF16=1` (or 0) tells bitsandbytes that the processor has AVX512-BF16.

It asks the processor itself, in its compiled library, so no variable of torch reaches it. The library computes without
the instructions too, only slower. Python imports a module of this name before anything else.
"""

import ctypes
import os

if (flag := os.environ.get("BNB_AVX512BF16")) in ("0", "1"):

    class _Library(ctypes.CDLL):
        def __getattr__(self, name: str):
            return (lambda: flag == "1") if name == "has_avx512bf16_cpu" else super().__getattr__(name)

    ctypes.cdll._dlltype = _Library
