"""COCO's captions: one JSON file that names the pictures of a folder, each with several captions.

{"images": [{"id": 1, "file_name": "1.jpg"}, ...], "annotations": [{"image_id": 1, "caption": "a fox"}, ...]}
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lab.data.caption import Captions, in_places, read
from lab.data.collection import Collection, Entry, PathText, files, stamps
from lab.data.folder import pictured
from lab.data.split import SplitConfig
from lab.errors import BadData, Refused


class Coco(Collection):
    """Captions in the JSON file ``path``; what is not said here is of ``Collection``.

    Attributes:
        folder: of the pictures.
    """

    kind: Literal["coco"] = "coco"
    folder: PathText
    split: SplitConfig = SplitConfig(group="id")

    @property
    def root(self) -> Path:
        return Path(self.folder)

    def state(self) -> Iterator[str]:
        path = Path(self.path)
        if not path.is_file():
            raise Refused(f"data.path={path}: no such file; name the JSON file of the captions")
        yield from stamps({path.name: path.stat(), **files(self.root, "data.folder")})

    def entries(self) -> Iterator[Entry]:
        found, captions = files(self.root, "data.folder"), defaultdict(list)
        try:
            tree = json.loads(Path(self.path).read_bytes())
            for annotation in tree["annotations"]:
                captions[annotation["image_id"]].append(annotation.get("caption"))
            pictures: list[tuple[str, Any]] = [(str(image["file_name"]), image["id"]) for image in tree["images"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadData(f"{self.path}: is no file of captions as COCO's ({type(error).__name__}: {error})") from None
        for name, number in pictures:
            yield self.entry(pictured(name, found), partial(self._spoken, captions[number]))

    def _spoken(self, captions: list[object]) -> Captions:
        return in_places(read(captions, "annotations"), self.captions)
