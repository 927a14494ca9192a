"""Words of messages, for the stages and the commands."""


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural where needed."""
    ending = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{ending}"
