"""How to make each transformation that gradtx and optax share: three ways, by family.

A way is the keyword arguments of a factory, the list of its positional ones, the pair of both for
a factory of factories, or a function from a library to any of these, where an argument is a
transformation of that library itself. The first is the one with the defaults.
"""
