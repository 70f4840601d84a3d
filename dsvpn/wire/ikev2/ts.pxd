# C types for ts.py, read by Cython alone.
from dsvpn.wire.cursor cimport Reader

cdef tuple _decode_selectors(Reader reader)
cdef object _decode_selector(Reader reader)
