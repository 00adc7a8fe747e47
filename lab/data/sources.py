"""From the configuration of the data to its source."""

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from lab.data.finite import Finite
from lab.data.folder import Folder
from lab.data.index import open_index
from lab.data.shapes import Shapes, ShapesConfig
from lab.data.source import Source
from lab.data.split import Split


def _kind(value: Any) -> str | None:
    """The kind that a configuration of data names, which is "shapes" where none is named."""
    return value.get("kind", "shapes") if isinstance(value, dict) else getattr(value, "kind", None)


AnyData = Annotated[
    Annotated[ShapesConfig, Tag("shapes")] | Annotated[Folder, Tag("folder")],
    Discriminator(_kind),
]


def source(config: AnyData, split: Split = "train") -> Source:
    """Open the data that is configured, one side of it.

    Raises:
        Refused: there is no such data, or it is not to be trusted.
        BadData: it cannot be listed.
        StorageFailed: its index cannot be written.
    """
    if isinstance(config, ShapesConfig):
        return Shapes(config, split)
    return Finite(config, open_index(config), split)
