"""What is asked for is measured, the figure to trust first."""

import pytest
import torch

from lab.errors import Refused
from lab.evaluation.likeness import Metric, likeness

pytest.importorskip("torch_fidelity")


def names(asked: tuple[Metric, ...], extractor: str, n: int = 200, d: int = 8) -> dict[str, list[str]]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, d, generator=generator) for _ in range(2))
    return {
        section: [figure.name.removesuffix(f" ({extractor})") for figure in figures]
        for section, figures in likeness(asked, a, b, extractor).items()
    }


def test_published_figures_of_inception() -> None:
    assert names(("fid", "kid"), "inception-v3") == {"distances": ["KID", "FID", "FID-infinity"]}
    assert names(("kid",), "inception-v3") == {"distances": ["KID"]}
    assert names(("fid",), "inception-v3", n=80) == {"distances": ["FID"]}  # too few for the line


def test_other_features_go_by_their_own_names() -> None:
    assert names(("fd_dinov2",), "dinov2-vit-l14") == {"distances": ["FD-DINOv2", "FD-DINOv2-infinity"]}
    assert names(("fd_dinov2",), "dinov2-16x2-14", n=80) == {"distances": ["frechet_distance"]}
    assert names(("cmmd",), "clip-vit-l14-336") == {"distances": ["CMMD"]}
    assert names(("cmmd",), "clip-8x1-4-32")["distances"][0].startswith("kernel distance (rbf, median bandwidth")


def test_everything_without_a_download() -> None:
    assert names(("distances", "precision_recall", "diversity"), "x") == {
        "distances": ["kernel_distance", "frechet_distance", "frechet_distance-infinity"],
        "support": ["precision", "recall", "density", "coverage"],
        "vendi": ["vendi_score"],
    }
    assert names((), "x") == {}


def test_no_data_is_an_error() -> None:
    for metric in ("distances", "cmmd", "precision_recall", "diversity"):
        with pytest.raises(Refused, match="got 0"):
            likeness((metric,), torch.empty(0, 4), torch.ones(30, 4), "x")  # type: ignore[arg-type]
