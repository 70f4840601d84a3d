# C types for sa.py, read by Cython alone.
from dsvpn.wire.cursor cimport Reader

cdef tuple _decode_proposal(Reader reader)
cdef object _decode_transform(Reader reader, bint last)
