"""The native API below `/v1/`: everything that the core can do, as JSON documents with their state.

Does not: change the shapes of `/services`, which are frozen in compat.py.
"""
