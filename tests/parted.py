"""Work for several processes, which import it from here."""

import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from cryptomnesia import UsageError
from cryptomnesia.files import write_whole
from cryptomnesia.parts import InParts, Stage


class Doubling:
    """Doubles numbers, and does as the number says that are in `odd`."""

    def __init__(self, odd=None):
        self.odd = odd or {}

    def __call__(self, number):
        match self.odd.get(number):
            case "dies":
                os._exit(1)
            case "raises":
                raise UsageError("got what is wrong; give another")
            case "fails":
                raise ZeroDivisionError("no")
            case "warns":
                logging.getLogger("cryptomnesia").warning("%d images are odd", 3)
            case "names":
                return os.getpid()
            case "sleeps":
                time.sleep(60)
        return 2 * number


@dataclass(kw_only=True)
class Squares(InParts[int]):
    """The squares of some numbers, and then the sums of pairs of them."""

    claimed = "squares.json"
    what = "a sum"

    count: int = 5
    dies: bool = False

    @property
    def settings(self):
        return {"count": self.count}

    def check(self):
        if self.count > 100:
            raise UsageError("got too many numbers; give fewer")

    def stages(self):
        yield [self._stage("squares", self.count), self._stage("cubes", 2)]
        if self.count > 1:
            yield [self._stage("sums", -(-self.count // 2), size=1)]

    def _stage(self, name, count, size=2):
        return Stage(name, f"{name}-{{:03d}}.txt", self.folder, range(count), size)

    def part(self, stage, number, report):
        if self.dies and (stage.name, number) == ("squares", 1):
            os._exit(1)
        rows = stage.part(number)
        if stage.name == "sums":
            values = self._values("squares")
            found = [sum(values[2 * row : 2 * row + 2]) for row in rows]
        else:
            power = 2 if stage.name == "squares" else 3
            found = [row**power for row in rows]
        report(len(rows) / 2)
        write_whole(stage.files[number], json.dumps(found))

    def _values(self, name):
        return [value for file in sorted(self.folder.glob(f"{name}-*")) for value in json.loads(file.read_text())]

    def result(self):
        return sum(self._values("sums" if self.count > 1 else "squares"))


@dataclass
class Making:
    """Makes the work; it can go to another process."""

    folder: Path
    count: int = 5
    dies: bool = False

    def __call__(self):
        return Squares(folder=self.folder, count=self.count, dies=self.dies)
