"""One run of `vlp classify` as it was asked for, checked before anything is loaded."""

import os
from dataclasses import dataclass
from pathlib import Path

from vlp_deploy.bulk.outputs.embeddings import EMBEDDING_SUFFIXES
from vlp_deploy.bulk.outputs.sorted_images import LABEL, searched_around
from vlp_deploy.errors import UsageError
from vlp_deploy.question import Question


@dataclass(frozen=True, kw_only=True)
class Source:
    """What answers: a bundle in an engine, and the classes it is to know instead of its own."""

    bundle: Path | None  # None: the default one
    engine: str
    device: str
    threads: int | None  # None: the engine's own choice
    classes: Path | None
    templates: tuple[str, ...] | None

    def __post_init__(self) -> None:
        if self.templates and self.classes is None:  # the bundle does not keep synonyms
            raise UsageError("--template is for new classes: name them with --classes")


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Where answers go, and what else is made of the images."""

    format: str
    output: Path | None  # None: stdout
    embeddings: Path | None
    copy_to: str | None
    symlink: str | None
    html: Path | None
    force: bool

    def __post_init__(self) -> None:
        if self.format == "parquet" and self.output is None:
            raise UsageError("parquet is a folder of parts: name it with --output")
        if self.embeddings and self.embeddings.suffix not in EMBEDDING_SUFFIXES:
            raise UsageError(
                f"--embeddings {self.embeddings}: expected a name in "
                f"{' or '.join(EMBEDDING_SUFFIXES)}"
            )
        for template in filter(None, (self.copy_to, self.symlink)):
            if template.count(LABEL) != 1:
                raise UsageError(f"{template}: expected a folder with {LABEL} in it, once")


@dataclass(frozen=True, kw_only=True)
class Request:
    """Raises UsageError for options that do not go together.

    `reject` takes the bundle's own threshold, `reject_below` names one.
    """

    images: tuple[Path, ...]
    source: Source
    question: Question
    targets: Targets
    reject: bool
    reject_below: float | None
    read_threads: int
    watch: bool
    ray: str | None  # the address of a cluster

    def __post_init__(self) -> None:
        self._check_rejection()
        self._check_folders()
        if self.watch:
            self._check_watch()

    @property
    def rejection(self) -> bool | float:
        """As `Classifier.classify` takes it."""
        return self.reject if self.reject_below is None else self.reject_below

    def _check_rejection(self) -> None:
        if self.reject and self.reject_below is not None:
            raise UsageError(
                "--reject takes the bundle's own threshold, --reject-below names one: give one"
            )
        if self.question.multi_label and (self.reject or self.reject_below is not None):
            raise UsageError(
                "--multi-label rejects already: an image that reaches no class's threshold has no "
                "label. Leave out --reject and --reject-below"
            )

    def _check_folders(self) -> None:
        """Sorted images must not be found and sorted again."""
        for template in filter(None, (self.targets.copy_to, self.targets.symlink)):
            if (searched := searched_around(template, self.images)) is not None:
                raise UsageError(f"{template} lies in {searched}, which is searched for images")

    def _check_watch(self) -> None:
        """Only lines can be written in the order in which files arrive."""
        if absent := [os.fspath(path) for path in self.images if not path.is_dir()]:
            raise UsageError(f"--watch is for folders; {absent[0]} is none")
        if self.targets.format == "parquet" or self.targets.embeddings or self.ray:
            raise UsageError("--watch goes with lines only: no parquet, --embeddings or --ray")
