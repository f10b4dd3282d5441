"""`nbdev_export` with lines of at most 100 columns in `__all__` too, then `nbdev_clean`: the modules
of the folder it is called in, written anew from its notebooks."""
from pathlib import Path
from textwrap import TextWrapper
import nbdev.maker
from nbdev.clean import nbdev_clean
from nbdev.doclinks import nbdev_export

class Wrapper(TextWrapper): # nbdev has its own width, 120, and forgets what stands before the list
    def __init__(self, width: int, initial_indent: str, **options):
        super().__init__(width=100, initial_indent=" "*len("__all__ = "), **options)
    def wrap(self, text: str) -> list[str]:
        first, *others = super().wrap(text)
        return [first.lstrip(), *others]

if __name__ == "__main__":
    for module in Path("prdp_nb").glob("*.py"): module.unlink()
    nbdev.maker.TextWrapper = Wrapper
    nbdev_export()
    nbdev_clean()
