"""One format of image data sets per file.

Each file exports

* `DATASETS`: names of data sets, or patterns such as "hf://*";
* `LOCAL`: whether the data sets are in the folder of data sets (`data_dir`);
* `load(name, folder, size) -> tasks.data.base.ImageParts`. `folder` is
  `data_dir`, or None if LOCAL is False. `size` is the height and width to which
  the images will be resized, 0 for no resizing; `load` may ignore `size`.

All files in this folder are found. An installed package adds a format by an
entry point in its pyproject.toml:

    [project.entry-points."tasks.data.image_formats"]
    mine = "my_package.my_format"

All formats are imported to find a data set. Import a library inside `load` if
other formats do not need it.
"""
