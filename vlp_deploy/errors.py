"""Every error a user can cause, as one tree. The command line prints it and exits with `exit_code`.

VlpError
├── DataError             a data set, a split file, a list of labels
├── ClassListError        a classes file, duplicate names, names a method cannot serve
├── ImageError            one image that cannot be read
├── ModelError            a backbone: its configuration or its weights
├── CheckpointError       a prompt checkpoint or a training run
│   └── UnsafeFileError   a file that asks to run something when it is read
├── TrainingError         a training run that cannot start, resume or go on
├── BundleError           a deployed bundle
│   └── IntegrityError    a bundle file whose bytes are not the ones that were exported
├── EngineError           an inference engine
│   └── MissingDeviceError  hardware that an engine needs and this machine has not
├── ParityError           an export that does not compute what its checkpoint computed
├── UsageError            options that do not go together (exit code 2)
└── MissingExtraError     an optional dependency that is not installed (exit code 3)

A message says what is wrong, what was found, what was expected and what to do next.
"""


class VlpError(Exception):
    """Something the person at the keyboard can mend."""

    exit_code = 1


class DataError(VlpError):
    """A data set that cannot be used as it is."""


class ClassListError(VlpError):
    """Class names that cannot be used as they are."""


class ImageError(VlpError):
    """One image that cannot be read; the message says why, without the path."""


class ModelError(VlpError):
    """A backbone whose configuration or weights do not fit."""


class CheckpointError(VlpError):
    """A prompt checkpoint or training run that cannot be read or used."""


class UnsafeFileError(CheckpointError):
    """A file that asks to run something when it is read; nothing was run."""


class TrainingError(VlpError):
    """A training run that cannot start, resume or go on."""


class BundleError(VlpError):
    """A bundle that cannot be read, or a target that cannot be written."""


class IntegrityError(BundleError):
    """A bundle file that differs from the one that was exported."""


class EngineError(VlpError):
    """An engine that cannot load or run a bundle here."""


class MissingDeviceError(EngineError):
    """An engine that needs hardware which is not here, or not of this kind."""


class ParityError(VlpError):
    """An export that does not reproduce its checkpoint within tolerance."""


class UsageError(VlpError):
    """Options that do not go together, or need another one."""

    exit_code = 2


class MissingExtraError(VlpError):
    """An optional dependency that is not installed."""

    exit_code = 3

    def __init__(self, what: str, *, needs: str, extra: str) -> None:
        super().__init__(
            f"{what} needs {needs}. Install it with: pip install 'vlp-deploy[{extra}]'"
        )
