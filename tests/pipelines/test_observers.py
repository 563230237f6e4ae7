import pytest
import torch

from cryptomnesia.pipelines.contents.observers import observes

SEEN: list[object] = []
COUNT = 0


def counts(*_):
    global COUNT
    COUNT += 1


def made():
    seen, count = [], 0

    def collects(module, args, output):
        nonlocal count
        count += 1
        if isinstance(output, torch.Tensor):
            seen.append(output.detach().clone())

    return collects


def collecting(seen):
    return lambda module, args, output: seen.append(output)


OBSERVERS = {
    "collects": lambda module, args, output: SEEN.append(len(output[0])),
    "fails": lambda *_: pytest.fail("something was generated"),
    "prints": lambda module, args, output: print(output.shape),
    "nothing": lambda *_: None,
    "collects and counts": made(),
    "collects into what it holds": collecting([]),
}


def in_place(module, args, output):
    output.mul_(0.9)


def adds(module, args, output):
    output += 1


def sets(module, args, output):
    output[0] = 1


def gives(module, args, output):
    SEEN.append(1)
    return output * 0.9


def sometimes(module, args, output):
    if len(SEEN):
        return output
    return None


def into(module, args, output):
    torch.abs(output, out=output)


def appends(module, args, output):
    output.append(1)


def by_name(module, args, output):
    getattr(output, "mul_")(0.9)  # noqa: B009


def norm(output):
    """Called like a function that only reads."""
    output.mul_(0.9)


class Doubling(list):
    def append(self, output):
        output.mul_(2)


DOUBLED = Doubling()
mul_ = 0


def holding(function):
    def calls(module, args, output):
        function(output)

    return calls


OTHERS = {
    "a function of the user's own": lambda *given: print(norm(given[2])),
    "a function that is held": holding(torch.relu_),
    "a collection of the user's own": lambda module, args, output: DOUBLED.append(output),
    "a collection of the user's own that is held": collecting(Doubling()),
    "a function in the defaults": lambda module, args, output, cat=torch.relu_: print(cat(output)),
    "a method that is called like a number": lambda module, args, output: print(mul_, output.mul_(2)),
    "into": into,
    "appends to what it is given": appends,
    "by name": by_name,
    "in place": in_place,
    "adds": adds,
    "sets": sets,
    "gives": gives,
    "sometimes": sometimes,
    "one or the other": lambda module, args, output: SEEN.append(1) or output,
    "the last of two": lambda module, args, output: (SEEN.append(1), output)[1],
    "the greater": lambda module, args, output: max(SEEN.append(1), output),
    "an argument's own method": lambda module, args, output: output.sum(),
    "unknown": lambda module, args, output: unknown(output),  # noqa: F821
    "a method": SEEN.append,
    "through data": lambda module, args, output: output.data.add(1, out=output),
    "adds to a tensor": lambda module, args, output: output.append(1).add(2),
}


@pytest.mark.parametrize("name", OBSERVERS)
def test_functions_that_only_observe(name):
    assert observes(OBSERVERS[name])


@pytest.mark.parametrize("name", OTHERS)
def test_functions_that_may_do_more(name):
    assert not observes(OTHERS[name])
