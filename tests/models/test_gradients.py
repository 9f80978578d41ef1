import torch

from rlhf_lightning.models.gradients import measured_gradient


def test_measured_gradient_has_norms_and_cosine():
    module = torch.nn.Linear(3, 2)
    first, second = [[torch.randn_like(p) for p in module.parameters()] for _ in range(2)]
    for parameter, gradient in zip(module.parameters(), first, strict=True):
        parameter.grad = gradient.clone()
    with measured_gradient(module, ("before", "added", "cosine")) as figures:
        for parameter, gradient in zip(module.parameters(), second, strict=True):
            parameter.grad = gradient + (0 if parameter.grad is None else parameter.grad)
    before, added = (torch.cat([part.flatten() for part in parts]) for parts in (first, second))
    torch.testing.assert_close(figures["before"], before.norm())
    torch.testing.assert_close(figures["added"], added.norm())
    torch.testing.assert_close(figures["cosine"], torch.cosine_similarity(before, added, dim=0))
