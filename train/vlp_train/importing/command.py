"""`vlp import`: from the command line to a prompt checkpoint, telling what was recognised."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.checkpoint import Header
from vlp_train.importing.questions import EPOCH, QUESTIONS
from vlp_train.importing.road import Conversion, ImportRequest, imported

CLASSES_SHOWN = 5


def option_help() -> str:
    """Every option that some kind of file needs, and whose it is, in the fewest words."""
    meanings: dict[str, dict[str, str]] = {}
    for kind, questions in QUESTIONS.items():
        for name, question in questions.items():
            meanings.setdefault(name, {})[kind] = question.meaning
    return "; ".join(
        f"{name} ({', '.join(kinds)}): {min(kinds.values(), key=len)}"
        for name, kinds in meanings.items()
    )


def import_checkpoint(
    path: Annotated[
        Path,
        typer.Argument(
            help="An official checkpoint: model.pth.tar-*, or any folder above the files of one "
            "model."
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="The CLIP it was trained with: an open_clip name such as ViT-B-16-quickgelu, or "
            "an open_clip .json configuration."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The prompt checkpoint, a .safetensors file.")],
    pretrained: Annotated[
        str | None,
        typer.Option(help="Its weights: an open_clip tag such as openai, or a local file."),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help="The training class names, one a line, in their order. Most files know their "
            "classes and check them."
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "-O",
            "--option",
            metavar="NAME=VALUE",
            help=f"What files do not say, repeatable. {EPOCH}: which of the saved epochs, a number "
            f"or best; {option_help()}.",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images that exports are compared on, and that DCP's context=frozen is "
            "made of. Default: drawn ones to compare on."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output.")] = False,
) -> None:
    """Turn a checkpoint of a method's official code into a prompt checkpoint.

    The method is recognised by the names of the tensors. Nothing inside the file is executed.
    """
    _check_output(output, force=force)
    request = ImportRequest(
        path=path,
        model=model,
        pretrained=pretrained,
        classes=classes,
        options=parse_options(option or []),
        images=images,
    )
    checkpoint, conversion = imported(request, lambda text: print(text, file=sys.stderr))
    checkpoint.save(output)
    for line in summary(conversion):
        print(line)
    print(f"written:    {output}")
    print(f"next:       {_next(output, pretrained)}")


def parse_options(assignments: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE` texts by name. Raises CheckpointError."""
    options: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name or name in options:
            raise CheckpointError(
                f"-O {assignment!r} is no NAME=VALUE of its own, such as -O position=middle"
            )
        options[name] = value
    return options


def summary(conversion: Conversion) -> list[str]:
    """What was recognised and assumed, line by line."""
    header = conversion.header
    file = header.provenance["files"][0]
    planned = f" of {file['planned_epochs']}" if file["planned_epochs"] else ""
    epoch = f", epoch {file['epoch']}{planned}" if file["epoch"] else ""
    shown = ", ".join(header.class_names[:CLASSES_SHOWN])
    more = " …" if len(header.class_names) > CLASSES_SHOWN else ""
    lines = [
        f"recognised: {conversion.origin}{epoch}; imported as {header.method}",
        f"prompts:    {_prompts(conversion)}",
        f"sentence:   {header.templates[0]}",
        f"classes:    {len(header.class_names)}: {shown}{more}",
    ]
    return lines + [f"assumed:    {assumption}" for assumption in conversion.assumptions]


def _prompts(conversion: Conversion) -> str:
    header, parts = conversion.header, []
    towers = {"text": header.text_layout.tokens, "visual": header.visual_layout.tokens}
    for tower, tokens in towers.items():
        if tokens:
            depth = _depth(conversion, tower)
            layers = f" in {depth} layer{'s' if depth > 1 else ''}" if depth else ""
            parts.append(f"{tokens} {tower} token{'s' if tokens > 1 else ''}{layers}")
    return ", ".join([*parts, *_extras(header)])


def _depth(conversion: Conversion, tower: str) -> int:
    """In how many layers prompts are inserted; 0 where that is computed."""
    prompts = conversion.tensors.get(f"{tower}.prompts")
    if prompts is None:
        return 1 if f"{tower}.class_prompts" in conversion.tensors else 0
    return len(prompts)


def _extras(header: Header) -> list[str]:
    """The hyper-parameters of methods that are more than prompts."""
    if header.text_layout.position != "end":
        return [f"class name {header.text_layout.position}"]
    return []


def _check_output(output: Path, *, force: bool) -> None:
    if output.is_dir():
        raise CheckpointError(f"--output {output} is a folder. Name a .safetensors file")
    if output.exists() and not force:
        raise CheckpointError(
            f"--output {output} exists. Choose another name, or replace it with --force"
        )


def _next(output: Path, pretrained: str | None) -> str:
    """The command that exports what was written."""
    weights = ["--pretrained", pretrained] if pretrained and Path(pretrained).is_file() else []
    bundle = str(output.with_suffix("")) + "-bundle"
    command = ["vlp", "export", str(output), "--engine", "onnx", "--output", bundle, *weights]
    return shlex.join(command)
