"""Personal data by Microsoft Presidio, on top of what the regular expressions find."""

from typing import Any

from rlhf_lightning.arguments import Fraction, checked
from rlhf_lightning.curation.personal import Finding
from rlhf_lightning.runs.extras import needs_extra

NOT_PERSONAL = frozenset(
    {"DATE_TIME", "EMAIL", "EMAIL_ADDRESS", "IP_ADDRESS", "LOCATION", "NRP", "ORGANIZATION", "URL", "UUID"}
)
"""Of what Presidio knows: too common in harmless prompts to drop them for it, or found already by ``find_personal``."""


class PresidioFinder:
    """Finds what the recognizers of Presidio know: driving licences, passports, health numbers, wallets, ...

    Without a model it works on the words alone. Then it finds **no names** and does not use the words around a number,
    so that it misses all that only these would make likely. Nothing is downloaded.

    Args:
        model: Name or folder of an installed spaCy model, such as ``en_core_web_lg``, which also finds names of people;
            None takes none.
        language: Language of the texts, which must be that of the model.
        least_score: Least confidence of a finding, between 0 and 1.

    Raises:
        ImportError: When the extra ``curation`` is not installed.
        OSError: When the model is not installed.
    """

    @checked
    def __init__(self, model: str | None = None, language: str = "en", least_score: Fraction = 0.5) -> None:
        with needs_extra("PresidioFinder", "curation"):
            from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
            from presidio_analyzer.nlp_engine import SpacyNlpEngine
            from spacy import blank, load

        engine: Any = SpacyNlpEngine([{"lang_code": language, "model_name": model or "blank"}])
        engine.nlp = {language: load(model) if model else blank(language)}
        registry = RecognizerRegistry(supported_languages=[language])
        registry.load_predefined_recognizers([language], engine)
        self._analyzer = AnalyzerEngine(
            registry=registry, nlp_engine=engine, supported_languages=[language], default_score_threshold=least_score
        )
        self.language = language
        self.entities = sorted(set(self._analyzer.get_supported_entities(language)) - NOT_PERSONAL)

    def __call__(self, text: str) -> list[Finding]:
        """What was found."""
        found = self._analyzer.analyze(text, self.language, entities=self.entities)
        return [Finding(result.entity_type.lower(), result.start, result.end) for result in found]
