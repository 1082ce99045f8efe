"""One format of image data sets per file.

Each file exports

* `DATASETS`: names of data sets, or patterns such as "hf://*";
* `LOCAL`: whether the data sets are read from the folder of data sets;
* `load(name, folder, size) -> tasks.data.base.ImageParts`; `folder` is that of
  all data sets, None where LOCAL is False, and `size` is the number of pixels
  that images will be resized to, 0 for none.
"""
