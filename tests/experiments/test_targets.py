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


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"ou_target\(dim=13, index=0\)"):
        targets.ou_target(13, 0)
    with pytest.raises(ValueError, match=r"published\('ICNN_jko', 2, 0.3\): nothing published"):
        targets.published("ICNN_jko", 2, 0.3)
    with pytest.raises(ValueError, match=r"published_seconds\('nobody', 2\): nothing published"):
        targets.published_seconds("nobody", 2)
