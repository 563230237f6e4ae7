"""The pipelines of a guard: the guarded one, and its copies."""

from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from cryptomnesia.pipelines.call import own_class
from cryptomnesia.pipelines.contents.parts import same_vocabulary
from cryptomnesia.pipelines.tokenizers import added_tokens, copied_tokenizers

Call = Callable[[type[Any], Any, tuple[Any, ...], dict[str, Any]], Any]
"""Makes a call: class without the guard, pipeline, positional arguments, keyword arguments → output."""


class Swap(NamedTuple):
    """A tokenizer whose place is taken by a copy while a guard is attached.

    Attributes:
        original: the pipeline's own.
        private: the copy.
        added: the tokens that had been added to it when it was copied.
    """

    original: Any
    private: Any
    added: dict[str, int]


Tokenizers = dict[str, Swap]
"""Name of a tokenizer → what is in its place."""


class Pipes:
    """Makes a pipeline an instance of a subclass of its class, with the same name and another `__call__`.

    Copies of the pipeline that are made meanwhile have the same class. All of them get their own class back in the end.

    Attributes:
        kind: the pipeline's own class.
    """

    def __init__(self, pipe: Any, guarding: Any, call: Call) -> None:
        """Give the pipeline its new class, and copies of its tokenizers.

        Args:
            pipe: the pipeline.
            guarding: its guard, which the new class has as `guarded_by`.
            call: makes the calls of the pipeline and its copies.
        """
        # a copy of a pipeline that was guarded at that moment has the class of that guard
        self.kind = own_class(pipe)
        self._pipe = pipe
        self._lock = Lock()
        # a copy that was not called yet has no tokenizers of its own
        self._tokenizers: WeakKeyDictionary[Any, Tokenizers | None] = WeakKeyDictionary()
        self._class = self._subclass(guarding, call)
        self.give_tokenizers(pipe)
        pipe.__class__ = self._class

    def _subclass(self, guarding: Any, call: Call) -> type[Any]:
        kind = self.kind

        @wraps(kind.__call__)
        def __call__(called: Any, *args: Any, **kwargs: Any) -> Any:
            return call(kind, called, args, kwargs)

        @wraps(kind.__init__)
        def __new__(cls: type[Any], *args: Any, **kwargs: Any) -> Any:
            made = object.__new__(cls)
            with self._lock:
                self._tokenizers[made] = None
            return made

        attributes = {"__call__": __call__, "__new__": __new__, "guarded_by": guarding}
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        return type(kind.__name__, (kind,), {**attributes, **names})

    def give_tokenizers(self, pipe: Any) -> None:
        """Give a pipeline copies of its tokenizers, unless it has them already."""
        if self._tokenizers.get(pipe) is not None:
            return
        swapped = {
            name: Swap(self._original(name, getattr(pipe, name)), private, added_tokens(private))
            for name, private in copied_tokenizers(pipe).items()
        }
        for name, swap in swapped.items():
            same_vocabulary(getattr(pipe, name), swap.private)
            setattr(pipe, name, swap.private)
        with self._lock:
            self._tokenizers[pipe] = swapped

    def _original(self, name: str, tokenizer: Any) -> Any:
        """The tokenizer itself, or the one that it took the place of in the guarded pipeline."""
        swap = (self._tokenizers.get(self._pipe) or {}).get(name)
        return swap.original if swap is not None and swap.private is tokenizer else tokenizer

    def release(self) -> None:
        """Give the pipeline and its copies their class and their tokenizers back.

        A tokenizer that the user replaced meanwhile stays, and so does a copy whose added tokens have changed: a
        textual inversion adds its tokens to the copy, and their vectors to the text encoder.
        """
        with self._lock:
            for pipe, tokenizers in list(self._tokenizers.items()):
                for name, swap in (tokenizers or self._tokenizers[self._pipe] or {}).items():
                    if getattr(pipe, name, None) is swap.private and added_tokens(swap.private) == swap.added:
                        setattr(pipe, name, swap.original)
                # another guard may have taken a copy over
                if type(pipe) is self._class:
                    pipe.__class__ = self.kind
