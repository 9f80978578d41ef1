"""Which language a prompt is in."""

from rlhf_lightning.arguments import Fraction, checked
from rlhf_lightning.runs.extras import needs_extra

UNSURE = "unsure"
"""Where a text is too short, or too much a mixture, to tell."""
CHARACTERS = 1000
"""The beginning that is looked at."""


class LanguageIdentifier:
    """Names the language of a text by its ISO 639-1 code, of the 97 that py3langid knows.

    Args:
        certainty: Least probability of the language; below it the text is ``unsure``.

    Raises:
        ImportError: When the extra ``curation`` is not installed.
    """

    @checked
    def __init__(self, certainty: Fraction = 0.5) -> None:
        with needs_extra("language identification", "curation"):
            from py3langid import langid

        self.certainty = certainty
        self._identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)

    def __call__(self, text: str) -> str:
        """The code of its language."""
        language, probability = self._identifier.classify(text[:CHARACTERS])
        return str(language) if probability >= self.certainty else UNSURE
