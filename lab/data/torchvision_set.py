"""Any data set of torchvision, by the name of its class; nothing is downloaded."""

import io
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

from PIL import Image
from pydantic import field_validator

from lab.data.caption import Captions, in_places, read
from lab.data.collection import Collection, Entry, Record, class_caption, files, stamps
from lab.data.source import BadSample
from lab.data.split import SplitConfig
from lab.errors import Refused
from lab.explanation import nearest


class Torchvision(Collection):
    """A data set of torchvision whose files are in the folder ``path``; what is not said here is of ``Collection``.

    The captions are the names of the classes, or those of the data set where it has any. The pictures are unpacked into
    the cache once.

    Attributes:
        name: of the class in torchvision.datasets, such as "CIFAR10".
        options: of the class, such as {train: false} or {split: test}.
        classes: names of the classes 0, 1, ...; by default those that the data set knows.
    """

    kind: Literal["torchvision"] = "torchvision"
    name: str
    options: dict[str, bool | int | str] = {}
    classes: tuple[str, ...] = ()
    split: SplitConfig = SplitConfig(group="id")

    @field_validator("options")
    @classmethod
    def _possible(cls, options: dict[str, bool | int | str]) -> dict[str, bool | int | str]:
        if taken := {"root", "download", "transform", "target_transform", "loader"} & options.keys():
            raise ValueError(f"{min(taken)} is no option here: the files are in path, and nothing is downloaded")
        return options

    def state(self) -> Iterator[str]:
        yield repr((self.name, sorted(self.options.items()), self.classes))
        yield from stamps(files(self.root))

    def entries(self) -> Iterator[Entry]:
        dataset = self._dataset()
        classes = self.classes or tuple(map(str, getattr(dataset, "classes", ())))
        for k in range(len(dataset)):
            record = Record(f"{self.name}-{k}")
            try:
                picture, target = dataset[k]
            except (OSError, SyntaxError, ValueError) as error:
                yield self.entry(Record(record.id, fault=BadSample("broken image", str(error))), tuple)
                continue
            yield self.entry(record, partial(self._captions, target, classes), data=_encoded(picture))

    def _dataset(self) -> Any:
        from torchvision import datasets

        found = getattr(datasets, self.name, None)
        if not (isinstance(found, type) and issubclass(found, datasets.VisionDataset)):
            raise Refused(
                f"data.name={self.name}: torchvision has no such data set{nearest(self.name, datasets.__all__)}"
            )
        try:
            return found(self.path, **self.options)
        except (RuntimeError, TypeError, ValueError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise Refused(
                f"data.name={self.name}: torchvision does not find it in data.path={self.path} with "
                f"data.options={self.options} ({reason}); put its files there, for nothing is downloaded"
            ) from None

    def _captions(self, target: object, classes: tuple[str, ...]) -> Captions:
        if isinstance(target, int):
            return class_caption(classes, target)
        return in_places(read(target, "the target"), self.captions)


def _encoded(picture: Image.Image) -> bytes:
    """The bytes of a picture file without loss."""
    buffer = io.BytesIO()
    fitting = picture.convert("RGB") if picture.mode in ("CMYK", "YCbCr", "HSV", "LAB") else picture
    fitting.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
