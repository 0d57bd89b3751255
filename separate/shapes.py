"""Type hints for array shapes: those of jaxtyping in the test suite, stand-ins without a check elsewhere.

`Float[Tensor, "B C T"]` is a floating-point tensor of shape (B, C, T).  A name stands for the same size wherever
it occurs in one signature, `_` for any size and `...` for any number of dimensions; a single name starts with a space,
" T", so that linters do not read it as the name of a variable.  jaxtyping is used if the program imported it before
`separate`, as tests/__init__.py does; separate itself does not need it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Annotated as Bool
    from typing import Annotated as Complex
    from typing import Annotated as Float
    from typing import Annotated as Inexact
    from typing import Annotated as Int
elif "jaxtyping" in sys.modules:
    from jaxtyping import Bool, Complex, Float, Inexact, Int
else:

    class Float:
        """Float[Tensor, "B C T"] is Tensor."""

        def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
            return item[0]

    Bool = Complex = Inexact = Int = Float

__all__ = ["Bool", "Complex", "Float", "Inexact", "Int"]
