"""`vlp classify`: pictures from files, archives and tables to a line of answer each, torch-free."""

from pathlib import Path

from vlp_deploy.bulk.reading import READ_THREADS
from vlp_deploy.bulk.request import Request, Source, Targets
from vlp_deploy.commands import classify_options as option
from vlp_deploy.commands.classify_options import Format
from vlp_deploy.commands.classify_run import run_request
from vlp_deploy.images.limits import MAX_BYTES, MAX_PIXELS, SECONDS, Limits
from vlp_deploy.question import BATCH_SIZE, Question

MEGABYTE = 1_000_000


def classify(
    images: option.Images,
    classes: option.Classes = None,
    bundle: option.Bundle = None,
    top_k: option.TopK = 5,
    reject: option.Reject = False,
    reject_below: option.RejectBelow = None,
    multi_label: option.MultiLabel = False,
    format: option.OutputFormat = None,
    output: option.Output = None,
    force: option.Force = False,
    embeddings: option.Embeddings = None,
    copy_to: option.CopyTo = None,
    symlink: option.Symlink = None,
    html: option.Html = None,
    watch: option.Watch = False,
    exact_decode: option.ExactDecode = False,
    engine: option.Engine = "auto",
    device: option.Device = "cpu",
    threads: option.Threads = 0,
    read_threads: option.ReadThreads = READ_THREADS,
    batch_size: option.BatchSize = BATCH_SIZE,
    ray: option.Ray = None,
    template: option.Template = None,
    max_pixels: option.MaxPixels = MAX_PIXELS,
    max_memory: option.MaxMemory = MAX_BYTES // MEGABYTE,
    timeout: option.Timeout = SECONDS,
) -> int:
    """Classify images and give one line for each, in the order they were named.

    In folders every file counts that is named like an image or begins like one. Results go to
    stdout, the rest to stderr. Exit code 1 if an input could not be classified.
    """
    limits = Limits(max_pixels=max_pixels, max_bytes=max_memory * MEGABYTE, seconds=timeout or None)
    request = Request(
        images=tuple(images),
        source=Source(
            bundle=bundle,
            engine=engine,
            device=device,
            threads=threads or None,
            classes=classes,
            templates=tuple(template) if template else None,
        ),
        question=Question(
            top_k=top_k,
            batch_size=batch_size,
            exact_decode=exact_decode,
            limits=limits,
            multi_label=multi_label,
            with_embeddings=embeddings is not None,
        ),
        targets=Targets(
            format=_format(format, output),
            output=output,
            embeddings=embeddings,
            copy_to=copy_to,
            symlink=symlink,
            html=html,
            force=force,
        ),
        reject=reject,
        reject_below=reject_below,
        read_threads=read_threads,
        watch=watch,
        ray=ray,
    )
    return run_request(request)


def _format(format: Format | None, output: Path | None) -> Format:
    """What was asked for, else what the output's name says, else a table."""
    by_name = output.suffix.removeprefix(".").lower() if output else ""
    return format or (Format(by_name) if by_name in set(Format) else Format.TABLE)
