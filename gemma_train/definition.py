"""Python files in which a user defines a thing: a run's config, a data recipe."""

import traceback

from gemma_train import storage
from gemma_train.contents import read_text
from gemma_train.errors import UserError


def load_definition[Kind](
    file: str, name: str, kind: type[Kind], *, what: str | None = None
) -> Kind:
    """Execute the user's own `file` and return what it leaves as `name`, which must be a `kind`.

    `what` is what messages call the file, where a user may choose the name. Raises `UserError`
    naming file and line for whatever goes wrong in it.
    """
    what = what or name
    code = read_text(storage.existing(file, what), "give a Python file")
    scope = {"__name__": name, "__file__": file}
    try:
        exec(compile(code, file, "exec"), scope)
    except SyntaxError as error:
        raise UserError(f"{what} {file!r}, line {error.lineno}: {error.msg}") from None
    except MemoryError as error:  # what Python's parser says of deep nesting
        raise UserError(f"{what} {file!r}: {error}") from None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = max((frame.lineno or 0 for frame in frames if frame.filename == file), default=0)
        told = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{what} {file!r}, line {line}: {told}{error}") from None
    found = scope.get(name)
    if not isinstance(found, kind):
        others = ", ".join(other for other, value in scope.items() if isinstance(value, kind))
        asked = "" if name == what else f"name is {name!r}: "
        raise UserError(
            f"{asked}{what} {file!r} does not end in `{name} = {kind.__name__}(...)`"
            + (f"; it has {others}" if others else "")
        )
    return found
