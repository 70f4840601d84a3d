# C types for payload.py, read by Cython alone.
from dsvpn.wire.cursor cimport Reader

cpdef tuple decode_chain(Reader reader, int first_payload, bint outermost)
