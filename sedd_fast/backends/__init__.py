"""Implementations of the operations, one module a backend, and the table that chooses one."""
