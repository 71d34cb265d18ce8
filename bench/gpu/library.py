"""libmantou.so for Python, through its C ABI alone: calls, device memory, random inputs."""

import ctypes
import math
import pathlib
import re

import torch

HEADER = pathlib.Path(__file__).resolve().parents[2] / "kernels" / "mantou.h"
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
KINDS = {"int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "float": ctypes.c_float}


class Library:
    """libmantou.so with one context; `call` raises what the library says."""

    def __init__(self, path):
        self.functions = ctypes.CDLL(str(pathlib.Path(path).resolve()))
        code = re.sub(r"/\*.*?\*/", " ", HEADER.read_text(), flags=re.S)
        for result, name, parameters in re.findall(r"MANTOU_API\s+([\w ]+?\*?)\s*(mantou_\w+)\(([^)]*)\);", code):
            function = getattr(self.functions, name)
            kinds = [] if parameters == "void" else [self.kind(p) for p in parameters.split(",")]
            function.argtypes = kinds
            function.restype = ctypes.c_char_p if "*" in result else KINDS[result.strip()]
        self.context = None
        handle = ctypes.c_void_p()
        self.call("mantou_context_create", 0, 0, ctypes.addressof(handle))
        self.context = handle.value
        text = ctypes.create_string_buffer(256)
        self.call("mantou_context_describe", ctypes.addressof(text), 256)
        self.description = text.value.decode()
        self.backend = self.functions.mantou_backend().decode()

    @staticmethod
    def kind(parameter):
        return ctypes.c_void_p if "*" in parameter else KINDS[parameter.split()[0]]

    def call(self, name, *arguments):
        function = getattr(self.functions, name)
        values = [a.address if isinstance(a, Array) else a for a in arguments]
        if len(function.argtypes) == len(values) + 1:
            values.insert(0, self.context)
        result = function(*values)
        if function.restype is ctypes.c_int64:
            return result
        if result != 0:
            raise RuntimeError(self.functions.mantou_last_error().decode())

    def synchronize(self):
        self.call("mantou_synchronize")

    def is_alive(self):
        """Whether the GPU still takes work: after a fault in a kernel nothing in this process does."""
        try:
            self.synchronize()
            Array(self, (1,), torch.float32).tensor("cpu")
            return True
        except RuntimeError:
            return False


def wait_for(tensor):
    """The library copies on a stream of its own: whatever PyTorch still does with that memory must be over."""
    if tensor.is_cuda:
        torch.cuda.synchronize()


class Array:
    """Device memory of one tensor; full of NaN unless it is made from one."""

    def __init__(self, library, shape, dtype):
        self.library, self.shape, self.dtype, self.address = library, shape, dtype, None
        self.bytes = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
        handle = ctypes.c_void_p()
        library.call("mantou_malloc", max(self.bytes, 1), ctypes.addressof(handle))
        self.address = handle.value
        library.call("mantou_fill", self.address, 255, self.bytes)

    def tensor(self, place):
        values = torch.empty(self.shape, dtype=self.dtype, device=place)
        wait_for(values)
        self.library.call("mantou_copy", values.data_ptr(), self.address, self.bytes)
        return values

    def __del__(self):
        if self.address:
            self.library.functions.mantou_free(self.library.context, self.address)


class Bench:
    """Makes arrays; everything that one operation needs. `place` is where PyTorch keeps inputs and computes in float64."""

    def __init__(self, library, dtype, place):
        self.library, self.dtype, self.code, self.place = library, dtype, DTYPES[dtype], place
        self.call, self.generator = library.call, torch.Generator(place).manual_seed(1)

    def normal(self, *shape, scale=1.0, dtype=None):
        values = torch.randn(shape, generator=self.generator, device=self.place)
        return (values * scale).to(dtype or self.dtype)

    def integers(self, high, *shape):
        return torch.randint(high, shape, generator=self.generator, dtype=torch.int32, device=self.place)

    def array(self, tensor):
        result, values = Array(self.library, tuple(tensor.shape), tensor.dtype), tensor.contiguous()
        wait_for(values)
        self.call("mantou_copy", result.address, values.data_ptr(), result.bytes)
        return result

    def zeros(self, *shape):
        return self.array(torch.zeros(shape))

    def blank(self, *shape, dtype=None):
        return Array(self.library, shape, dtype or self.dtype)

    def workspace(self, name, *sizes):
        return self.blank(max(self.call(name, *sizes) // 4, 1), dtype=torch.float32)


def rotation(positions, dim, theta=10000.0):
    angles = torch.arange(positions)[:, None] * theta ** (-torch.arange(0, dim, 2).double() / dim)
    return torch.stack([angles.cos(), angles.sin()], -1).float()
