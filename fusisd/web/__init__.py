"""The HTTP front: a hardened server, who may write, and the rooms of routes over ports.Core.

Does not: decide anything about balancing; handlers parse, validate, submit and render.
"""
