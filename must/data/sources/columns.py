"""Which columns of a table hold images, labels and splits: the named ones, or those with the usual names."""

from typing import Any, NamedTuple

from must.base import storage
from must.base.parameters import require
from must.base.text import brief, printable

USUAL = (
    "image img picture photo jpg jpeg png webp image_bytes img_bytes image_data bytes content data path image_path "
    "img_path file_path filepath file_name filename file uri image_uri url image_url"
)
IMAGES = tuple(USUAL.split())
LABELS = ("label", "labels", "class", "cls", "class_name", "label_name", "category", "target")


class Asked(NamedTuple):
    """What the user said of a table's columns; "" is for the usual names."""

    image: str = ""
    label: str = ""


class Columns(NamedTuple):
    """Names of a table's columns, None for what it does not have."""

    image: str
    label: str | None
    split: str | None
    classes: tuple[str, ...] | None  # names of the numbers in the column label
    paths: bool  # the column of images holds names of files, not their bytes

    @property
    def read(self) -> list[str]:
        return list(dict.fromkeys(name for name in (self.image, self.label, self.split) if name is not None))


def choose(schema: Any, features: Any, asked: Asked, labels: str, where: str) -> Columns:
    """The columns to read of a table with this pyarrow schema.

    Args:
        features: those of Hugging Face's description of the table, anything else for none.
        labels: "folder", "csv" or "none", as `must shard --labels`.
        where: the option and file, for messages.

    Raises:
        ValueError: no column of images or labels, or several that might be; the line names the columns there are.
    """
    types = {name: plain(schema.field(number).type) for number, name in enumerate(schema.names)}
    there = f"its columns are {printable(', '.join(map(str, schema.names)), 300) or 'none'}"
    require(len(types) == len(schema.names), f"{where}: two columns have the same name; {there}")
    if asked.image:
        require(asked.image in types, f"{where}: no column {brief(asked.image)} (--image-column); {there}")
        image: str | None = asked.image
        require(
            may_be_image(types[asked.image]),
            f"{where}: the column {brief(asked.image)} holds {printable(types[asked.image], 80)}, neither an image's "
            "bytes nor names of files",
        )
    else:
        image = first_of(IMAGES, {name: kind for name, kind in types.items() if may_be_image(kind)})
        if image is None:
            binary = [name for name, kind in types.items() if has_bytes(kind)]
            image = binary[0] if len(binary) == 1 else None
    require(image is not None, f"{where}: no column that is called as images are; name it with --image-column; {there}")
    assert image is not None
    label = None
    if labels == "csv":
        if asked.label:
            require(asked.label in types, f"{where}: no column {brief(asked.label)} (--label-column); {there}")
            label = asked.label
        else:
            label = first_of(LABELS, {name: kind for name, kind in types.items() if may_be_label(kind)})
        require(label is not None, f"{where}: no column of labels; name it with --label-column; {there}")
        assert label is not None
        require(
            may_be_label(types[label]),
            f"{where}: the column {brief(label)} holds {printable(types[label], 80)}, neither texts nor numbers",
        )
    split = "split" if "split" in types and is_text(types["split"]) else None
    return Columns(image, label, split, class_names(features, label), not has_bytes(types[image]))


def first_of(names: tuple[str, ...], there: dict[str, Any]) -> str | None:
    lower: dict[str, str] = {}
    for name in there:
        lower.setdefault(name.lower(), name)
    return next((lower[name] for name in names if name in lower), None)


def plain(kind: Any) -> Any:
    """The type of a dictionary's values, and of what an extension is stored as."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return plain(kind.value_type)
    return plain(kind.storage_type) if hasattr(kind, "storage_type") else kind


def is_binary(kind: Any) -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind) or str(kind) == "binary_view"


def is_text(kind: Any) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or str(kind) == "string_view"


def has_bytes(kind: Any) -> bool:
    """Bytes, or Hugging Face's {bytes, path}."""
    from pyarrow import types

    if not types.is_struct(kind):
        return is_binary(kind)
    return any(kind.field(i).name == "bytes" and is_binary(kind.field(i).type) for i in range(kind.num_fields))


def may_be_image(kind: Any) -> bool:
    return has_bytes(kind) or is_text(kind)


def may_be_label(kind: Any) -> bool:
    from pyarrow import types

    return is_text(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def features_in(metadata: Any) -> Any:
    """Hugging Face's features, which `datasets` writes into a table's own description; None for none."""
    return storage.object_or_none((metadata or {}).get(b"huggingface", b""), lambda found: found["info"]["features"])


def class_names(features: Any, label: str | None) -> tuple[str, ...] | None:
    """The names of a ClassLabel."""
    feature = features.get(label) if isinstance(features, dict) else None
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
