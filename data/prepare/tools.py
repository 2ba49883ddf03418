"""Files of annotation tools as records with `image`, `expression` and `polygon` or `rle`."""
import posixpath
from collections.abc import Iterator

from utils.text import printable, printable_value

# Where tools and data sets keep a sentence about an object.
EXPRESSIONS = ("expression", "caption", "sentence", "description", "text")


def is_coco(content: object) -> bool:
    """Whether the content of a JSON file is COCO's: lists of images and of annotations that name them by number."""
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "annotations"))


def is_labelme(content: object) -> bool:
    """Whether the content of a JSON file is LabelMe's, which writes one for each image."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read_coco(content: dict) -> Iterator[tuple[str, dict | str]]:
    """A record for each annotation, after where it stands; instead of one that is wrong, the reason.

    The expression is the annotation's own under one of the keys EXPRESSIONS, or else the name of its category, which
    `by_category` then says.
    """
    images = _by_id(content["images"], "file_name")
    categories = content.get("categories")
    categories = _by_id(categories if isinstance(categories, list) else [], "name")
    for number, annotation in enumerate(content["annotations"], start=1):
        where = f"annotation {number}"
        if not isinstance(annotation, dict):
            yield where, "is not an object in braces"
            continue
        image, category = (known.get(annotation.get(key)) if isinstance(annotation.get(key), int | str) else None
                           for known, key in ((images, "image_id"), (categories, "category_id")))
        if image is None:
            yield where, f"has the image_id {printable_value(annotation.get('image_id'))}, which no image has"
            continue
        shape = annotation.get("segmentation")
        if not shape:
            yield where, "has no segmentation"
            continue
        own = _expression(annotation)
        yield where, {"image": image, "expression": own or category, "by_category": not own,
                      "rle" if isinstance(shape, dict) else "polygon": shape}


def read_labelme(content: dict) -> Iterator[tuple[str, dict | str]]:
    """A record for each shape, after where it stands. The expression is the shape's description, or else its label."""
    image = content["imagePath"]
    image = posixpath.basename(image.replace("\\", "/")) if isinstance(image, str) else image
    for number, shape in enumerate(content["shapes"], start=1):
        where = f"shape {number}"
        if not isinstance(shape, dict):
            yield where, "is not an object in braces"
            continue
        points, kind = shape.get("points"), shape.get("shape_type") or "polygon"
        if kind == "rectangle" and isinstance(points, list) and len(points) == 2 and all(
                isinstance(point, list) and len(point) == 2 for point in points):
            (left, top), (right, bottom) = points
            points = [[left, top], [right, top], [right, bottom], [left, bottom]]
        elif kind != "polygon":
            yield where, f"is a {printable(kind)}; only polygons and rectangles are read"
            continue
        own = _expression(shape)
        yield where, {"image": image, "expression": own or shape.get("label"), "by_category": not own,
                      "polygon": points or "[]"}


def _by_id(records: list, key: str) -> dict:
    return {record["id"]: record.get(key) for record in records
            if isinstance(record, dict) and isinstance(record.get("id"), int | str)}


def _expression(record: dict) -> str | None:
    return next((record[key] for key in EXPRESSIONS if isinstance(record.get(key), str) and record[key].strip()), None)
