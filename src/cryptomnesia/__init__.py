"""Find, map and stop memorized training images in diffusion models.

Eight verbs: `detect`, `localize`, `guard`, `audit`, `calibrate`, `match`, `find` and `finetune`; below them is `watch`.
Names are loaded when they are first used, so importing the package loads neither torch nor diffusers. They are written
once, in `__init__.pyi`.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
