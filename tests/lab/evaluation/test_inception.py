"""Inception-v3: torch-fidelity's own features from weights of a seed, both resize filters, and refused files."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lab.errors import Refused
from lab.evaluation import inception as module
from lab.evaluation.distances import frechet_value
from lab.evaluation.features import extract
from lab.evaluation.inception import Inception, find
from lab.evaluation.kernel_distances import kernel
from lab.evaluation.support import support
from tests.lab.evaluation.test_features import images

fidelity = pytest.importorskip("torch_fidelity")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the published one, of the numbers of a seed."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Empty(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object) -> None:  # type: ignore[override]
            pass

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = Empty("x", ["2048"], feature_extractor_weights_path=nothing).state_dict()
    for name, tensor in state.items():
        if name.endswith("conv.weight"):
            tensor.mul_(6**0.5)  # or the features of an untrained network vanish
    path = tmp_path_factory.mktemp("weights") / module.FILES[0]
    torch.save(state, path)
    return path


@pytest.fixture
def published(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(weights.read_bytes()).hexdigest())
    return weights


def theirs(path: Path, pictures: Tensor) -> Tensor:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    features: Tensor = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(path))(pictures)[0]
    return features


def test_features_are_torch_fidelitys(published: Path) -> None:
    x, before = images(2, 0), torch.get_rng_state()
    extractor = Inception(published)
    assert torch.equal(torch.get_rng_state(), before)
    assert (extractor.name, extractor.width) == ("inception-v3", 2048)
    assert extractor.resize == "bilinear as TensorFlow 1, 299"
    ours, expected = extractor(x), theirs(published, x)
    assert expected.std() > 0.01
    assert (ours - expected).norm() <= 1e-5 * expected.norm()
    assert (extractor(x[1:]) - ours[1:]).norm() <= 1e-5 * ours[1:].norm()


def test_the_clean_filter_is_clean_fids(published: Path) -> None:
    """Pillow's bicubic filter on each channel as floats, clamped."""
    rows, columns = np.mgrid[0:401, 0:401]
    circle = 255.0 * (np.hypot(rows - 200, columns - 130) < 100)
    picture = np.stack([circle, 255 * rows / 400, 255 * columns / 400]).round().astype(np.uint8)
    pillow = [
        np.array(Image.fromarray(c.astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)
        for c in picture
    ]
    x = torch.from_numpy(picture)[None]
    ours = module._resized(x, "clean")[0]
    torch.testing.assert_close(ours, torch.from_numpy(np.stack(pillow)), rtol=0, atol=1e-2)
    assert (module._resized(x, "tensorflow")[0] - ours).abs().max() > 20  # edges that alias
    clean = Inception(published, "clean")
    assert clean.resize == "bicubic, antialiased, clamped, 299"
    with torch.no_grad():
        torch.testing.assert_close(clean(x), clean.layers((ours[None] - 128) / 128))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_pipeline_equals_calculate_metrics(published: Path, tmp_path: Path) -> None:
    """From PNGs; the same pictures as JPEG are others, and so is their distance."""
    sets = {"a": images(8, 0), "b": 255 - images(8, 1) // 2}
    for name, pictures in sets.items():
        (tmp_path / name).mkdir()
        for number, picture in enumerate(pictures):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{number}.png")
    result = fidelity.calculate_metrics(
        input1=str(tmp_path / "a"), input2=str(tmp_path / "b"), feature_extractor_weights_path=str(published),
        fid=True, kid=True, prc=True, kid_subsets=1, kid_subset_size=8, cuda=False, cache=False, verbose=False,
        batch_size=4, samples_shuffle=False, save_cpu_ram=True,
    )  # fmt: skip
    extractor = Inception(published)
    first, second, lossy = (extract([pictures], extractor) for pictures in (*sets.values(), jpeg(sets["a"])))
    found = frechet_value(first.double().numpy(), second.double().numpy())
    assert found == pytest.approx(result["frechet_inception_distance"], rel=1e-5)
    distance = kernel(first, second, extractor.name)
    assert distance.name == "KID (inception-v3)"
    assert distance.value == pytest.approx(result["kernel_inception_distance_mean"], rel=1e-5)
    precision, recall, *_ = support(first, second, extractor.name)
    assert (precision.value, recall.value) == pytest.approx((result["precision"], result["recall"]))
    assert frechet_value(first.double().numpy(), lossy.double().numpy()) > 1e-3 * found


def jpeg(pictures: Tensor) -> Tensor:
    copies = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=95)
        copies.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return torch.stack(copies)


class Flag:
    """What a malicious pickle does when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_file_that_is_not_the_published_one_is_refused_and_never_opened(tmp_path: Path) -> None:
    flag, file = tmp_path / "flag", tmp_path / module.FILES[0]
    torch.save({"conv": Flag(flag)}, file)
    with pytest.raises(Refused, match="not the published file of weights") as caught:
        Inception(file)
    assert module.SHA256 in str(caught.value)
    assert not flag.exists()


def test_a_pickle_with_the_right_hash_runs_nothing_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flag, file = tmp_path / "flag", tmp_path / "weights.pth"
    torch.save({"conv": Flag(flag)}, file)
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    with pytest.raises(Exception, match="weights_only"):
        Inception(file)
    assert not flag.exists()


def test_missing_weights_are_one_line_with_places_hash_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(Refused, match=r"pt_inception-2015-12-05-6726825d\.pth nor .*weights-inception") as caught:
        find(None)
    told = str(caught.value)
    assert "\n" not in told
    assert str(tmp_path) in told
    assert module.SHA256 in told
    assert "--inception" in told
    with pytest.raises(Refused, match=r"not at .*mine\.pth: fetch"):
        find(tmp_path / "mine.pth")
    there = tmp_path / "hub" / "checkpoints" / module.FILES[1]
    there.parent.mkdir(parents=True)
    there.touch()
    assert find(None) == there
