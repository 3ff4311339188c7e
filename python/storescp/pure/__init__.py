"""The pure-Python path: the same contracts with pynetdicom, pydicom and sqlite3.

It is the baseline of the benchmarks and the oracle of the differential tests.
"""
