"""
Arrays as bytes, between the grader and the worker that runs a student's code. No pickle: nothing that is read can act.

    frame    8 bytes, the length of the rest (little-endian), then the rest
    message  JSON, where {"array": i} stands for the i-th array, then the arrays, each as a frame

An array is a dtype of the list below, its shape and its raw bytes. What comes from the worker is read strictly:
anything else raises ValueError.
"""
import json
import math
import struct

import numpy as np

DTYPES = ("float64", "float32", "int64", "int32", "bool")
LIMIT = 16 << 20    # bytes of a message

def frame(data):
    return struct.pack("<Q", len(data)) + data

def read(stream):
    """The contents of one frame of a stream, or b"" at its end."""
    return stream.read(int.from_bytes(stream.read(8), "little"))

def pack(value):
    """JSON-like values (dict, list, tuple, str, int, float, bool, None) with numpy arrays in them -> bytes."""
    arrays = []
    def plain(item):
        if isinstance(item, np.ndarray):
            if str(item.dtype) not in DTYPES:
                raise ValueError(f"an array of {item.dtype}")
            arrays.append(np.ascontiguousarray(item).reshape(item.shape))
            return {"array": len(arrays) - 1}
        if isinstance(item, dict):
            return {"dict": [[str(key), plain(x)] for key, x in item.items()]}
        if isinstance(item, (list, tuple)):
            return [plain(x) for x in item]
        if isinstance(item, np.generic):
            return item.item()
        return item
    head = json.dumps(plain(value)).encode()
    parts = [frame(head)]
    for array in arrays:
        about = json.dumps([str(array.dtype), list(array.shape)]).encode()
        parts += [frame(about), frame(array.tobytes())]
    return b"".join(parts)

def frames(data):
    """The frames of a message, one after the other."""
    at, found = 0, []
    while at < len(data):
        if len(data) - at < 8:
            raise ValueError("cut short")
        size = struct.unpack_from("<Q", data, at)[0]
        if size > len(data) - at - 8:
            raise ValueError("cut short")
        found.append(data[at + 8:at + 8 + size])
        at += 8 + size
    return found

def array_of(about, data):
    """One array. Raises ValueError if dtype, shape and bytes do not agree."""
    about = json.loads(about)
    if not isinstance(about, list) or len(about) != 2 or about[0] not in DTYPES or not isinstance(about[1], list):
        raise ValueError("not an array")
    dtype, shape = about
    if len(shape) > 8 or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError("not a shape")
    if math.prod(shape) * np.dtype(dtype).itemsize != len(data):
        raise ValueError("bytes that do not fit the shape")
    return np.frombuffer(data, dtype).reshape(shape).copy()

def unpack(data):
    """The value of a message. Raises ValueError for anything that pack does not write."""
    try:
        head, *rest = frames(data)
        if len(rest) % 2:
            raise ValueError("an array without its shape")
        arrays = [array_of(rest[i], rest[i + 1]) for i in range(0, len(rest), 2)]
        def whole(item):
            if isinstance(item, dict):
                if "array" in item:
                    return arrays[item["array"]]
                return {key: whole(x) for key, x in item["dict"]}
            return [whole(x) for x in item] if isinstance(item, list) else item
        return whole(json.loads(head))
    except (LookupError, TypeError, ValueError, OverflowError, RecursionError, MemoryError) as e:
        raise ValueError(f"not a message: {type(e).__name__}") from None
