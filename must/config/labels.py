"""Parameters of `must labels` and `must sort`."""

from dataclasses import dataclass
from typing import Literal

from must.base.parameters import StageConfig, param, require

SOURCE = (
    "file with the classes: predictions (CSV or JSONL of `must predict`, predictions.csv of `must refine` or `must "
    "evaluate`), answers.jsonl, an export of Label Studio (JSON, JSON_MIN or CSV) or FiftyOne, or a CSV with the "
    "columns image and label"
)
ROOT = "folder that the images' names are below: those of `must refine` and `must evaluate` are below their source"


@dataclass(kw_only=True)
class LabelsConfig(StageConfig):
    example = "must labels predictions.csv --to label-studio --output tasks.json"

    labels: str = param(f"{SOURCE}; also without the flag", metavar="FILE", bare=True)
    to: Literal["label-studio", "fiftyone", "cleanlab", "answers", "csv"] = param(
        "label-studio: tasks to import, with the labelling interface beside them; fiftyone: a folder to load; "
        "cleanlab: labels and probabilities, JSON or .parquet; answers: JSON lines; csv: the columns image and label"
    )
    output: str = param("file to write; for fiftyone a folder", metavar="FILE|DIR")
    root: str = param(f"{ROOT}; for label-studio its document root for local files", "", metavar="DIR")
    classes: str | list[str] = param(
        "all classes, as `must classifier --classes`; those that occur if none are given", "", metavar="NAMES|FILE"
    )
    check: Literal["none", "folder"] = param(
        "for cleanlab: the labels to be checked: none but those in the file, or the name of an image's folder", "none"
    )


@dataclass(kw_only=True)
class SortConfig(StageConfig):
    example = "must sort predictions.csv --into sorted/\n  must sort --undo --into sorted/"

    labels: str = param(f"{SOURCE}; also without the flag", "", metavar="FILE", bare=True)
    into: str = param("folder to sort into, with a folder a class; what is in there stays", metavar="DIR")
    how: Literal["link", "copy", "move"] = param(
        "link: symbolic links, which take no room; copy: copies; move: the files themselves", "link"
    )
    root: str = param(ROOT, "", metavar="DIR")
    abstain: float = param("a probability below which an image goes to the folder 'none of these'", 0.0, metavar="T")
    named_only: bool = param(
        "leave out images of none of the classes: for images with labels that are to measure a model", False
    )
    undo: bool = param("take back what was sorted into the folder: links and copies go, moved files return", False)

    def check_values(self) -> None:
        require(self.undo or bool(self.labels), "no file of labels given: must sort predictions.csv --into DIR")
        require(not (self.undo and self.labels), "--undo needs only --into; leave the file of labels out")
        require(0 <= self.abstain <= 1, "--abstain must be from 0 to 1: it is a probability")
        require("://" not in self.into, f"--into {self.into}: must be a folder on this machine")
