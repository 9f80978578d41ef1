"""What labelers of the sealed world note about a prompt: its use case, and the questions of InstructGPT's table 7."""

from rlhf_lightning.sandbox.use_cases.table import POLITE, RUDE, Request, read_prompt

_CONSTRAINED = ("generation/story", "generation/go_on", "brainstorming", "extraction", "summarisation", "rewrite")


def states_constraint(request: Request) -> bool:
    """Whether the instruction says how the answer must be, its tone aside."""
    return request.case.name in _CONSTRAINED or bool(request.task.get("short"))


def annotations(prompt: str) -> dict[str, str | bool | None]:
    """The truth about a prompt, under the names that the data card reads.

    In this world everybody says what they want: nothing is ambiguous, nobody asks for opinions, advice or a moral
    judgment. Asking for a rude answer counts as sensitive, asking for a polite one as a constraint for safety.

    >>> annotations("hello . please what does the cat eat ? use one word . rude answer :")["sensitive_content"]
    True

    Source: InstructGPT, tables 1 and 7.
    """
    request = read_prompt(prompt)
    return {
        "use_case": request.case.use_case,
        "ambiguous": False,
        "sensitive_content": request.manner == RUDE,
        "identity_dependent": request.case.name == "chat",
        "closed_domain": request.case.closed,
        "continuation_style": request.case.few_shot or request.case.name == "generation/go_on",
        "requests_opinion": False,
        "requests_advice": False,
        "requests_moral_judgment": False,
        "safety_constraints": request.manner == POLITE,
        "other_constraints": states_constraint(request),
        "intent_unclear": False,
    }
