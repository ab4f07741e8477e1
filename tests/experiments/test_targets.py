"""The shipped targets and published figures of the JKO-ICNN study are whole and readable."""

import numpy as np
import pytest

targets = pytest.importorskip("experiments.targets", reason="the experiments are not part of this installation")


@pytest.mark.parametrize("dim", range(1, 13))
def test_targets_are_gaussians(dim):
    for index in range(15):
        cov, mean = targets.ou_target(dim, index)
        assert cov.shape == (dim, dim)
        assert mean.shape == (dim,)
        assert np.allclose(cov, cov.T)
        assert np.linalg.eigvalsh(cov)[0] > 0


def test_published_figures_are_those_of_the_study():
    """Means at t = .9 of JKO-ICNN and of 50 000 particles, and seconds, as the study states them (arXiv 2106.00736)."""
    for dim, jko, particles, seconds in ((2, 0.00384, 0.0066, 526), (6, 0.01334, 0.504, 664), (12, 0.01817, 3.83, 821)):
        assert np.mean(targets.published("ICNN_jko", dim, 0.9)) == pytest.approx(jko, rel=2e-3)
        assert np.mean(targets.published("EM_sim_50000", dim, 0.9)) == pytest.approx(particles, rel=5e-3)
        assert targets.published_seconds("ICNN_jko", dim) == pytest.approx(seconds, abs=0.5)
    assert all(
        len(targets.published(method, dim, t)) == 15
        for method in targets.methods()
        for dim in (1, 12)
        for t in (0.1, 0.5, 0.9, 1.0)
    )


def test_mixtures_have_the_centres_of_the_study():
    """The first three coordinates of the first target in d = 12, as the study's own code draws them."""
    centres = targets.mixture_centres(12, 0)
    assert centres.shape == (10, 12)
    assert np.allclose(centres[0, :3], [2.7247, 1.0033, -4.7308], atol=5e-5)
    for dim, count in ((2, 5), (4, 6), (6, 7), (8, 8), (10, 9)):
        drawn = [targets.mixture_centres(dim, k) for k in range(5)]
        assert {tuple(x.shape) for x in drawn} == {(count, dim)}
        assert all(x.abs().max() <= 5 for x in drawn)
        assert len({float(x[0, 0]) for x in drawn}) == 5


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"ou_target\(dim=13, index=0\)"):
        targets.ou_target(13, 0)
    with pytest.raises(ValueError, match=r"published\('ICNN_jko', 2, 0.3\): nothing published"):
        targets.published("ICNN_jko", 2, 0.3)
    with pytest.raises(ValueError, match=r"published_seconds\('nobody', 2\): nothing published"):
        targets.published_seconds("nobody", 2)
    with pytest.raises(ValueError, match=r"mixture_published\(3\): the study has mixtures in dimensions 2, 4, 6"):
        targets.mixture_published(3)
