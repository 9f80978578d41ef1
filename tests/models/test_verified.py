"""What is known of ways that share work, where the weights are sharded over processes."""

import pytest
from torch import nn

from rlhf_lightning.models import verified
from rlhf_lightning.models.verified import Verified


def test_a_process_whose_rows_cannot_tell_joins_the_others_and_goes_by_what_they_found(monkeypatch):
    gathered, joined = [], []
    monkeypatch.setattr(verified, "is_sharded", lambda _: True)
    monkeypatch.setattr(verified, "call_unsharded", lambda function, model: joined.append(1) or function(model))

    def of_two_processes(own):
        gathered.append(own)
        return [own, ({"tree": 9, "cached": 7}, {"tree": "it is wrong"})]

    monkeypatch.setattr(verified, "all_gather_objects", of_two_processes)
    known = Verified("a feature", "something else is done")
    with pytest.warns(UserWarning, match=r"does not support a feature \(tree: it is wrong\)"):
        known.verify(nn.Linear(1, 1), {}, lambda _: pytest.fail("nothing to try"))
    assert gathered == [({}, {})]
    assert known.tokens == {"tree": 9, "cached": 7}
    known.verify(nn.Linear(1, 1), {"cached": 100}, lambda _: pytest.fail("it was tried once"))
    assert joined == [1]
