"""How the grader and a submission talk: JSON over a local socket, tensors as their bytes; nothing received is executed.

Unpickling runs code of the sender's choice, and the sender is not trusted, so that nothing is pickled here.
"""

import base64
import json
import math
import socket
import struct
import time
from collections.abc import Mapping

import torch
from jaxtyping import Shaped
from torch import Tensor

MOST_BYTES = 2**24  # of one message: an answer is small, and a list of a gigabyte would take twenty here
HEADER = struct.Struct(">I")
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    + (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
}


def encode(value: object) -> object:
    """The value as JSON can hold it. TypeError for what is no tensor, number, string, None or container of these."""
    if isinstance(value, Tensor):
        return {"tensor": encode_tensor(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, Mapping):
        return {"dict": [[encode(key), encode(part)] for key, part in value.items()]}
    if isinstance(value, (tuple, list)):
        parts = [encode(part) for part in value]
        return {"tuple": parts} if isinstance(value, tuple) else parts
    raise TypeError(f"a {type(value).__name__}, where tensors, numbers, strings, tuples, lists and dicts are allowed")


def encode_tensor(value: Shaped[Tensor, "..."]) -> list:
    """Type, shape and bytes."""
    name = str(value.dtype).removeprefix("torch.")
    if name not in DTYPES or value.layout != torch.strided or value.numel() * value.element_size() > MOST_BYTES:
        raise TypeError(f"a tensor of type {name} and shape {tuple(value.shape)}, which is unusual or too large")
    flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return [name, list(value.shape), base64.b64encode(flat.view(torch.uint8).numpy().tobytes()).decode()]


def decode(value: object) -> object:
    """What `encode` was given. ValueError, TypeError or KeyError for anything that it does not write."""
    if isinstance(value, list):
        return [decode(part) for part in value]
    if not isinstance(value, dict):
        return value
    [(name, content)] = value.items()
    if name == "tensor":
        return decode_tensor(*content)
    if name == "complex":
        return complex(*content)
    if name == "dict":
        return {decode(key): decode(part) for key, part in content}
    if name == "tuple":
        return tuple(decode(part) for part in content)
    raise ValueError(f"a value is marked {name!r}")


def decode_tensor(name: str, shape: list[int], data: str) -> Tensor:
    """The tensor of that type and shape; its bytes must fill it exactly."""
    dtype, content = DTYPES[name], bytearray(base64.b64decode(data, validate=True))
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"a tensor's shape is {shape}")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"a tensor of shape {shape} comes with {len(content)} bytes")
    return torch.frombuffer(content, dtype=dtype).reshape(shape) if content else torch.empty(shape, dtype=dtype)


class Wire:
    """Messages (dicts of JSON values with a "kind") over a socket, until `deadline` on the monotonic clock."""

    def __init__(self, connection: socket.socket, deadline: float = math.inf) -> None:
        self.connection, self.deadline = connection, deadline

    def wait(self) -> None:
        """Let the next operation take what time is left. TimeoutError if none is."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(None if math.isinf(left) else left)

    def send(self, kind: str, **content) -> None:
        """Send one message. ValueError if it is too long; TimeoutError; OSError if the other side is gone."""
        data = json.dumps({"kind": kind, **content}).encode()
        if len(data) > MOST_BYTES:
            raise ValueError(f"a message has {len(data):,} bytes; it must have at most {MOST_BYTES:,}")
        self.wait()
        self.connection.sendall(HEADER.pack(len(data)) + data)

    def receive(self) -> dict:
        """The next message. ValueError if it is none, EOFError if there is none; TimeoutError; OSError."""
        (length,) = HEADER.unpack(self.read(HEADER.size))
        if length > MOST_BYTES:
            raise ValueError(f"a message of {length:,} bytes is announced")
        message = json.loads(self.read(length))
        if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
            raise ValueError("a message has no kind")
        return message

    def read(self, count: int) -> bytes:
        """That many bytes."""
        data = bytearray()
        while len(data) < count:
            self.wait()
            part = self.connection.recv(min(count - len(data), 2**20))
            if not part:
                raise EOFError
            data += part
        return bytes(data)
