"""What people have images in that no layout reads: told by the names of files, each with what makes one that is read."""

from pathlib import Path

from backdoorbench.data.raw import some, visible

SAVED = "numpy.savez('all.npz', x_train=..., y_train=..., x_test=..., y_test=...), and set dataset.root to that"
ALIEN = {  # files of images that other libraries read
    ".mat": "an array of Matlab, which scipy.io.loadmat reads",
    ".h5": "an HDF5 file, which h5py reads",
    ".hdf5": "an HDF5 file, which h5py reads",
    ".mdb": "a database of LMDB, which lmdb reads",
    ".mds": "a shard of MosaicML's streaming, which StreamingDataset reads",
    ".beton": "a file of FFCV, which its Loader reads",
    ".rec": "a file of MXNet's RecordIO, which mxnet.recordio reads",
    ".pkl": "a pickle, which whoever trusts it reads by pickle.load",
    ".pickle": "a pickle, which whoever trusts it reads by pickle.load",
    ".pt": "a file of torch.save, which torch.load reads",
}
OTHERS: tuple[tuple[str, str], ...] = (  # the end of a name, or what it has; what it is, and what to do
    ("cifar-10-batches-py", "{} is CIFAR-10's archive, which dataset=cifar10 reads."),
    (
        "data_batch_1",
        "{} is of CIFAR-10's archive, which dataset=cifar10 reads; dataset.root is the folder of cifar-10-batches-py.",
    ),
    ("cifar-100-python", "{} is CIFAR-100's archive, which dataset=cifar100 reads."),
    (
        ".arrow",
        "{} is what datasets saves to disk. Write it as parquet, each split by "
        "datasets.load_from_disk(FOLDER).to_parquet('train.parquet'), and set dataset.root to the folder of these files.",
    ),
    (
        ".jsonl",
        "{} may say the labels of images, but tables are read as .csv: "
        "pandas.read_json(FILE, lines=True).to_csv('metadata.csv', index=False) beside it.",
    ),
    (
        ".tar",
        "{} is an archive, such as a shard of webdataset. Write each of its images into a folder of its class, as "
        "train/CLASS/KEY.png and test/CLASS/KEY.png.",
    ),
    (
        ".tfrecord",
        "{} has records of TensorFlow. Write each image into a folder of its class, as train/CLASS/1.png and test/CLASS/1.png.",
    ),
    (
        ".npy",
        "{} is an array of numpy. Join them in one file, " + SAVED + ".",
    ),
    (
        "-ubyte",
        "{} is of MNIST's archive, which torchvision.datasets.MNIST reads. Save its data and targets: " + SAVED + ".",
    ),
    (".zip", "Unpack {} there."),
    (".gz", "Unpack {} there."),
    (".tgz", "Unpack {} there."),
    *((end, f"{{}} is {what}. Save what is read: {SAVED}.") for end, what in ALIEN.items()),
)


def remedy(root: Path) -> str:
    """What to do with the files at or below `root`, in a sentence or two; empty where nothing is known of them."""
    inside = visible(root) if root.is_dir() else []
    below = [f"{name}/{inner}" for name in inside if (root / name).is_dir() for inner in visible(root / name)]
    names = [*inside, *below] or [root.name]
    tables = [name for name in inside if name.endswith((".csv", ".tsv"))]
    if tables:
        return f"Where a table says the labels of images, set dataset.root to it: {some([str(root / name) for name in tables])}."
    for part, said in OTHERS:
        if found := [name for name in names if name.lower().endswith(part) or f"{part}-" in name]:
            return said.format(f"'{found[0]}'")
    return ""
