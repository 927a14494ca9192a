"""Words of messages, for the stages and the commands."""


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural where needed."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{number:,} {noun[:-1]}ies"
    return f"{number:,} {noun}{'es' if noun.endswith(('ch', 's', 'x')) else 's'}"


def verb(number: int, singular: str, plural: str) -> str:
    """The form of a verb that goes with a number of things."""
    return singular if number == 1 else plural
