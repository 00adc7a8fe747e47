"""The language of the Shapes world: statements to captions and back.

A caption is plain lower-case English whose only punctuation is a comma. A *phrasing* is a template; those in
``HELDOUT`` are never used in training and consist of words that the trained ones use. Statements with a relation have
their own phrasings.
"""

import re
from functools import lru_cache

from lab.data.shapes_scene import COLOURS, RELATIONS, SHAPES, SIZES, Noun, Statement
from lab.errors import Refused

NUMBERS = {2: "two", 3: "three", 4: "four"}
OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
PLURALS = {shape: "crosses" if shape == "cross" else shape + "s" for shape in SHAPES}

# {a}: the noun that the sentence is about; {b}: the other one; {nouns}: all; {is}, {sits}: agree with their subject.
RELATED = {
    "plain": "{a} {relation} {b}",
    "is": "{a} {is} {relation} {b}",
    "sits": "{a} {sits} {relation} {b}",
    "picture": "a picture of {a} {relation} {b}",
    "there": "there {is} {a} {relation} {b}",
    "see": "we see {a} {relation} {b}",
    "which": "{a} which {is} {relation} {b}",
    "in": "in the picture {a} {sits} {relation} {b}",
    "inverted": "{relation} {b} there {is} {a}",
    "inverted is": "{relation} {b} {is} {a}",
    "inverted see": "{relation} {b} we see {a}",
}
RELATED_HELDOUT = {
    "there which": "there {is} {a} which {sits} {relation} {b}",
    "in see": "in the picture we see {a} {relation} {b}",
    "inverted sits": "{relation} {b} {sits} {a}",
}
LISTED = {
    "plain": "{nouns}",
    "picture": "a picture of {nouns}",
    "there": "there {is} {nouns}",
    "see": "we see {nouns}",
    "in": "in the picture there {is} {nouns}",
}
LISTED_HELDOUT = {
    "in see": "in the picture we see {nouns}",
    "see picture": "we see a picture of {nouns}",
    "there picture": "there is a picture of {nouns}",
}
TRAINED = tuple(RELATED)  # names; LISTED uses a part of them
HELDOUT = tuple(dict.fromkeys([*RELATED_HELDOUT, *LISTED_HELDOUT]))


def phrasings(statement: Statement, *, heldout: bool = False) -> dict[str, str]:
    """The templates by name that can say a statement, trained or held out."""
    if statement.relation is None:
        return LISTED_HELDOUT if heldout else LISTED
    return RELATED_HELDOUT if heldout else RELATED


def say(statement: Statement, template: str) -> str:
    """Put a statement into words.

    Args:
        statement: its nouns differ in colour or shape.
        template: one of the values of ``phrasings(statement)``.

    Returns:
        The caption, as in "there is a red circle left of a blue square".
    """
    texts = [_noun(noun) for noun in statement.nouns]
    listed = texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + " and " + texts[-1]
    many = statement.nouns[0].count > 1
    verbs = {"is": "are", "sits": "sit"} if many else {"is": "is", "sits": "sits"}
    words = {"a": texts[0], "b": texts[-1], "nouns": listed, "relation": statement.relation or ""}
    return template.format(**words, **verbs)


def parse(caption: str) -> Statement:
    """Read what a caption states, in any phrasing of the world, held out ones included.

    Args:
        caption: a caption; case and spaces around it do not matter.

    Returns:
        The statement; ``parse(say(statement, template)) == statement`` for every template.

    Raises:
        Refused: the text is no caption of this world.
    """
    text = " ".join(caption.lower().split())
    for pattern in _patterns():
        match = pattern.fullmatch(text)
        if match is not None:
            found = match.groupdict()
            listed = found.get("nouns") or f"{found['a']} and {found['b']}"
            nouns = tuple(_read_noun(words) for words in re.split(r", | and ", listed))
            return Statement(nouns, found.get("relation"))
    raise Refused(f"{caption!r} is no caption of the Shapes world; one reads 'a red circle left of a blue square'")


@lru_cache(maxsize=65536)
def meaning(caption: str) -> str:
    """Give the same text for captions that state the same, whatever their phrasing and the order of their nouns.

    "a red circle left of a blue square" and "right of a blue square there is a red circle" are held to state what they
    do: a relation and its opposite with the nouns changed are one.

    Raises:
        Refused: the text is no caption of this world.
    """
    return sense(parse(caption))


def sense(statement: Statement) -> str:
    """Give the same text for statements that are true of the same scenes; see ``meaning``."""
    nouns, relation = sorted(statement.nouns, key=repr), statement.relation
    if relation is not None and nouns[0] != statement.nouns[0]:
        relation = OPPOSITES[relation]
    return repr((nouns, relation))


def every_word() -> list[str]:
    """Captions in which every word of the world occurs, held-out combinations and phrasings aside."""
    nouns = [Noun("red", shape, count) for shape in SHAPES for count in (1, 2)]
    nouns += [Noun(colour, "circle") for colour in COLOURS]
    nouns += [Noun("red", "circle", count, size) for count in NUMBERS for size in SIZES]
    captions = [say(Statement((noun,)), "{nouns}") for noun in nouns]
    for count in (1, 2):
        pair = (Noun("red", "circle", count), Noun("blue", "square"))
        captions += [say(Statement(pair), template) for template in LISTED.values()]
        captions += [say(Statement(pair, "above"), template) for template in RELATED.values()]
    captions += [say(Statement(pair, relation), "{a} {relation} {b}") for relation in RELATIONS]
    return [*captions, say(Statement((*pair, Noun("green", "ring"))), "{nouns}")]


def _noun(noun: Noun) -> str:
    """A noun phrase: "an orange ring", "two small red circles"."""
    words = [noun.size] if noun.size else []
    words += [noun.colour, noun.shape if noun.count == 1 else PLURALS[noun.shape]]
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([NUMBERS.get(noun.count, article), *words])


def _read_noun(text: str) -> Noun:
    """The inverse of ``_noun``."""
    number, *size, colour, shape = text.split()
    count = {word: n for n, word in NUMBERS.items()}.get(number, 1)
    singular = {plural: name for name, plural in PLURALS.items()}.get(shape, shape)
    return Noun(colour, singular, count, size[0] if size else None)


@lru_cache(maxsize=1)
def _patterns() -> tuple[re.Pattern[str], ...]:
    """One regular expression per template."""
    attributes = f"(?:(?:{'|'.join(SIZES)}) )?(?:{'|'.join(COLOURS)})"
    one = f"an? {attributes} (?:{'|'.join(SHAPES)})"
    many = f"(?:{'|'.join(NUMBERS.values())}) {attributes} (?:{'|'.join(PLURALS.values())})"
    noun = f"(?:{one}|{many})"
    parts = {
        "a": f"(?P<a>{noun})",
        "b": f"(?P<b>{noun})",
        "nouns": f"(?P<nouns>{noun}(?:, {noun})*(?: and {noun})?)",
        "relation": f"(?P<relation>{'|'.join(RELATIONS)})",
        "is": "(?:is|are)",
        "sits": "(?:sits?)",
    }
    templates = [*RELATED.values(), *RELATED_HELDOUT.values(), *LISTED.values(), *LISTED_HELDOUT.values()]
    return tuple(re.compile(template.format(**parts)) for template in templates)
