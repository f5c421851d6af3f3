"""What headwater says when it cannot go on.

HeadwaterError
├── InputError      something the user handed in: a file, a query, a name, a parameter
├── ModelError      a model directory that is incomplete, unsafe or damaged
├── StoreError      a store that is missing, damaged, newer than this code, or not writable
└── MismatchError   two artefacts that do not belong together

Every message names the object, what was expected, what came, and the next step.
"""


class HeadwaterError(Exception):
    """An error that a user can act on: `subject: expected …, found …. remedy`."""

    def __init__(self, subject: str, *, expected: str, found: str, remedy: str) -> None:
        super().__init__(f"{subject}: expected {expected}, found {found}. {remedy}")
        self.subject, self.expected, self.found, self.remedy = subject, expected, found, remedy

    def __reduce__(self):  # Dask sends errors between processes by pickle; keyword arguments need help.
        return _rebuild, (type(self), self.subject, self.expected, self.found, self.remedy), vars(self)


class InputError(HeadwaterError):
    """Something that the user handed in cannot be used."""


class ModelError(HeadwaterError):
    """A model directory is incomplete, unsafe or damaged."""


class StoreError(HeadwaterError):
    """A store is missing, damaged, newer than this code, or not writable."""


class MismatchError(HeadwaterError):
    """Two artefacts do not belong together."""


def _rebuild(kind, subject, expected, found, remedy):
    return kind(subject, expected=expected, found=found, remedy=remedy)
