"""The acceleration of the iterations that solve a step of PWHF."""

import torch

from pwgf.schemes._mixing import Mixing


def test_a_linear_equation_is_solved_in_as_many_secants_as_it_has_unknowns():
    """f(w) = b − Aw with A far from I: the plain iteration w ← w + f(w) diverges; its secants are exact."""
    a = torch.tensor([[3.0, 0.5, 0.0], [0.2, 0.1, 0.4], [0.0, -0.3, 1.5]], dtype=torch.float64)
    b = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    mixing, w, plain = Mixing(), torch.zeros_like(b), torch.zeros_like(b)
    for _ in range(5):
        change = b - a @ w
        w = w + mixing(change, 2 * change[:, None])
        plain = plain + b - a @ plain
    assert float((a @ w - b).abs().max()) < 1e-8
    assert float((a @ plain - b).abs().max()) > 1


def test_equal_iterates_do_no_harm():
    mixing, change = Mixing(), torch.ones(2, dtype=torch.float64)
    assert torch.equal(mixing(change, change[:, None]), change)
    assert bool(torch.isfinite(mixing(change, change[:, None])).all())
    zero = 0 * change
    assert torch.equal(mixing(zero, zero[:, None]), zero)
