# C types for cursor.py, read by Cython alone: the same source runs interpreted without them.

cdef class Reader:
    cdef public bytes data
    cdef public Py_ssize_t offset
    cdef public Py_ssize_t end

    cpdef Py_ssize_t remaining(self)
    cpdef bytes take(self, Py_ssize_t length, str what)
    cpdef bytes rest(self)
    cpdef int u8(self, str what) except -1
    cpdef int u16(self, str what) except -1
    cpdef long long u32(self, str what) except -1
    cpdef object u64(self, str what)
    cpdef Reader sub(self, Py_ssize_t length, str what)
    cpdef object expect_end(self, str what)
