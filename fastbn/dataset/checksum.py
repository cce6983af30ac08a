"""CRC-32 of bytes that are read in parts, by whomever, in whatever order."""

__all__ = ["combined"]

#: That of zip files, with the coefficient of x^0 in the highest bit.
_POLYNOMIAL, _ONE = 0xEDB88320, 1 << 31


def combined(first: int, second: int, length: int) -> int:
    """CRC-32 of some bytes and ``length`` more, by those of both parts.

    It is a remainder of polynomials over GF(2): more bytes multiply the first by x^8 for each.

    Examples
    --------
    >>> import zlib
    >>> combined(zlib.crc32(b"fast"), zlib.crc32(b"bn"), 2) == zlib.crc32(b"fastbn")
    True
    """
    power, square = _ONE, _ONE >> 8
    while length:
        if length & 1:
            power = _times(power, square)
        square, length = _times(square, square), length >> 1
    return _times(power, first) ^ second


def _times(a: int, b: int) -> int:
    """The product of two remainders."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product
