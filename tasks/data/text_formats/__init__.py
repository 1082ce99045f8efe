"""One format of texts per file.

Each file exports

* `DATASETS`: names of texts, or patterns such as "*";
* `LOCAL`: whether the texts are in the folder of data sets (`data_dir`);
* `load(name, folder) -> tasks.data.base.TextParts`. `folder` is `data_dir`, or
  None if LOCAL is False.

If two patterns fit a name, the longer one wins: "gutenberg_*" before "*". An
installed package adds a format as in tasks/data/image_formats/__init__.py, with
the group "tasks.data.text_formats".
"""
