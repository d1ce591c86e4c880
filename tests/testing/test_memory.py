"""What a function remembers is found, wherever it is."""

from gradtx.testing.memory import differences, remembered


def with_defaults(count):
    """A function that calls some with defaults, each of which is a list of its own."""

    def one():
        def inner(x, log=[]):  # noqa: B006 - what is to be found
            return log

        return inner

    functions = [one() for _ in range(count)]
    return lambda: [function(0) for function in functions], functions


def test_the_defaults_of_each_of_many_functions():
    outer, functions = with_defaults(20)
    before = remembered("update", outer)
    assert sum(place.startswith("the defaults of") for place in before) >= 20
    for function in functions:
        function(0).append(1)
        found = list(differences(before, remembered("update", outer)))
        assert [(old, new) for _, old, new in found][:1] == [("of length 0", "of length 1")]
        function(0).clear()
