"""Whole numbers of a few bits each, packed without gaps, highest bit first."""

import numpy as np

_GROUP = 8  # so many values of any width fill whole bytes


def pack(values: np.ndarray, bits: int) -> bytes:
    """Numbers 0 .. 2^bits - 1 as bytes; the last byte is filled up with zeros."""
    places = np.arange(bits - 1, -1, -1)
    return np.packbits(((np.asarray(values).reshape(-1, 1) >> places) & 1).astype(np.uint8).reshape(-1)).tobytes()


def unpack(data: bytes, bits: int, count: int) -> np.ndarray:
    """The first `count` numbers of packed bytes, int32."""
    ones = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits).reshape(count, bits)
    return ones.astype(np.int32) @ (1 << np.arange(bits - 1, -1, -1)).astype(np.int32)


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` numbers take."""
    return -(-count * bits // 8)


class Packer:
    """Packs numbers that come in pieces; what it returns, joined, is `pack` of all of them."""

    def __init__(self, bits: int):
        self.bits = bits
        self._waiting = np.zeros(0, np.int32)

    def add(self, values: np.ndarray) -> bytes:
        """The bytes that are full now."""
        values = np.concatenate([self._waiting, np.asarray(values, np.int32).reshape(-1)])
        whole = len(values) // _GROUP * _GROUP
        self._waiting = values[whole:]
        return pack(values[:whole], self.bits)

    def finish(self) -> bytes:
        """The rest."""
        rest, self._waiting = self._waiting, self._waiting[:0]
        return pack(rest, self.bits)
