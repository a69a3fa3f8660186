"""K-means of intensities against scikit-learn, and its laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from regenv.ops.kmeans import kmeans


@pytest.mark.parametrize("clusters", [2, 3, 5])
def test_kmeans_agrees_with_scikit_learn(clusters: int, rng: np.random.Generator) -> None:
    """Three bumps of intensities: 99 % of the voxels in scikit-learn's clusters, ordered by their centroids."""
    levels = np.linspace(0.1, 0.9, clusters)
    image = np.clip(rng.choice(levels, (2, 1, 60, 50)) + rng.normal(0, 0.15 / clusters, (2, 1, 60, 50)), 0, 1)
    labels, centroids = kmeans(torch.from_numpy(image.astype(np.float32)), clusters)
    for lane in range(2):
        oracle = KMeans(clusters, n_init=10, random_state=0).fit(image[lane].reshape(-1, 1))
        order = np.argsort(oracle.cluster_centers_[:, 0])
        rank = np.empty(clusters, dtype=int)
        rank[order] = np.arange(1, clusters + 1)
        agree = (labels[lane].flatten().numpy() == rank[oracle.labels_]).mean()
        assert agree > 0.99
        np.testing.assert_allclose(centroids[lane], oracle.cluster_centers_[order, 0], atol=0.01)


def test_kmeans_of_a_lane_depends_on_no_other_and_takes_flat_images() -> None:
    image = torch.rand(3, 1, 20, 20)
    image[1] = 0.3
    whole = kmeans(image)[0]
    for lane in range(3):
        assert torch.equal(whole[lane:lane + 1], kmeans(image[lane:lane + 1])[0])
    assert whole[1].unique().numel() == 1
    with pytest.raises(ValueError, match="clusters is 1"):
        kmeans(image, 1)
