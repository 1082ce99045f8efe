"""One format of texts per file.

Each file exports

* `DATASETS`: names of texts, or patterns such as "*";
* `LOCAL`: whether the texts are read from the folder of data sets;
* `load(name, folder) -> tasks.data.base.TextParts`; `folder` is that of all
  data sets, None where LOCAL is False.
"""
