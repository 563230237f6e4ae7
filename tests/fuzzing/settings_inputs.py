"""Settings from flags, environment variables and files that do not fit."""

import json

from hypothesis import strategies as st

from cryptomnesia import settings
from cryptomnesia.settings import PREFIX, Settings
from fuzzing.mutations import ODD_NUMBERS, ODD_TEXTS, damaged, values

KINDS = [kind for kind in vars(settings).values() if isinstance(kind, type) and issubclass(kind, Settings)]
CLASSES = sorted((kind for kind in KINDS if kind.model_fields), key=lambda kind: kind.__name__)
NAMES = sorted({name for kind in CLASSES for name in kind.model_fields})
TEXTS = st.sampled_from([*map(str, ODD_NUMBERS), *ODD_TEXTS]) | st.text(max_size=20) | values.map(json.dumps)


@st.composite
def inputs(draw):
    """(class, flags, environment, bytes of the file or None)."""
    kind = draw(st.sampled_from(CLASSES))
    names = st.sampled_from(sorted(kind.model_fields)) | st.sampled_from(NAMES) | st.text(max_size=8)
    flags = draw(st.dictionaries(names, values | TEXTS, max_size=2))
    variables = {
        f"{PREFIX}{name.upper()}": value for name, value in draw(st.dictionaries(names, TEXTS, max_size=2)).items()
    }
    if not draw(st.booleans()):
        return kind, flags, variables, None
    found = draw(st.dictionaries(names, values, max_size=3))
    content = "\n".join(f"{_key(name)} = {json.dumps(value)}" for name, value in found.items()).encode()
    change = draw(st.sampled_from(["none", "none", "damaged", "deep", "bytes", "utf-16"]))
    if change == "damaged":
        content = draw(damaged(content or b"steps = 3"))
    elif change == "deep":
        content += b"\nsteps = " + draw(st.sampled_from([b"[", b"{a="])) * 100_000
    elif change == "bytes":
        content = draw(st.binary(max_size=100))
    elif change == "utf-16":
        content = content.decode().encode("utf-16")
    return kind, flags, variables, content


def _key(name):
    return name if name.isidentifier() and name.isascii() else json.dumps(name)


def prepare(samples, folder, stack):
    """The function that resolves settings."""
    file = folder / "settings.toml"

    def try_one(given):
        kind, flags, variables, content = given
        if content is not None:
            file.write_bytes(content)
        found = kind.resolve(flags, None if content is None else file, environment=variables)
        # what a run stores
        json.dumps(found.model_dump(mode="json"), allow_nan=False)

    return try_one
