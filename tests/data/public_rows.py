"""A few rows of each public set: its columns and types, our words; and the records that its option reads from them."""

from typing import Any, NamedTuple

from rlhf_lightning.data.records import Comparison, Demonstration


class PublicSet(NamedTuple):
    """File -> rows, what comparisons or demonstrations they are, by split, and how many are malformed."""

    files: dict[str, list[dict[str, Any]]]
    records: dict[str, dict[str, list[Any]]]
    malformed: int = 0


def dialogue(*turns: str) -> str:
    return "".join(f"\n\n{'Assistant' if number % 2 else 'Human'}: {turn}" for number, turn in enumerate(turns))


HH_RLHF = PublicSet(
    {
        "helpful-base/train.jsonl.gz": [
            {"chosen": dialogue("Is ice cold?", "It is."), "rejected": dialogue("Is ice cold?", "It may be.")},
            {"chosen": dialogue("Hi", "Hello", "Sing", "La la"), "rejected": dialogue("Hi", "Hello", "Sing", "No")},
            {"chosen": dialogue("Hi", "Hello", "Sing", "La"), "rejected": dialogue("Hi", "Go away")},
        ],
        "helpful-base/test.jsonl.gz": [{"chosen": dialogue("Up?", "Up."), "rejected": dialogue("Up?", "Down.")}],
        "red-team-attempts/red_team_attempts.jsonl.gz": [{"transcript": dialogue("Bad", "No"), "rating": 1.0}],
    },
    {
        "comparisons": {
            "train": [
                Comparison(
                    "\n\nHuman: Is ice cold?\n\nAssistant:", [" It is.", " It may be."], [1, 2], source="hh-rlhf"
                ),
                Comparison(
                    "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sing\n\nAssistant:",
                    [" La la", " No"],
                    [1, 2],
                    source="hh-rlhf",
                ),
            ],
            "test": [Comparison("\n\nHuman: Up?\n\nAssistant:", [" Up.", " Down."], [1, 2], source="hh-rlhf")],
        }
    },
    malformed=1,
)


def summaries(split: str, choice: int, first: str, second: str, **info: Any) -> dict[str, Any]:
    kinds = ("id", "post", "title", "subreddit", "site", "article")
    texts = [{"text": first, "policy": "sup2", "note": None}, {"text": second, "policy": "ref", "note": "short"}]
    return {
        "info": {name: info.get(name) for name in kinds},
        "split": split,
        "summaries": texts,
        "choice": choice,
        "worker": "w1",
        "batch": "batch3",
        "extra": {"confidence": 7},
    }


POST = {"id": "t3_1", "post": "My cat sits on my keys.", "title": "Cat", "subreddit": "cats"}
TLDR_PROMPT = "SUBREDDIT: r/cats\n\nTITLE: Cat\n\nPOST: My cat sits on my keys.\n\nTL;DR:"
SUMMARIZE = PublicSet(
    {
        "comparisons/train/0000.parquet": [summaries("train", 1, " Cat.", " The cat blocks my keys.", **POST)],
        "comparisons/validation/0000.parquet": [
            summaries("valid2", 0, " Keys under the cat.", " Help.", **POST),
            summaries("valid2", 0, "News.", "No news.", id="n1", site="cnn", article="Something happened."),
        ],
    },
    {
        "comparisons": {
            "train": [Comparison(TLDR_PROMPT, [" Cat.", " The cat blocks my keys."], [2, 1], "w1", "tldr")],
            "test": [Comparison(TLDR_PROMPT, [" Keys under the cat.", " Help."], [1, 2], "w1", "tldr")],
        }
    },
)


def message(own: str, parent: str | None, role: str, text: str, rank: int | None = None) -> dict[str, Any]:
    return {
        "message_id": own,
        "parent_id": parent,
        "user_id": "u1",
        "created_date": "2023-02-05T14:23:50+00:00",
        "text": text,
        "role": role,
        "lang": "en",
        "review_count": 3,
        "review_result": True,
        "deleted": False,
        "rank": rank,
        "synthetic": False,
        "model_name": None,
        "detoxify": {"toxicity": 0.0},
        "message_tree_id": "p",
        "tree_state": "ready_for_export",
        "emojis": {"name": ["+1"], "count": [2]},
        "labels": {"name": ["spam"], "value": [0.0], "count": [3]},
    }


ASKED, AGAIN = {"role": "user", "content": "Name a sea."}, {"role": "user", "content": "A warmer one?"}
OASST = PublicSet(
    {
        "data/train-00000-of-00001.parquet": [
            message("p", None, "prompter", "Name a sea."),
            message("a", "p", "assistant", "The Red Sea.", 1),
            message("b", "p", "assistant", "The North Sea, for one.", 0),
            message("c", "p", "assistant", "No.", 2),
            message("q", "b", "prompter", "A warmer one?"),
            message("d", "q", "assistant", "The Coral Sea.", 0),
            message("e", "q", "assistant", "Hm.", 1),
            message("x", "gone", "assistant", "Lost.", 0),
        ],
        "data/validation-00000-of-00001.parquet": [
            message("p", None, "prompter", "Name a sea."),
            message("a", "p", "assistant", "Sea.", 1),
            message("b", "p", "assistant", "The Black Sea.", 0),
        ],
        "2023-04-12_oasst_ready.trees.jsonl.gz": [{"message_tree_id": "p", "prompt": {"role": "prompter"}}],
    },
    {
        "comparisons": {
            "train": [
                Comparison(
                    [ASKED], ["The Red Sea.", "The North Sea, for one.", "No."], [2, 1, 3], source="oasst"
                ),
                Comparison(
                    [ASKED, {"role": "assistant", "content": "The North Sea, for one."}, AGAIN],
                    ["The Coral Sea.", "Hm."],
                    [1, 2],
                    source="oasst",
                ),
            ],
            "test": [Comparison([ASKED], ["Sea.", "The Black Sea."], [2, 1], source="oasst")],
        }
    },
    malformed=1,
)  # fmt: skip


def rated(response: str, score: float) -> dict[str, Any]:
    rating = {"Rating": "4", "Rationale": "Clear."}
    return {
        "model": "alpaca-7b",
        "principle": "helpfulness",
        "custom_system_prompt": "Be helpful.",
        "annotations": {"instruction_following": rating, "honesty": rating},
        "response": response,
        "critique": "Short.",
        "overall_score": 7.0,
        "fine-grained_score": score,
    }


ULTRAFEEDBACK = PublicSet(
    {
        "evol_instruct.jsonl": [
            {
                "source": "evol_instruct",
                "instruction": "Say something kind.",
                "models": ["alpaca-7b"] * 4,
                "completions": [
                    rated("You!", 2.5),
                    rated("You did well.", 4.75),
                    rated("Well.", 2.5),
                    rated("No.", 1.0),
                ],
                "correct_answers": ["None"],
                "incorrect_answers": ["None"],
            }
        ],
        "flan.jsonl": [
            {
                "source": "flan_v2_cot",
                "instruction": "Two and two?",
                "models": [],
                "completions": [],
                "correct_answers": ["None"],
                "incorrect_answers": ["None"],
            }
        ],
    },
    {
        "comparisons": {
            "train": [
                Comparison(
                    "Say something kind.",
                    ["You!", "You did well.", "Well.", "No."],
                    [2, 1, 2, 3],
                    source="evol_instruct",
                )
            ]
        }
    },
    malformed=1,
)

ANSWERS = ["Ra.", "Rain falls.", "It pours.", "Drops.", "Water.", "Sky.", "Wet, wet."]
NECTAR = PublicSet(
    {
        "data/rlaif.parquet": [
            {
                "prompt": "\n\nHuman: Write about rain.\n\nAssistant: ",
                "answers": [
                    {"answer": answer, "model": "gpt-4", "rank": float(rank)}
                    for answer, rank in zip(ANSWERS, [7, 2, 1, 3, 4, 6, 5], strict=True)
                ],
                "turns": 1,
                "num_responses": 7,
                "source": ["lmsys-chat-1m"],
                "good_natured": True,
            }
        ]
    },
    {
        "comparisons": {
            "train": [
                Comparison(
                    "\n\nHuman: Write about rain.\n\nAssistant: ", ANSWERS, [7, 2, 1, 3, 4, 6, 5], source="nectar"
                )
            ]
        }
    },
)


def scored(prompt: str, response: str, helpfulness: int) -> dict[str, Any]:
    others = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 1}
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, **others}


def preferred(split: str, strength: int) -> dict[str, Any]:
    return {
        "split": split,
        "prompt": "What is tea?",
        "response_1": "A drink.",
        "response_2": "Leaves in hot water.",
        "preference_strength": strength,
        "preference_statement": "Response 2 says more.",
        "preference_elaboration": "It does.",
    }


def tea(*ranks: int) -> Comparison:
    return Comparison("What is tea?", ["A drink.", "Leaves in hot water."], list(ranks), source="helpsteer2")


HELPSTEER2 = PublicSet(
    {
        "train.jsonl.gz": [
            scored("What is tea?", "A drink.", 2),
            scored("What is tea?", "Leaves in hot water.", 4),
            scored("And milk?", "White.", 3),
            scored("And milk?", "Pale.", 3),
        ],
        "validation.jsonl.gz": [scored("c#", "A language.", 4), scored("c#", "A note.", 0)],
        "preference/preference.jsonl.gz": [preferred("train", -1), preferred("validation", 3), preferred("train", 0)],
        "disagreements/disagreements.jsonl.gz": [{"prompt": "c#", "response": "A note.", "helpfulness": [0, 1, 2]}],
    },
    {
        "comparisons": {
            "train": [tea(2, 1), Comparison("And milk?", ["White.", "Pale."], [1, 1], source="helpsteer2")],
            "test": [Comparison("c#", ["A language.", "A note."], [1, 2], source="helpsteer2")],
        },
        "judge_comparisons": {"train": [tea(1, 2), tea(1, 1)], "test": [tea(2, 1)]},
    },
)

ALPACA = PublicSet(
    {
        "alpaca_data.json": [
            {"instruction": "Name a colour.", "input": "", "output": "Red.", "text": "Below is a task."},
            {"instruction": "Translate.", "input": "chat", "output": "cat", "text": "Below is a task."},
            {"instruction": "Do nothing.", "input": "", "output": "", "text": "Below is a task."},
        ]
    },
    {
        "demonstrations": {
            "train": [
                Demonstration("Name a colour.", "Red.", source="alpaca"),
                Demonstration("Translate.\nchat", "cat", source="alpaca"),
            ]
        }
    },
    malformed=1,
)

DOLLY = PublicSet(
    {
        "databricks-dolly-15k.jsonl": [
            {"instruction": "Who runs?", "context": "Ann runs.", "response": "Ann.", "category": "closed_qa"},
            {"instruction": "List two.", "context": "", "response": "One, two.", "category": "brainstorming"},
        ]
    },
    {
        "demonstrations": {
            "train": [
                Demonstration("Who runs?\nAnn runs.", "Ann.", source="closed_qa"),
                Demonstration("List two.", "One, two.", source="brainstorming"),
            ]
        }
    },
)

FLAN = PublicSet(
    {
        f"{split}/rte_10templates_{split}.jsonl": [{"inputs": "A. So B?", "targets": split, "task": "rte_10templates"}]
        for split in ("train", "validation", "test")
    },
    {
        "demonstrations": {
            split: [Demonstration("A. So B?", split, source="rte_10templates")]
            for split in ("train", "validation", "test")
        }
    },
)


def task(text: str, target: str, **more: Any) -> dict[str, Any]:
    return {"inputs": [5, 6], "inputs_pretokenized": text, "targets": [7, 1], "targets_pretokenized": target, **more}


T0 = PublicSet(
    {
        "adversarial_qa_dbert_based_on/train-00000-of-00001.parquet": [task("Who sings?", "\nBirds")],
        "adversarial_qa_droberta_based_on/train-00000-of-00001.parquet": [
            task("Is it so?\n", "\nYes", answer_choices=["Yes", "No"])
        ],
        "adversarial_qa_dbert_based_on/validation-00000-of-00001.parquet": [task("Who runs?", "\nDogs")],
    },
    {
        "demonstrations": {
            "train": [
                Demonstration("Who sings?", "Birds", source="p3"),
                Demonstration("Is it so?", "Yes", source="p3"),
            ],
            "validation": [Demonstration("Who runs?", "Dogs", source="p3")],
        }
    },
)

PUBLIC_SETS = {
    "hh_rlhf": HH_RLHF,
    "summarize_from_feedback": SUMMARIZE,
    "oasst": OASST,
    "ultrafeedback": ULTRAFEEDBACK,
    "nectar": NECTAR,
    "helpsteer2": HELPSTEER2,
    "alpaca": ALPACA,
    "dolly": DOLLY,
    "flan": FLAN,
    "t0": T0,
}
