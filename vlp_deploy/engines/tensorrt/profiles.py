"""Which input sizes a TensorRT engine is built for: ranges of the sizes that a graph leaves open.

The symbols are those of the graphs' inputs: B images, K classes, S tokens of a class's suffix,
N text rows, L tokens of a row, m prompt tokens.
"""

from collections.abc import Collection, Mapping, Sequence

from vlp_deploy.errors import EngineError

SizeRange = tuple[int, int, int]  # least, what is tuned for, most
Profile = dict[str, SizeRange]  # by symbol

# One range from 1 to 128 would be tuned for one of its sizes and serve the others badly.
BATCHES: tuple[SizeRange, ...] = ((1, 1, 1), (2, 8, 8), (9, 32, 32), (33, 128, 128))
MOST_CLASSES = 32_768  # ImageNet-21k has 21,841
MOST_ROWS = 256  # text rows of a run: `classes.bank.ROWS_A_RUN`
MOST_EMBEDDED = 1_024  # classes of one run where each brings its tokens
ITEMS = ("B", "N", "K")  # of a graph's symbols the first one counts its items


def default_profiles(
    symbols: Collection[str], *, classes: int = 100, context_length: int = 77
) -> tuple[Profile, ...]:
    """Profiles of a graph with these symbols, the smallest batches first.

    `classes` is the number tuned for. Raises EngineError for a symbol that is not known.
    """
    if "S" in symbols:  # every image with every class goes through the text tower
        suffix = (1, 8, context_length)
        return (
            {"B": (1, 1, 1), "K": (1, min(classes, 2048), 2048), "S": suffix},
            {"B": (2, 8, 16), "K": (1, min(classes, 128), 128), "S": suffix},
        )
    most = MOST_EMBEDDED if "L" in symbols else MOST_CLASSES
    ranges: dict[str, SizeRange] = {
        "K": (1, min(classes, most), most),
        "N": (1, 64, MOST_ROWS),
        "L": (1, min(16, context_length), context_length),
        "m": (0, min(4, context_length), context_length),
    }
    if unknown := sorted(set(symbols) - ranges.keys() - {"B"}):
        raise EngineError(
            f"the graph leaves the size {unknown[0]!r} open, for which no range is known. Known "
            f"are {', '.join(['B', 'S', *ranges])}"
        )
    others = {symbol: ranges[symbol] for symbol in sorted(symbols) if symbol != "B"}
    if "B" not in symbols:
        return (others,)
    return tuple({"B": batch, **others} for batch in BATCHES)


def item_symbol(symbols: Collection[str]) -> str | None:
    """What counts a graph's items, which may be run in parts; None where their number is fixed."""
    return next((symbol for symbol in ITEMS if symbol in symbols), None)


def fitting(profiles: Sequence[Profile], sizes: Mapping[str, int]) -> int | None:
    """The first profile whose ranges hold these sizes."""
    for index, profile in enumerate(profiles):
        if all(_holds(profile[symbol], size) for symbol, size in sizes.items()):
            return index
    return None


def most_items(profiles: Sequence[Profile], sizes: Mapping[str, int], item: str) -> int:
    """How many items one run can take, the other sizes given. Raises EngineError if none."""
    others = {symbol: size for symbol, size in sizes.items() if symbol != item}
    able = [
        profile[item][2]
        for profile in profiles
        if all(_holds(profile[symbol], size) for symbol, size in others.items())
    ]
    if not able:
        raise EngineError(
            f"the engine was not built for {_listed(others)}. It takes "
            f"{'; or '.join(_listed_ranges(profile) for profile in profiles)}"
        )
    return max(able)


def _holds(bounds: SizeRange, size: int) -> bool:
    return bounds[0] <= size <= bounds[2]


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{symbol} = {size}" for symbol, size in sizes.items())


def _listed_ranges(ranges: Profile) -> str:
    return ", ".join(f"{symbol} {low} to {high}" for symbol, (low, _, high) in ranges.items())
