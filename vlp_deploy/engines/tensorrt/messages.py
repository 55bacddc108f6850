"""What TensorRT says, kept: its errors for ours, and the builder's list of layers."""

from typing import Any

LAYERS = "Layers:\nName: "  # how the builder's list begins


def message_logger(trt: Any, *, keep_layers: bool = False) -> Any:
    """A logger for `trt`, with `complaints()` and `layers`. It prints nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers: list[str] = []
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self._errors.append(message)
            elif keep_layers and LAYERS in message:
                listed = message.partition(LAYERS)[2].partition("\n\n")[0]
                self.layers = [
                    f"Name: {line.removeprefix('Name: ')}" for line in listed.split("\n")
                ]

        def complaints(self) -> str:
            """All errors so far, once each."""
            return "; ".join(dict.fromkeys(self._errors))

    return Logger()
