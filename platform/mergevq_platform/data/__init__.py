"""Images as Parquet shards: make, pack, read, order, augment. See `shards` for the layout and `order` for the order."""

from mergevq_platform.data.batch_partition import BatchPartition
from mergevq_platform.data.contact_sheet import contact_sheet
from mergevq_platform.data.dataset import Dataset, ImageRow
from mergevq_platform.data.digits import write_digits
from mergevq_platform.data.eval_batches import BadImage, EvalBatches
from mergevq_platform.data.image_sets import ImageSet, open_images
from mergevq_platform.data.images.decoding import ImageDecodeError, decode
from mergevq_platform.data.info import describe, describe_in_short, open_and_describe
from mergevq_platform.data.loader import Batch
from mergevq_platform.data.order import SampleOrder
from mergevq_platform.data.pack import pack
from mergevq_platform.data.parquet.directory import open_dataset
from mergevq_platform.data.reading import Reading
from mergevq_platform.data.shapes import write_shapes
from mergevq_platform.data.sources.choices import Choices
from mergevq_platform.data.stream import TrainStream, to_unit_range
from mergevq_platform.data.views import ViewsConfig, evaluation_view, make_views

__all__ = [
    "BadImage",
    "Batch",
    "BatchPartition",
    "Choices",
    "Dataset",
    "EvalBatches",
    "ImageDecodeError",
    "ImageRow",
    "ImageSet",
    "Reading",
    "SampleOrder",
    "TrainStream",
    "ViewsConfig",
    "contact_sheet",
    "decode",
    "describe",
    "describe_in_short",
    "evaluation_view",
    "make_views",
    "open_and_describe",
    "open_dataset",
    "open_images",
    "pack",
    "to_unit_range",
    "write_digits",
    "write_shapes",
]
