"""Rewards that are rules: `ppo.reward=rules:fifteen_words` where this file lies in the working directory."""


def fifteen_words(responses: list[str]) -> list[float]:
    """1 for fifteen words, less by a fifteenth for each word more or fewer, and a half for a full stop at the end."""
    lengths = [len(response.split()) for response in responses]
    stops = [response.rstrip().endswith(".") for response in responses]
    return [max(0.0, 1 - abs(length - 15) / 15) + 0.5 * stop for length, stop in zip(lengths, stops, strict=True)]
