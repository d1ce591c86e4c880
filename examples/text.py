"""English text that comes with Python: the language reference that `help()` shows.

It has about 465,000 characters; their number and the vocabulary depend on the version of Python.
"""

import pydoc_data.topics
from typing import NamedTuple

import numpy as np

# The end of the text, which no network is trained on.
HELD_OUT = 0.1


class Text(NamedTuple):
    """A text as sequences of tokens, one for each character.

    Attributes:
        characters: what the tokens 0, 1, ... stand for.
        train: sequences for training, each of one token more than the context, shape (n, length).
        validation: sequences from the end of the text, of the same length.
    """

    characters: str
    train: np.ndarray
    validation: np.ndarray

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, which may only have characters of this one.

        Example:
            >>> from examples.text import load_text
            >>> text = load_text(context=64)
            >>> text.decode(text.encode("yield"))
            'yield'
        """
        unknown = sorted(set(text) - set(self.characters))
        if unknown:
            raise ValueError(f"encode: text must have only characters of the corpus, not {unknown}")
        return np.array([self.characters.index(character) for character in text], np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of a sequence of tokens."""
        return "".join(self.characters[token] for token in tokens)


def load_text(context: int) -> Text:
    """The text, with its last tenth for validation.

    Args:
        context: how many tokens a network sees at once. Sequences are longer by one: each token is
            to be predicted from those before it.
    """
    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))
    places = {character: place for place, character in enumerate(sorted(set(text)))}
    tokens = np.array([places[character] for character in text], np.int32)
    end = round(len(tokens) * (1 - HELD_OUT))
    return Text(
        "".join(places), *(_sequences(part, context) for part in (tokens[:end], tokens[end:]))
    )


def _sequences(tokens: np.ndarray, context: int) -> np.ndarray:
    """Consecutive sequences; the last token of each is the first of the next one."""
    starts = np.arange(0, len(tokens) - context, context)
    return tokens[starts[:, None] + np.arange(context + 1)[None]]
