"""Type hints for array shapes: checked by jaxtyping in the test suite, without effect elsewhere.

`Float[Tensor, "B C T"]` is a floating-point tensor of shape (B, C, T).  A name stands for the same size
throughout a signature, `_` for any size and `...` for any number of dimensions; a single name starts with a space,
" T", so that linters do not read it as the name of a variable.  jaxtyping is used if it was imported before
`separate`, as in tests/__init__.py; separate does not need it.
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
